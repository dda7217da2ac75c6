"""The contract of rules and stabilizers: ours keep it, and each way to break it is told."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    PassRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    stabilizers,
)
from captum_lrp_stab.errors import InputError, StabilizerError
from captum_lrp_stab.rules.standard import Group, Part, Rule, Term
from captum_lrp_stab.testing import assert_rule_contract, assert_stabilizer_contract, contract

pytestmark = pytest.mark.usefixtures("one_thread")

CONSERVING = [
    ZeroRule(),
    ZeroRule(stabilizers.Clip(1e-3)),
    EpsilonRule(0.0),
    GammaRule(),
    GammaRule(0.0),
    GammaRule(bias="captum"),
    AlphaBetaRule(),
    AlphaBetaRule(1, 0),
    ZPlusRule(),
    ZBoxRule(-1.0, 1.0),
    WSquareRule(),
    FlatRule(),
]


@pytest.mark.parametrize("rule", CONSERVING, ids=repr)
def test_our_rules_keep_it(rule: Rule) -> None:
    assert_rule_contract(rule)


@pytest.mark.parametrize("signed", [True, False])
def test_epsilon_absorbs(signed: bool) -> None:
    rule = EpsilonRule(0.5, signed)
    assert_rule_contract(rule, conserves=False)
    with pytest.raises(AssertionError, match="conserves=False"):
        assert_rule_contract(rule)


@pytest.mark.parametrize(
    "s",
    [
        1e-6,
        stabilizers.Signed(1e-3, relative=True),
        stabilizers.Clip(0.1),
        stabilizers.RootMeanSquare(0.1),
        stabilizers.RoundingAware(4),
        stabilizers.Additive(0.25),
    ],
    ids=repr,
)
def test_our_stabilizers_keep_it(s: Any) -> None:
    assert_stabilizer_contract(s)


def test_those_that_are_for_comparison_say_so() -> None:
    batch = stabilizers.RootMeanSquare(0.1, per_sample=False)
    with pytest.raises(AssertionError, match="per_sample=False"):
        assert_stabilizer_contract(batch)
    assert_stabilizer_contract(batch, per_sample=False)
    with pytest.raises(AssertionError, match="protects=False"):
        assert_stabilizer_contract(stabilizers.Identity())
    assert_stabilizer_contract(stabilizers.Identity(), protects=False)


class Absolute(Rule):
    """A user's own rule: contributions by the absolute values of the weights."""

    def groups(self, op, x):
        w = op.weight.abs()
        return (
            Group((Term(w, None, Part.POSITIVE),), 0.5),
            Group((Term(-w, None, Part.NEGATIVE),), 0.5),
        )


def test_a_rule_of_ones_own_keeps_it() -> None:
    assert_rule_contract(Absolute(stabilizers.Clip(1e-6)))


class Shape(ZeroRule):
    def relevance(self, op, x, z, R, protected=False):
        return super().relevance(op, x, z, R, protected)[..., :1]


class Empty(ZeroRule):
    def relevance(self, op, x, z, R, protected=False):
        return super().relevance(op, x, z, R, protected) * 0


class Poles(ZeroRule):
    def relevance(self, op, x, z, R, protected=False):
        return super().relevance(op, x, z, R, protected) / 0


class Squared(ZeroRule):
    def relevance(self, op, x, z, R, protected=False):
        return super().relevance(op, x, z, R * R.abs(), protected)


class Batch(Rule):
    def groups(self, op, x):
        return (Group((Term(op.weight * (1 + x.abs().max()), op.bias),)),)


class Halves(ZeroRule):
    def coefficient(self, op, x, z, c):
        return super().coefficient(op, x, z, c) / 2


class Both(ZeroRule):
    """Wrong in the same way in both forms, not in the drivers' own short ways."""

    def relevance(self, op, x, z, R, protected=False):
        return super().relevance(op, x, z, R, protected) / 2

    def coefficient(self, op, x, z, c):
        return super().coefficient(op, x, z, c) / 2


class Writes(ZeroRule):
    def groups(self, op, x):
        op.weight.mul_(1 + 1e-3)
        return super().groups(op, x)


class Changes(ZeroRule):
    def groups(self, op, x):
        x.clamp_(min=0)
        return super().groups(op, x)


class Remembers(ZeroRule):
    def groups(self, op, x):
        self.last = x
        return super().groups(op, x)


class Drifts(ZeroRule):
    def groups(self, op, x):
        Drifts.calls = getattr(Drifts, "calls", 0) + 1
        return (Group((Term(op.weight * Drifts.calls, op.bias),)),)


class Deaf(ZeroRule):
    def stabilize(self, z, magnitude):
        return z + 1e-6


class Loses(Rule):
    def groups(self, op, x):
        return (Group((Term(op.weight, op.bias),), 0.5),)


class Hidden(Rule):
    def __init__(self, factor=2.0, stabilizer=1e-6):
        super().__init__(stabilizer)
        self._factor = factor

    def groups(self, op, x):
        return (Group((Term(op.weight * self._factor, op.bias),)),)


class Renamed(Rule):
    def __init__(self, factor=2.0, stabilizer=1e-6):
        super().__init__(stabilizer)
        self.factor = factor + 1

    def groups(self, op, x):
        return (Group((Term(op.weight * self.factor, op.bias),)),)


BROKEN = {
    Shape: "for an input of",
    Empty: "all relevance is 0",
    Poles: "NaN or Inf",
    Squared: "not linear",
    Batch: "alone than in its batch",
    Halves: "the two forms differ",
    Writes: "weight has changed",
    Changes: "has changed",
    Remembers: "it now has last",
    Drifts: "another result",
    Deaf: "does not use its stabilizer",
    Loses: "sum of relevance changes",
    Hidden: "attribute of the same name",
    Renamed: "made again",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_each_breach_is_told(broken: type[Rule]) -> None:
    with pytest.raises(AssertionError, match=BROKEN[broken]) as told:
        assert_rule_contract(broken())
    assert broken.__name__ in str(told.value)


def test_a_rule_that_the_drivers_do_not_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula is asked directly, so a driver that does something else is found."""
    assert_rule_contract(Both(), conserves=False)  # both drivers take the overridden methods
    attribute = contract.LRP.attribute
    monkeypatch.setattr(
        contract.LRP, "attribute", lambda *args, **kw: attribute(*args, **kw) * (1 + 1e-6)
    )
    with pytest.raises(AssertionError, match=r"captum_lrp_stab\.LRP differs"):
        assert_rule_contract(ZeroRule(1e-6))


class Counts(ZeroRule):
    def __init__(self, stabilizer=1e-6):
        super().__init__(stabilizer)
        self.calls, self.known, self.scale = 0, {}, torch.ones(1).double()

    def groups(self, op, x):
        self.count(op)
        return super().groups(op, x)


KEEPING = {
    "a number": (lambda rule, op: setattr(rule, "calls", rule.calls + 1), "rule's calls"),
    "a dict": (lambda rule, op: rule.known.setdefault(id(op), op.weight), "rule's known"),
    "a tensor": (lambda rule, op: rule.scale.add_(1), "rule's scale"),
}


@pytest.mark.parametrize(("count", "message"), KEEPING.values(), ids=KEEPING)
def test_a_rule_that_keeps_something_between_calls(count: Any, message: str) -> None:
    kind = type("Keeps", (Counts,), {"count": count})
    with pytest.raises(AssertionError, match=message):
        assert_rule_contract(kind())
    assert_rule_contract(type("Keeps", (Counts,), {"count": lambda rule, op: None})())


class Positional(ZeroRule):
    def __init__(self, *arguments):
        super().__init__(1e-6)


class Wide(Rule):
    def groups(self, op, x):
        return (Group((Term(op.weight * torch.ones(1, dtype=torch.float64), op.bias),)),)


def test_errors_of_a_rules_own_are_told_as_breaches() -> None:
    with pytest.raises(AssertionError, match="named arguments"):
        assert_rule_contract(Positional())
    with pytest.raises(AssertionError, match=r"fails in torch\.float16"):
        assert_rule_contract(Wide())


def test_conservation_is_looked_at_whatever_the_layers_are() -> None:
    class Doubles(Rule):
        def groups(self, op, x):
            return (Group((Term(op.weight, op.bias),), 2.0),)

    pair = nn.Linear(4, 3), torch.randn(2, 4)
    for given in ([pair], (p for p in [pair]), None):
        with pytest.raises(AssertionError, match="sum of relevance changes"):
            assert_rule_contract(Doubles(), given)
    assert pair[0].bias is not None
    with pytest.raises(InputError, match="there is no layer"):
        assert_rule_contract(ZeroRule(), [])


def test_what_is_not_finite_in_half_precision() -> None:
    class Tiny(ZeroRule):
        def stabilize(self, z, magnitude):
            return torch.where(z == 0, z, super().stabilize(z, magnitude)) * 1e-12

    case = next(iter(contract.cases(Tiny(stabilizers.Identity()), None)))
    with pytest.raises(AssertionError, match=r"NaN or Inf in torch\.float16"):
        contract.half_precision_is_finite(case)


def test_layers_of_ones_own() -> None:
    given = [(nn.Linear(3, 2, bias=False), torch.randn(2, 3))]
    assert_rule_contract(ZeroRule(1e-6), given)
    with pytest.raises(AssertionError, match="Linear"):
        assert_rule_contract(Loses(), given)
    before = given[0][0].weight.clone(), given[0][1].clone()
    assert torch.equal(before[0], given[0][0].weight) and torch.equal(before[1], given[0][1])
    assert given[0][0].weight.dtype == torch.float32
    with pytest.raises(AssertionError, match="no layer with a rule"):
        assert_rule_contract(ZeroRule(), [(nn.ReLU(), torch.ones(1, 2))])


def test_what_is_no_rule() -> None:
    for rule in ("epsilon", ZeroRule, 0.5):
        with pytest.raises(InputError, match="subclass of Rule"):
            assert_rule_contract(rule)
    with pytest.raises(AssertionError, match="for an input of"):
        assert_rule_contract(PassRule())  # it serves layers that keep the shape


@dataclass(frozen=True)
class Own(stabilizers.Stabilizer):
    """At least 1 in size."""

    moves_away_from_0 = True

    @property
    def is_elementwise(self) -> bool:
        return True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return torch.where(z < 0, -1.0, 1.0).to(z.dtype) * z.abs().clamp(min=1)


def test_a_stabilizer_of_ones_own_keeps_it() -> None:
    assert_stabilizer_contract(Own())


@dataclass(frozen=True)
class Nearer(Own):
    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return z + 0.5


@dataclass(frozen=True)
class Neighbours(Own):
    moves_away_from_0 = False

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return z.flip(-1) + 5


class Unequal(stabilizers.Stabilizer):
    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return z + 3


class Random(Unequal):
    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return z + torch.rand_like(z) + 1


STABILIZERS = {
    "in place": (lambda z: z.add_(1), "writes to its argument"),
    "float32": (lambda z: z.float() + 1, "torch.float16 it returns"),
    "a number": (lambda z: 1.0, "a float"),
    "flat": (lambda z: z.flatten() + 1, "it returns"),
    "random": (Random(), "a second call"),
    "underflow": (lambda z: z + 1e-9, "stays 0 in torch.float16"),
    "overflow": (lambda z: z + torch.exp(z.abs() * 50), "not finite"),
    "batch": (lambda z: z + z.abs().mean() + 10, "alone and in its batch"),
    "nearer": (Nearer(), "moves_away_from_0"),
    "neighbours": (Neighbours(), "is_elementwise"),
    "unequal": (Unequal(), "frozen dataclass"),
}


@pytest.mark.parametrize(("s", "message"), STABILIZERS.values(), ids=STABILIZERS)
def test_each_breach_of_a_stabilizer_is_told(s: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_stabilizer_contract(s)


@pytest.mark.parametrize("value", [-1.0, "signed", stabilizers.Signed])
def test_what_is_no_stabilizer(value: Any) -> None:
    with pytest.raises(StabilizerError):
        assert_stabilizer_contract(value)


def test_the_layers_are_the_same_at_each_call_and_randomness_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, second = contract.layers(), contract.layers()
    assert torch.equal(torch.get_rng_state(), state)
    for (one, x), (two, y) in zip(first, second, strict=True):
        assert torch.equal(x, y) and torch.equal(one.weight, two.weight)
