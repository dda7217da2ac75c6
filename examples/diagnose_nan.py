"""A heatmap is NaN: where it arose, why, and what to change.

A picture with large constant areas, rules without a stabilizer, and relevance carried as Captum and
zennit carry it, by dividing at every layer: 0/0 where a neuron sums up to exactly 0.

    python examples/diagnose_nan.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

from matplotlib.patches import Rectangle

from captum_lrp_stab import LRP, diagnose, presets, stabilizers, visualize, zoo
from captum_lrp_stab.diagnosis import advise
from captum_lrp_stab.images import reading

PICTURE = Path(__file__).parent.parent / "data" / "constant_areas.png"


def main(folder: Path, picture: str | Path = PICTURE) -> None:
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    seen = preprocessing.picture(reading.read(picture))  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    rules = presets.lrp_tutorial(preprocessing.low, preprocessing.high)
    bare = {"form": "relevance", "stabilizer": stabilizers.Identity()}

    found = diagnose(model, x, target, rules, **bare)
    print(f"{found.verdict}: {found.explanation()}")
    if found.origin is None:
        print("nothing to repair: try a picture with constant areas")
        return
    neuron = found.origin.neuron
    print(f"z = {neuron.z:g}, denominator {neuron.denominator:g}, relevance {neuron.relevance:g}")
    print(f"the neuron sees {found.sees[0]}")

    # The tolerance: how far float32 may be from float64, here 1.5% under any small stabilizer
    advice = advise(model, x, target, rules, tolerance=0.05, **bare)
    print(advice)
    repaired = diagnose(model, x, target, advice.name_map, form="relevance")
    print(f"with the advice: {repaired.verdict}")

    # The other way out: carry coefficients. 0/0 is 0 there, without any stabilizer.
    gradient = LRP(model, rules).attribute(x, target)
    print(f"in gradient form: {int((~gradient.isfinite()).sum())} values are NaN or Inf")

    relevance = {
        "relevance form, no stabilizer": found.relevances[0],
        "the same after the advice": repaired.relevances[0],
        "gradient form": gradient,
    }
    figure = visualize.heatmaps(relevance, seen, scores=found.score)
    (_, top, left), (_, bottom, right) = (
        found.receptive_field[0].start,
        found.receptive_field[0].stop,
    )
    frame = Rectangle((left - 6, top - 6), right - left + 12, bottom - top + 12, fill=False)
    figure.axes[0].add_patch(frame)  # around what the first neuron sees
    figure.savefig(folder / "diagnose_nan.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
