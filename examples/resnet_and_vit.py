"""A ResNet and a vision transformer as torchvision has them: nothing to rewrite, no canonizer.

Weights are random unless files are given (torchvision's state dicts of resnet50 and vit_b_16), so
the heatmaps say nothing about the picture; the checks hold for any weights.

    python examples/resnet_and_vit.py [FOLDER] [PICTURE] [RESNET_WEIGHTS] [VIT_WEIGHTS]
"""

import sys
from collections import Counter
from pathlib import Path

import torch

from captum_lrp_stab import LRP, diagnose, plan, presets, visualize, zoo
from captum_lrp_stab.images import reading


def main(folder: Path, picture: str | None = None, resnet: str = "none", vit: str = "none") -> None:
    image = reading.default_picture() if picture is None else reading.read(picture)
    relevance, scores = {}, {}
    for name, weights in ("resnet50", resnet), ("vit_b_16", vit):
        classifier = zoo.load(name, weights)
        model, preprocessing = classifier.model, classifier.preprocessing
        seen = preprocessing.picture(image)  # resized and cut out
        x = preprocessing.input(seen)
        if name == "vit_b_16" and vit == "none":
            torch.manual_seed(0)
            torch.nn.init.normal_(model.heads.head.weight)  # torchvision begins with 0
        target = int(model(x).argmax())

        # What every operation gets: functional additions, batch norm, attention included
        rules = presets.epsilon_gamma_box(preprocessing.low, preprocessing.high)
        planned = plan(model, x, rules)
        print(f"{name}: {len(planned.rows)} operations, {len(planned.fallbacks)} without a rule")
        for rule, count in Counter(row.rule for row in planned.rows).most_common():
            print(f"  {count:4} {rule}")

        # The score is what reaches the picture and what layers absorb; all is accounted for.
        found = diagnose(model, x, target, rules)
        absorbed = found.ledger.shares
        print(f"  score {found.ledger.score:.3f}: picture {found.ledger.inputs.total:.3f}")
        print(f"  biases and constants {absorbed.bias:.3f}, softmax {absorbed.operation:.3f}")
        print(f"  stabilizers {absorbed.stabilizer:.3f}, unaccounted {found.ledger.closing:.0e}")
        relevance[name], scores[name] = found.relevances[0], found.score

        if name == "resnet50":  # ReLUs, additions, averages: LRP-0 is gradient x input
            zero = LRP(model, presets.zero()).attribute(x, target)
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model(leaf)[0, target], leaf)
            difference = (zero - gradient * x).norm() / (gradient * x).norm()
            print(f"  LRP-0 against gradient x input: {difference:.0e}")
    title = "epsilon-gamma-box" + (", random weights" if "none" in (resnet, vit) else "")
    figure = visualize.heatmaps(relevance, seen, scores=scores, shared=False, title=title)
    figure.savefig(folder / "resnet_and_vit.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:5])
