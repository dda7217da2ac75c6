"""Networks, and rules that are broken on purpose."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZPlusRule,
    compare,
)
from captum_lrp_stab.comparison import Comparison
from captum_lrp_stab.comparison.zennit_reference import composite_of
from captum_lrp_stab.propagation.attribution import operations_of
from captum_lrp_stab.rules.base import Rule
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

TARGET = 1


EFFECT = 1e-3  # what a planted fault changes at least: more than any tolerance


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 4),
    )


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 8),
        nn.ReLU(),
        nn.Linear(8, 7, bias=False),
        nn.ReLU(),
        nn.Linear(7, 6),
        nn.GELU(),
        nn.Linear(6, 4),
    )


class Residual(nn.Module):
    """Additions that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.side, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.body(x) + x)
        x = F.relu(F.max_pool2d(x, 2))
        x = self.side(x) + 0.5 * x
        return self.head(x.mean((2, 3)))


class Blocks(nn.Module):
    """Residual blocks that zennit has canonizers for."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
        self.relu, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.stem(x)))
        return self.head(torch.flatten(self.pool(x), 1))


class Reused(nn.Module):
    """One layer at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.first(x))))
        x = F.relu(self.shared(F.max_pool2d(x, 2)))
        return self.last(x.mean((2, 3)))


class Functional(nn.Module):
    """Layers that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.third, self.fourth = nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first.weight, self.first.bias))
        x = F.relu(F.conv2d(x, self.second.weight, self.second.bias, stride=2)).flatten(1)
        x = F.relu(F.linear(x, self.third.weight, self.third.bias))
        return F.linear(x, self.fourth.weight, self.fourth.bias)


@dataclass(frozen=True)
class Network:
    """How to make a network, and its layers with a rule in order of execution."""

    make: Callable[[], nn.Module]
    layers: tuple[str, ...]
    in_zennit: bool = False  # whether zennit serves it
    uses: tuple[tuple[str, str], ...] = ()  # what the last use of a layer is called, if not so


NETWORKS = {
    "pools": Network(pooled, ("0", "3", "7"), True),
    "batch norm": Network(normed, ("0", "3", "7"), True),
    "dense": Network(dense, ("1", "3", "5", "7"), True),
    "residual": Network(Residual, ("stem", "body", "side", "head")),
    "blocks": Network(
        Blocks,
        ("stem", *(f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2)), "head"),
        True,
    ),
    "reused": Network(Reused, ("first", "shared", "last"), uses=(("shared", "shared[1]"),)),
    "functional": Network(Functional, ("conv2d_0", "conv2d_1", "linear_0", "linear_1")),
}


def made(name: str, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with random parameters, and batch norms without the eps zennit counts twice."""
    model = build(NETWORKS[name].make, seed, dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return model


def images(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
    return x.clamp(LOW / 2, HIGH / 2).to(dtype)


def last_use(name: str, layer: str) -> str:
    """What a layer is called where the backward pass meets it first."""
    return dict(NETWORKS[name].uses).get(layer, layer)


LOW, HIGH = -4.0, 4.0


Choice = tuple[type[Rule], dict[str, Any]]


NameMap = list[tuple[list[str], type[Rule], dict[str, Any]]]


RULES: list[Choice] = [
    (EpsilonRule, {"epsilon": 1e-6}),
    (EpsilonRule, {"epsilon": 0.1}),
    (GammaRule, {"gamma": 0.25}),
    (ZPlusRule, {}),
    (AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}),
]


FIRST: list[Choice] = [
    (ZBoxRule, {"low": LOW, "high": HIGH}),
    (WSquareRule, {}),
    (FlatRule, {}),
]


class Changed:
    """A rule whose formula has other terms, in either form."""

    def groups(self, op, x):
        return tuple(
            group._replace(terms=tuple(map(self.changed, group.terms)))
            for group in super().groups(op, x)
        )


class ScaledWeights(Changed):
    """The weights of half of the input channels are too large."""

    by = 0.0

    def changed(self, term):
        weight = term.weight.clone()
        weight[:, : (weight.shape[1] + 1) // 2] *= 1 + self.by
        return term._replace(weights=weight)


class DroppedBias(Changed):
    """The bias is missing in the denominators."""

    def changed(self, term):
        return term._replace(bias=None)


class NegatedWeights(Changed):
    """The weights have the wrong sign, the bias has not."""

    def changed(self, term):
        return term._replace(weights=-term.weight)


class InRelevanceForm:
    """What the layer propagates has the wrong sign, in relevance form only."""

    def relevance(self, op, x, z, R, protected=False):
        return -super().relevance(op, x, z, R, protected)


class InGradientForm:
    """The same in gradient form only."""

    def coefficient(self, op, x, z, c):
        return -super().coefficient(op, x, z, c)


class NegatedRelevance(InRelevanceForm, InGradientForm):
    """What the layer propagates has the wrong sign, in either form."""


def scaled_by(by: float) -> type:
    return type("ScaledWeights", (ScaledWeights,), {"by": by})


FAULTS: dict[str, type] = {
    "weights half as large again": scaled_by(0.5),
    "weights 1% too large": scaled_by(0.01),
    "no bias": DroppedBias,
    "sign of the weights": NegatedWeights,
    "sign of the relevance": NegatedRelevance,
}


def with_fault(rule: type[Rule], fault: type) -> type[Rule]:
    return type(f"{fault.__name__}{rule.__name__}", (fault, rule), {})


def faulty(rules: NameMap, faults: dict[str, type]) -> NameMap:
    """The rules with faults, by layer."""
    return [
        ([name], with_fault(rule, faults[name]) if name in faults else rule, parameters)
        for names, rule, parameters in rules
        for name in names
    ]


@dataclass(frozen=True)
class Planting:
    """A network, its right rules, and which layer gets which fault."""

    network: str
    model: nn.Module
    inputs: Tensor
    rules: NameMap
    layer: str = ""
    fault: str = ""

    @property
    def broken(self) -> NameMap:
        """The rules with the fault."""
        return self.with_faults({self.layer: FAULTS[self.fault]})

    def with_faults(self, faults: dict[str, type]) -> NameMap:
        """The rules with other faults, by layer."""
        return faulty(self.rules, faults)

    def effect(self, rules: NameMap) -> float:
        """How much other rules change the relevance."""
        right, other = (
            LRP(self.model, r).attribute(self.inputs, TARGET) for r in (self.rules, rules)
        )
        return relative_error(other, right)

    def compared(self, rules: NameMap, reference: Any) -> Comparison:
        return compare(self.model, self.inputs, TARGET, rules, reference)

    def references(self) -> list[Any]:
        """The right rules: this package's, and zennit's where it serves the network."""
        ours = LRP(self.model, self.rules)
        if not NETWORKS[self.network].in_zennit:
            return [ours]
        operations = operations_of(self.model, self.inputs, None, ours.current_rules())
        return [ours, composite_of(self.model, operations)]


def random_rules(layers: tuple[str, ...], chance: random.Random) -> NameMap:
    first, *others = layers
    chosen = {first: chance.choice(RULES + FIRST)} | {n: chance.choice(RULES) for n in others}
    return [([name], rule, parameters) for name, (rule, parameters) in chosen.items()]


def effective(
    places: Sequence[tuple[str, str]], chance: random.Random, planting: Planting
) -> tuple[str, str]:
    """The first (layer, fault) in a random order that changes the relevance.

    Some change nothing: a layer may have no bias, and the sign of all weights may cancel out.
    """
    for layer, fault in chance.sample(places, len(places)):
        if planting.effect(planting.with_faults({layer: FAULTS[fault]})) > EFFECT:
            return layer, fault
    raise AssertionError("no fault changes anything")


@cache
def planted(seed: int) -> Planting:
    """The network, the rules and the fault of a seed."""
    chance = random.Random(seed)
    name = chance.choice(list(NETWORKS))
    layers = NETWORKS[name].layers
    dtype = torch.float32 if seed % 4 == 0 else torch.float64
    rules = random_rules(layers, chance)
    planting = Planting(name, made(name, seed, dtype), images(seed, dtype), rules)
    layer, fault = effective(list(itertools.product(layers, FAULTS)), chance, planting)
    return replace(planting, layer=layer, fault=fault)


def assert_located(comparison: Comparison, name: str, direction: str = "backward") -> None:
    assert comparison.verdict == "different", str(comparison)
    first = comparison.first
    assert first is not None
    assert (first.name, first.direction) == (name, direction), str(comparison)
    assert first.candidates == (name,)
    assert f"'{name}'" in comparison.explanation
