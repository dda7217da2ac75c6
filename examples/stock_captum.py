"""Stock Captum with this package's rules: attach_rules.

Keeps a script on captum.attr.LRP. What that driver cannot see stays wrong: a functional addition,
the ``+`` of a ResNet, is no module, and hands all relevance to each of its summands.

    python examples/stock_captum.py [FOLDER] [PICTURE]
"""

import sys
from pathlib import Path

from captum.attr import LRP as StockLRP

from captum_lrp_stab import LRP, attach_rules, compare, presets, visualize, zoo
from captum_lrp_stab.images import reading


def main(folder: Path, picture: str | None = None) -> None:
    image = reading.default_picture() if picture is None else reading.read(picture)

    # SqueezeNet is made of modules, and concatenations, which stock Captum gets right.
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    seen = preprocessing.picture(image)  # resized and cut out
    x = preprocessing.input(seen)
    target = int(model(x).argmax())
    score = model(x)[0, target].item()
    name_map = presets.epsilon_gamma_box(preprocessing.low, preprocessing.high)(model)

    relevance = {"stock Captum, its rules": StockLRP(model).attribute(x.clone(), target).detach()}
    with attach_rules(model, name_map):  # puts everything back at the end
        attached = StockLRP(model).attribute(x.clone(), target).detach()
    relevance["stock Captum, our rules"] = attached
    relevance["this package"] = LRP(model, name_map).attribute(x, target)
    for name, R in relevance.items():
        print(f"{name:24} sum {R.sum():.3f} of {score:.3f}")
    same = compare(model, x, target, name_map, "captum_driver")
    print(f"stock Captum with our rules against this package: {same.verdict}")
    same = compare(model, x, target, presets.epsilon(1e-9), "captum")
    print(f"its own epsilon rule against ours: {same.verdict}")

    # torchvision's ResNet-18 adds in its forward. Random weights: it is the sum that counts here.
    resnet = zoo.load("resnet18", "none")
    x = resnet.preprocessing.input(resnet.preprocessing.picture(image))
    output = resnet.model(x)[0, 0].item()
    ours = LRP(resnet.model, presets.epsilon(1e-9)).attribute(x, 0)
    stock = StockLRP(resnet.model).attribute(x.clone(), 0).detach()
    print(f"ResNet-18 sum {ours.sum():.3g}, stock Captum {stock.sum():.3g}, score {output:.3g}")
    found = compare(resnet.model, x, 0, presets.epsilon(1e-9), "captum_driver")
    print(f"{found.verdict}: {', '.join(difference.name for difference in found.differences)}")

    title = f"{classifier.name}, {classifier.label(target)}, score {score:.4g}"
    figure = visualize.heatmaps(relevance, seen, shared=False, title=title)
    figure.savefig(folder / "stock_captum.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."), *sys.argv[2:3])
