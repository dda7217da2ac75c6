"""Rules by layer index and type, as a list one can print and edit.

python examples/name_map.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    LayerFilter,
    ZBoxRule,
    ZPlusRule,
    plan,
    presets,
    stabilizers,
    types,
    visualize,
    zoo,
)
from captum_lrp_stab.images import reading


def main(folder: Path, picture: str | None = None) -> None:
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    image = reading.default_picture() if picture is None else reading.read(picture)
    seen = preprocessing.picture(image)  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    score = model(x)[0, target].item()

    # Indices count leaf modules; the filter selects those that take a rule. A second argument
    # narrows that to types: of the layers 1 to 40 the convolutions, of all the average pools.
    layers = LayerFilter(model)
    box = {"low": preprocessing.low, "high": preprocessing.high}
    clipped = {"gamma": 0.25, "stabilizer": stabilizers.Clip(1e-6)}
    name_map = [
        (layers(lambda n: n == 0), ZBoxRule, box),
        (layers(lambda n: 1 <= n <= 40, types.Convolution), GammaRule, clipped),
        (layers(lambda n: n > 40, types.Convolution), EpsilonRule, {"epsilon": 0.1}),
        (layers(lambda n: True, types.AvgPool), EpsilonRule, {}),
    ]
    for names, rule, _ in name_map:
        print(f"{rule.__name__:12}{len(names):3} layers, {names[0]} to {names[-1]}")

    # What each operation gets, before anything is attributed
    planned = plan(model, x, name_map)
    print(f"{len(planned.rows)} operations, {len(planned.layers)} with a rule; the first four:")
    for row in planned.rows[:4]:  # print(planned) shows them all
        print(f"  {row.index} {row.name} ({row.type}): {row.rule}")

    # A preset called with the model is such a list, to be edited: here z-plus in fire module 3
    edited = presets.epsilon_gamma_box(**box)(model)
    fire = [name for name in layers(lambda n: True) if name.startswith("features.3.")]
    edited = [([n for n in names if n not in fire], *rest) for names, *rest in edited]
    edited.append((fire, ZPlusRule, {}))
    print(f"edited: {', '.join(f'{rule.__name__} {len(names)}' for names, rule, _ in edited)}")

    maps = {"epsilon everywhere": presets.epsilon(), "by index and type": name_map}
    maps["a preset, edited"] = edited
    (relevances,) = LRP(model).attribute_many(x, [target], rules=list(maps.values()))
    found = dict(zip(maps, relevances, strict=True))
    title = f"{classifier.name}, {classifier.label(target)}"
    figure = visualize.heatmaps(found, seen, scores=score, shared=False, title=title)
    figure.savefig(folder / "name_map.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
