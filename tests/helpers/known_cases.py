"""Networks and rules that the tests of known differences and of rounding share."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import zennit.types
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, compare
from captum_lrp_stab.comparison import Comparison
from captum_lrp_stab.presets import Preset
from tests.helpers.faults import faulty, images, normed, scaled_by
from tests.helpers.networks import build

TARGET = 1


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


IMAGES = images(0)


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


STACK = ("0", "2", "4")


CONVOLUTIONS = ("0", "3", "7")  # of `pooled` and `normed`, and the linear layer


class Skip(nn.Module):
    """One residual connection, added by ``add`` or by ``+``."""

    def __init__(self, add: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.first, self.second, self.add = nn.ReLU(), nn.ReLU(), add

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.a(x))
        y = self.b(x)
        return self.c(self.second(y + x if self.add is None else self.add(y, x)))


def exact_norms(model: nn.Module) -> nn.Module:
    """A copy whose batch norms have no eps."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return model


@dataclass(frozen=True)
class Case:
    """A comparison, the differences in it, and how the user gets rid of them."""

    names: tuple[str, ...]
    model: nn.Module
    inputs: Tensor
    rules: Any
    reference: Any
    #: What to change, and what is left then.
    without: tuple[tuple[dict[str, Any], tuple[str, ...]], ...]
    layer: str  # where a fault is put
    fault: type = field(default_factory=lambda: scaled_by(0.5))  # one the reference has no part in
    options: dict[str, Any] = field(default_factory=dict)

    def compared(self) -> Comparison:
        return compare(self.model, self.inputs, TARGET, self.rules, self.reference, **self.options)

    def broken(self) -> "Case":
        given = self.rules
        if isinstance(given, Preset):
            given = given(self.model, self.inputs)
        return replace(self, rules=faulty(given, {self.layer: self.fault}))

    def in_float32(self) -> "Case":
        model, reference = copy.deepcopy(self.model).float(), copy.copy(self.reference)
        if isinstance(reference, LRP):
            reference.model = model
        return replace(self, model=model, inputs=self.inputs.float(), reference=reference)


def rules(names: tuple[str, ...], rule: type, **parameters: Any) -> list[Any]:
    return [(list(names), rule, parameters)]


GAMMA = "gamma's bias"


DOUBLED = "doubled at a functional addition"


MERGED = "eps of merged batch norms"


APART = "batch norm as a layer of its own"


DEFAULTS = "Captum's epsilon where there is no rule"


def signed(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def by_hand(
    denominators: Callable[[Tensor, Tensor], Tensor], model: nn.Module, x: Tensor, target: int
) -> Tensor:
    """LRP of linear layers and ReLUs, from all contributions: nothing of the package.

    ``denominators`` makes them of the sums over the inputs, and the bias.
    """
    values = [x]
    for layer in model:
        values.append(layer(values[-1]))
    R = torch.zeros_like(values[-1])
    R[:, target] = values.pop()[:, target]
    for layer, value in zip(reversed(model), reversed(values), strict=True):
        if isinstance(layer, nn.Linear):
            contributions = value[:, None, :] * layer.weight  # (N, out, in)
            shares = R / denominators(contributions.sum(2), layer.bias)
            R = (contributions * shares[:, :, None]).sum(1)
    return R.detach()


right = partial(by_hand, lambda s, b: signed(s + b, 0.1))


MERGE = zennit.canonizers.SequentialMergeBatchNorm


def epsilon_in_zennit() -> Any:
    """The epsilon rule, as zennit's documentation would have it for a network with batch norm."""
    table = [
        (zennit.types.Activation, zennit.rules.Pass()),
        (zennit.types.BatchNorm, zennit.rules.Pass()),
        (zennit.types.Linear, zennit.rules.Epsilon(1e-6)),
    ]
    return zennit.composites.LayerMapComposite(table, canonizers=[MERGE()])


def merged_in_zennit() -> Case:
    model = build(normed, 1)
    without = {"model": exact_norms(model)}
    given = rules(CONVOLUTIONS, EpsilonRule)
    return Case((MERGED,), model, IMAGES, given, epsilon_in_zennit(), ((without, ()),), "7")


def assert_known(comparison: Comparison, names: tuple[str, ...]) -> None:
    assert comparison.verdict == ("known difference" if names else "equal"), str(comparison)
    assert sorted(d.name for d in comparison.differences) == sorted(names)
    assert all(name in comparison.explanation for name in names)
