"""The castle study, from the first line to the last: five stabilizers in two forms.

The study ran LRP on VGG16 with a map of four rules by depth, by rewriting the forward pass. What
it saw: the heatmap depends on what stands in the denominator. Without a stabilizer it is NaN, and
two popular ones make patches. In gradient form, this package's own, 0/0 cannot arise.

VGG16's weights cannot be shipped, so by default this runs EfficientNet-Lite0 with its ImageNet
weights, under the same map by depth. For the study's own network give the file of torchvision's
weights, vgg16-397923af.pth, or ``none`` for random ones.

    python examples/castle_study.py [FOLDER] [PICTURE] [WEIGHTS]
"""

import sys
from pathlib import Path

from captum_lrp_stab import (
    EpsilonRule,
    GammaRule,
    LayerFilter,
    ZBoxRule,
    ZeroRule,
    presets,
    visualize,
    zoo,
)
from captum_lrp_stab.images import reading
from captum_lrp_stab.study.investigation import investigate

# Name and epsilon, as on the command line. The study took the quadratic mean over the whole batch,
# RootMeanSquare(epsilon, per_sample=False): of one picture that is the same.
STABILIZERS = ("none", "signed:1e-6", "additive:0.1", "quadratic-mean:1e-6", "quadratic-mean:0.1")
# Ten times the cubic mean of |R| saturates, the study's scale; each heatmap has its own.
STYLE = {"scale": "cubic", "colours": "seismic", "shared": False}
TITLE = "Above: the study's form, which rewrites the forward pass. Below: the gradient form."


def name_map_of(classifier: zoo.Classifier) -> list:
    """Return zB for the pixels, then gamma, epsilon and zero, by depth."""
    low, high = classifier.preprocessing.low, classifier.preprocessing.high
    if classifier.name != "vgg16":
        return presets.lrp_tutorial(low, high)(classifier.model)
    layers = LayerFilter(classifier.model)  # leaf modules by index, those that take a rule
    return [
        (layers(lambda n: n == 0), ZBoxRule, {"low": low, "high": high}),
        (layers(lambda n: 1 <= n <= 16), GammaRule, {"gamma": 0}),
        (layers(lambda n: 17 <= n <= 30), EpsilonRule, {"epsilon": 0.25}),
        (layers(lambda n: 31 <= n), ZeroRule, {}),
    ]


def main(folder: Path, picture: Path | None = None, weights: str | None = None) -> None:
    classifier = zoo.load() if weights is None else zoo.load("vgg16", weights)
    image = reading.default_picture() if picture is None else reading.read(picture)
    name_map = name_map_of(classifier)
    heatmaps, scores = {}, {}
    for form in "modified-forward", "gradient":
        study = investigate(classifier, image, rules=name_map, names=STABILIZERS, form=form)
        (record,) = study.records  # of one picture
        print(f"{form} form: {record.label}, score {record.score:.4g}")
        heatmaps[form], scores[form] = {}, {}
        for run, heatmap in zip(record.runs, study.heatmaps, strict=True):
            if run.finite:
                peak = heatmap.abs().max() / heatmap.abs().median()
                said = f"largest pixel {peak:.3g} times the median"
                said += f", sum {heatmap.sum():.3g} for a score of {run.score:.3g}"
            else:
                said = f"NaN, which arose in {run.start.layer}"
            print(f"  {run.name:20} {said}")
            heatmaps[form][run.name] = heatmap
            if run.score is not None:
                scores[form][run.name] = run.score
    figure = visualize.grid(heatmaps, scores=scores, title=TITLE, **STYLE)
    figure.savefig(folder / "castle_study.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:4])
