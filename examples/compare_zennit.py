"""The same rules in zennit and here, layer by layer; then a rule that is not the same.

Needs zennit (pip install zennit).

    python examples/compare_zennit.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

from zennit.composites import EpsilonGammaBox

from captum_lrp_stab import compare, presets, zoo
from captum_lrp_stab.comparison.drawing import draw
from captum_lrp_stab.images import reading


def main(folder: Path, picture: str | None = None) -> None:
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    image = reading.default_picture() if picture is None else reading.read(picture)
    seen = preprocessing.picture(image)  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    rules = presets.epsilon_gamma_box(preprocessing.low, preprocessing.high)

    # zennit's composite of the same meaning is chosen for the preset.
    same = compare(model, x, target, rules, "zennit")
    print(f"the same rules: {same.verdict}, relative difference {same.overall.relative_l2:.1e}")
    header, rows = same.table(every=False)  # layers that mix values, from the first to the last
    print(*(f"{line[0]:24}{line[1]:13}{line[2]}" for line in (header, *rows[:3])), sep="\n")

    # A composite of one's own: with another gamma the heatmaps look alike, and are not the same.
    other = EpsilonGammaBox(low=preprocessing.low, high=preprocessing.high, gamma=0.5)
    differs = compare(model, x, target, rules, other)
    print(f"gamma 0.5 in zennit: {differs.verdict}, they part at {differs.first.name}")
    agreement = differs.overall
    print(f"cosine {agreement.cosine:.2f}, strongest 1% in common {agreement.top_overlap:.0%}")

    sentence = f"{classifier.label(target)}: gamma 0.25 here, gamma 0.5 in zennit"
    draw(differs, seen, sentence).savefig(folder / "compare_zennit.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
