"""Every rule and preset against every reference, on real runs: makes docs/parity.md.

Run it as ``python -m tests.helpers.parity [network ...] > docs/parity.md``; it takes an
hour on two cores. In float64, because that tells a difference of meaning from rounding; only what
is compared with float64 is float32.
"""

import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from captum_lrp_stab import (
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    LayerFilter,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    compare,
    presets,
    types,
    zoo,
)
from captum_lrp_stab.comparison import Comparison
from captum_lrp_stab.comparison.known_differences import KNOWN
from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.images import reading
from tests.helpers.networks import build, narrow

REFERENCES = ("zennit", "captum", "captum_driver", "float64", "modified_forward")
LOW, HIGH = -3.0, 3.0
SIDE = 64
TARGET = 3


def everywhere(rule: type, model: nn.Module, **parameters: object) -> list:
    """One rule for all linear layers and convolutions."""
    layers = LayerFilter(model, types.Linear)
    return [(layers(lambda n: True), rule, parameters)]


def first(rule: type, model: nn.Module, **parameters: object) -> list:
    """A rule for the first layer, epsilon for the others."""
    names = LayerFilter(model, types.Linear)(lambda n: True)
    return [(names[:1], rule, parameters), (names[1:], EpsilonRule, {"epsilon": 1e-6})]


Spec = Callable[[float, float], Callable[[nn.Module], list]]
RULES: dict[str, Spec] = {
    "`ZeroRule`": lambda low, high: partial(everywhere, ZeroRule),
    "`EpsilonRule(0.25)`": lambda low, high: partial(everywhere, EpsilonRule, epsilon=0.25),
    "`EpsilonRule(0.25, signed=False)`": lambda low, high: partial(
        everywhere, EpsilonRule, epsilon=0.25, signed=False
    ),
    "`GammaRule(0.25)`": lambda low, high: partial(everywhere, GammaRule, gamma=0.25),
    "`AlphaBetaRule(2, 1)`": lambda low, high: partial(everywhere, AlphaBetaRule),
    "`ZPlusRule`": lambda low, high: partial(everywhere, ZPlusRule),
    "`ZBoxRule` first": lambda low, high: partial(first, ZBoxRule, low=low, high=high),
    "`WSquareRule` first": lambda low, high: partial(first, WSquareRule),
    "`FlatRule` first": lambda low, high: partial(first, FlatRule),
    "preset `zero`": lambda low, high: presets.zero(),
    "preset `epsilon`": lambda low, high: presets.epsilon(),
    "preset `epsilon_plus`": lambda low, high: presets.epsilon_plus(),
    "preset `epsilon_plus_flat`": lambda low, high: presets.epsilon_plus_flat(),
    "preset `epsilon_alpha2_beta1`": lambda low, high: presets.epsilon_alpha2_beta1(),
    "preset `epsilon_alpha2_beta1_flat`": lambda low, high: presets.epsilon_alpha2_beta1_flat(),
    "preset `epsilon_gamma_box`": presets.epsilon_gamma_box,
    "preset `lrp_tutorial`": presets.lrp_tutorial,
}


def randomly(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, int, float, float]:
    """A network of torchvision with random weights and statistics, on a random picture."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return build(make), LOW + (HIGH - LOW) * x, TARGET, LOW, HIGH


def really(name: str, step: int = 1) -> tuple[nn.Module, Tensor, int, Tensor, Tensor]:
    """A network with ImageNet weights on a photograph, or on every step-th row and column of it."""
    classifier = zoo.load(name, "DEFAULT", 0)
    model, preprocessing = classifier.model.double(), classifier.preprocessing
    picture = preprocessing.picture(reading.default_picture())
    x = preprocessing.input(picture, torch.float64)[..., ::step, ::step]
    target = int(model(x).argmax())
    return model, x, target, preprocessing.low.double(), preprocessing.high.double()


NETWORKS = {
    "AlexNet": partial(randomly, torchvision.models.alexnet),
    "VGG16": partial(randomly, partial(narrow, torchvision.models.vgg16)),
    "VGG16-BN": partial(randomly, partial(narrow, torchvision.models.vgg16_bn)),
    "ResNet-18": partial(randomly, torchvision.models.resnet18),
    "SqueezeNet 1.1, ImageNet weights": partial(really, zoo.CAFFE_SQUEEZENET),
    "EfficientNet-Lite0, ImageNet weights": partial(really, zoo.LITE0, step=2),
}
NUMBERS = {difference.name: str(number) for number, difference in enumerate(KNOWN, 1)}


def cell(compared: Comparison) -> str:
    """A comparison in a few letters."""
    size = compared.overall.relative_l2
    if compared.verdict == "reference not finite":
        return "not finite"
    if compared.verdict == "known difference":
        numbers = ", ".join(NUMBERS[difference.name] for difference in compared.differences)
        return f"{size:.0e} ({numbers})"
    word = {"equal": "", "rounding": "*rounding* "}.get(compared.verdict, "**different** ")
    return f"{word}{size:.0e}"


def row(network: tuple, spec: Spec) -> Iterator[str]:
    """One rule or preset against each reference."""
    model, x, target, low, high = network
    for reference in REFERENCES:
        begun = time.monotonic()
        dtype = torch.float32 if reference == "float64" else torch.float64
        try:
            text = cell(compare(model.to(dtype), x.to(dtype), target, spec(low, high), reference))
        except LRPError as error:
            print(f"{reference}: {error}", file=sys.stderr)
            text = f"refused: {type(error.__cause__ or error).__name__}"
        print(f"  {reference} {text} {time.monotonic() - begun:.0f} s", file=sys.stderr)
        yield text


def main(names: list[str]) -> None:
    """Print the page."""
    print("# Parity\n")
    print(__doc__.splitlines()[0].partition(":")[0], end=".\n\n")
    print(
        "Made by `python -m tests.helpers.parity > docs/parity.md`, in float64, and in float32 for "
        "what is "
        "compared with float64. Each cell is the relative L2 difference of the relevance of the "
        "inputs. A number alone: equal, or *rounding* where it says so. In brackets: the known "
        "differences that explain it, by the list below; once they are removed from one side the "
        f"two agree. Random weights and a random picture of {SIDE} px where nothing is said; the "
        "VGGs have 256 units in their classifiers, EfficientNet-Lite0 sees a photograph of 112 px."
        "\n\n"
        "*Not finite*: the reference has NaN or Inf, as where LRP-0 divides 0 by 0 at average "
        "pools. **Different**: alpha-beta in the form that rewrites the forward pass; where all "
        "contributions to a neuron have one sign, that form multiplies its value by alpha.\n"
    )
    packages = ("torch", "captum", "zennit")
    versions = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"Versions: {', '.join(versions)}.\n")
    for name in names:
        network = NETWORKS[name]()
        print(f"## {name}\n")
        print(f"| | {' | '.join(f'`{reference}`' for reference in REFERENCES)} |")
        print("|---" * (len(REFERENCES) + 1) + "|")
        for spec, make in RULES.items():
            print(name, spec, file=sys.stderr)
            print(f"| {spec} | {' | '.join(row(network, make))} |", flush=True)
        print()
    print("## Known differences\n")
    for difference in KNOWN:
        print(f"{NUMBERS[difference.name]}. {difference.name}: {difference.meaning}.")


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
