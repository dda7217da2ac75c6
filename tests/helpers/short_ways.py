"""Attribution with its short ways, and by the rules' formulas: networks, rules and how to judge."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, LayerLRP, stabilizers
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.kernel import Group, Part, Term
from tests.helpers.networks import build

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}
ROWS = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PLENTY = 10**8


class Steps(nn.Module):
    """A layer, a step that is given, a layer."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self, self.first(x)))


class Normed(nn.Module):
    """A convolution, its batch norm, pools, and a head."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace)
        self.second, self.again = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.again(self.second(x)) + x)
        return self.head(self.pool(x).flatten(1))


def steps(step: Callable[[nn.Module, Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Any:
    """A network around a step."""
    return build(lambda: Steps(step), dtype=dtype)


def everywhere(rule: type[Rule], *layers: str, **parameters: Any) -> list[Any]:
    """A name_map with one rule."""
    return [(list(layers or ("first", "inner", "last")), rule, parameters)]


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance, 0 where both are 0."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=torch.finfo(torch.float64).tiny))


def both(model: nn.Module, rules: Any, x: Any, target: Any = 1, **options: Any) -> tuple[Any, Any]:
    """What LRP gives with its short ways, and without them."""
    options = {"fallbacks": "ignore", **options}
    short = LRP(model, rules, **options).attribute(x, target)
    return short, LRP(model, rules, optimize=False, cache_bytes=0, **options).attribute(x, target)


def assert_agree(model: nn.Module, rules: Any, x: Tensor, target: Any = 1) -> None:
    """Assert that the short ways give the same, and something."""
    short, long = both(model, rules, x, target)
    assert long.norm() > 0
    assert short.stride() == long.stride()
    assert distance(short, long) <= TOLERANCE[x.dtype]


def assert_layers_agree(model: nn.Module, rules: Any, x: Tensor, names: list[str]) -> None:
    """Assert the same of what comes in and goes out of each layer, and that looking is harmless."""
    for at_input in (False, True):
        found = [
            LayerLRP(model, names, rules, fallbacks="ignore", optimize=optimize).attribute(
                x, 1, attribute_to_layer_input=at_input
            )
            for optimize in (True, False)
        ]
        for name, short, long in zip(names, *found, strict=True):
            assert distance(short, long) <= TOLERANCE[x.dtype], (name, at_input)
        assert any(long.norm() > 0 for long in found[1])


# rules and stabilizers as a user writes them ---------------------------------------------------


class MeanStabilizer(stabilizers.Stabilizer):
    """Adds a share of the mean over the whole tensor."""

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return z + 0.5 * z.abs().mean()


class Doubling(stabilizers.Stabilizer):
    """An element-wise one."""

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return torch.where(z < 0, 2 * z - 0.1, 2 * z + 0.1)


class OwnStabilize(GammaRule):
    def stabilize(self, z: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
        return z + 0.5 * z.abs().mean()


class OwnGroups(EpsilonRule):
    """Positive contributions alone, written without ``one_sign``."""

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        w = op.weight
        terms = (
            Term(w.clamp(min=0), None, Part.POSITIVE),
            Term(w.clamp(max=0), None, Part.NEGATIVE),
        )
        return (Group(terms, share=0.5), Group((Term(w, op.bias),), share=0.5))


class OwnCoefficient(EpsilonRule):
    """Looks at all of z at once."""

    def coefficient(self, op: Affine, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return op.vjp(c * z / z.abs().sum(), x, op.weight)


class OwnMessages(EpsilonRule):
    """Looks at all of z at once."""

    def messages(self, op: Affine, x: Tensor, z: Tensor, carried: Tensor, division: Any) -> Any:
        return super().messages(op, x, z - z.mean(), carried, division)


class BySign(Rule):
    """A group for the positive and one for the negative inputs."""

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        return (
            Group((Term(op.weight.clamp(min=0), None, Part.POSITIVE),)),
            Group((Term(op.weight.clamp(max=0), None, Part.NEGATIVE),)),
        )


class Favouring(Rule):
    """All inputs, and the positive ones once more, in one group."""

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        up = Term(op.weight.clamp(min=0), None, Part.POSITIVE)
        return (Group((Term(op.weight, op.bias), up)),)


class ScaledBox(Rule):
    """A rule with a constant, and a parameter that its weights depend on."""

    proportional = False

    def __init__(self, k: float = 1.0, stabilizer: Any = 1e-3) -> None:
        super().__init__(stabilizer)
        self.k = k

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        low = torch.tensor(-3.0).to(x).expand(1, *x.shape[1:])
        down = Term(self.k * op.weight.clamp(min=0), None, constant=low, sign=-1.0)
        return (Group((Term(op.weight, None), down)),)


STABILIZERS: dict[str, Any] = {
    "number": 0.1,
    "0": 0.0,
    "identity": stabilizers.Identity(),
    "relative": stabilizers.Signed(0.1, relative=True),
    "clip": stabilizers.Clip(0.1),
    "additive": stabilizers.Additive(0.1),
    "mean square": stabilizers.RootMeanSquare(0.1),
    "mean square of the batch": stabilizers.RootMeanSquare(0.1, per_sample=False),
    "rounding": stabilizers.RoundingAware(),
    "callable": lambda z: z + 0.3 * z.sign(),
    "subclass": Doubling(),
}
