"""Draw the heatmaps of the quickstart and of the symptoms, on networks with ImageNet weights.

    python docs/draw_pictures.py [NAME ...]

writes docs/pictures/NAME.png, all of them if no name is given. Both networks and all pictures come
with packages of the extra `demo`; nothing is downloaded.
"""

import copy
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerFilter, diagnose, presets, stabilizers, visualize, zoo
from captum_lrp_stab.rules.standard import EpsilonRule

FOLDER = Path(__file__).parent / "pictures"
LITE0, SQUEEZENET = zoo.OFFLINE


@dataclass(frozen=True)
class Scene:
    """A network, and a photograph as it sees it."""

    network: zoo.Classifier
    picture: Image.Image
    x: Tensor

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.network.model

    @property
    def target(self) -> int:
        """The class the network finds."""
        return int(self.model(self.x).argmax())

    def score(self, target: int) -> float:
        """Return the network's output for a class."""
        with torch.no_grad():
            return float(self.model(self.x)[0, target])


@cache
def scene(name: str, photograph: str = "chelsea") -> Scene:
    """Return a network and a photograph of scikit-image."""
    network = zoo.load(name)
    image = Image.fromarray(getattr(data, photograph)())
    picture = network.preprocessing.picture(image)
    return Scene(network, picture, network.preprocessing.input(picture))


def quickstart_first() -> Figure:
    """One heatmap alone."""
    at = scene(LITE0)
    relevance = LRP(at.model, presets.epsilon_plus()).attribute(at.x, target=at.target)
    return visualize.heatmap(relevance)


def quickstart_over() -> Figure:
    """The same over the picture."""
    at = scene(LITE0)
    relevance = LRP(at.model, presets.epsilon_plus()).attribute(at.x, target=at.target)
    name, score = at.network.label(at.target), at.score(at.target)
    return visualize.heatmap(relevance, at.picture, score=score, name=name)


def quickstart_presets() -> Figure:
    """Four presets."""
    at = scene(LITE0)
    ways = at.network.preprocessing
    chosen = {
        "zero": presets.zero(),
        "epsilon 0.25": presets.epsilon(0.25),
        "epsilon_plus": presets.epsilon_plus(),
        "epsilon_gamma_box": presets.epsilon_gamma_box(ways.low, ways.high),
    }
    return visualize.heatmaps(_each(at, chosen), at.picture, shared=False, columns=2)


def quickstart_stabilizers() -> Figure:
    """Two presets under two stabilizers."""
    at = scene(LITE0)
    return visualize.rules_by_stabilizers(
        at.model,
        at.x,
        at.target,
        {"epsilon(0)": presets.epsilon(0), "epsilon_plus": presets.epsilon_plus()},
        {
            "Signed(1e-6)": stabilizers.Signed(1e-6),
            "RootMeanSquare(0.1)": stabilizers.RootMeanSquare(0.1),
        },
        at.picture,
        shared=False,
    )


def patches() -> Figure:
    """Denominators with a pole."""
    at = scene(LITE0)
    chosen = {
        "Signed(0.1)": stabilizers.Signed(0.1),
        "Additive(0.1)": stabilizers.Additive(0.1),
    }
    (found,) = LRP(at.model, presets.epsilon(0)).attribute_many(
        at.x, [at.target], stabilizers=list(chosen.values())
    )
    named = dict(zip(chosen, found, strict=True))
    return visualize.heatmaps(named, at.picture, shared=False)


def not_a_number() -> Figure:
    """0/0 in relevance form, and nothing of it in gradient form."""
    at = scene(LITE0)
    found = diagnose(at.model, at.x, at.target, presets.zero(), form="relevance")
    shown = {
        "relevance form": found.relevances[0],
        "gradient form": LRP(at.model, presets.zero()).attribute(at.x, target=at.target),
    }
    return visualize.heatmaps(shown, at.picture, shared=False)


def noise() -> Figure:
    """LRP-0, and a preset in which less cancels."""
    at = scene(LITE0)
    ways = at.network.preprocessing
    chosen = {
        "zero": presets.zero(),
        "epsilon_gamma_box": presets.epsilon_gamma_box(ways.low, ways.high),
    }
    return visualize.heatmaps(_each(at, chosen), at.picture, shared=False)


def stride() -> Figure:
    """The grid of strided layers, and its mean over blocks."""
    at = scene(LITE0)
    flat = LRP(at.model, presets.epsilon_plus_flat()).attribute(at.x, target=at.target)
    even = torch.nn.functional.avg_pool2d(flat, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    shown = {"epsilon_plus_flat": flat, "its mean over 4 x 4 pixels": even}
    return visualize.heatmaps(shown)


def half() -> Figure:
    """Relevance too small for float16."""
    at = scene(LITE0)
    shown = {}
    for dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(at.model).to(dtype)
        lrp = LRP(model, presets.epsilon_plus())
        relevance = lrp.attribute(at.x.to(dtype), target=at.target)
        zeros = float((relevance == 0).float().mean())
        shown[f"{str(dtype).removeprefix('torch.')}, {zeros:.0%} zeros"] = relevance.float()
    return visualize.heatmaps(shown, at.picture, shared=False)


def against() -> Figure:
    """A class with a negative score."""
    at = scene(LITE0)
    lrp = LRP(at.model, presets.epsilon_plus())
    classes = (at.target, 2)
    found = lrp.attribute_many(at.x, list(classes))
    names = [at.network.label(target) for target in classes]
    scores = {n: at.score(target) for n, target in zip(names, classes, strict=True)}
    named = dict(zip(names, found, strict=True))
    return visualize.heatmaps(named, at.picture, scores=scores, shared=False)


def classes() -> Figure:
    """Two classes: alike under z+, different under LRP-0, and their contrast."""
    at = scene(SQUEEZENET)
    targets = (at.target, 967)
    ((zero_cat, plus_cat), (zero_cup, plus_cup)) = LRP(at.model).attribute_many(
        at.x, list(targets), rules=[presets.zero(), presets.epsilon_plus()]
    )
    cat, cup = (at.network.label(target) for target in targets)
    shown = {
        "epsilon_plus": {cat: plus_cat, cup: plus_cup},
        "zero": {cat: zero_cat, cup: zero_cup},
    }
    return visualize.grid(shown, at.picture, shared=False)


def channels() -> Figure:
    """One channel with more relevance than the others."""
    at = scene(LITE0, "coffee")
    relevance = LRP(at.model, presets.zero()).attribute(at.x, target=at.target)
    return visualize.channels(relevance, at.picture, columns=2)


def batch() -> Figure:
    """A batch-wide mean: one picture alone, and beside another."""
    cat, coffee = scene(SQUEEZENET), scene(SQUEEZENET, "coffee")
    rule = {"epsilon": 0.0, "stabilizer": stabilizers.RootMeanSquare(0.1, per_sample=False)}
    lrp = LRP(cat.model, [(LayerFilter(cat.model)(lambda n: True), EpsilonRule, rule)])
    both = lrp.attribute(torch.cat([cat.x, coffee.x]), target=[cat.target, coffee.target])
    shown = {
        "the cat alone": lrp.attribute(cat.x, target=cat.target),
        "beside the coffee": both[:1],
    }
    return visualize.heatmaps(shown, cat.picture)


def _each(at: Scene, chosen: dict[str, Any]) -> dict[str, Tensor]:
    """Return relevance under each preset."""
    (found,) = LRP(at.model).attribute_many(at.x, [at.target], rules=list(chosen.values()))
    return dict(zip(chosen, found, strict=True))


PICTURES: dict[str, Callable[[], Figure]] = {
    function.__name__: function
    for function in (
        *(quickstart_first, quickstart_over, quickstart_presets, quickstart_stabilizers),
        *(patches, not_a_number, noise, stride, half, against, classes, channels, batch),
    )
}
"""By name."""


def main(names: list[str]) -> None:
    """Write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        buffer = io.BytesIO()
        PICTURES[name]().savefig(buffer, format="png")
        image = Image.open(buffer).convert("RGB")
        image.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
