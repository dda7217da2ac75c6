"""``attribute_many`` from inside: one forward pass, what is shared, and what stays behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    ZBoxRule,
    presets,
    stabilizers,
)
from captum_lrp_stab.dispatch.layer_use import Turn
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.fast import coefficients
from captum_lrp_stab.fast.factor_cache import Memo
from captum_lrp_stab.propagation import attribution
from captum_lrp_stab.rules.kernel import Part, Term
from tests.helpers.networks import Residual, build, cnn
from tests.helpers.several import assert_as_one_by_one, forwards

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
VECTORS = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
BOX = (-6.0, 6.0)
GAMMA = [(["3", "6"], GammaRule, {})]
SHARED = [presets.epsilon(0.1), presets.epsilon_gamma_box(*BOX), presets.epsilon_alpha2_beta1()]


# one forward pass --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "targets", "passes"),
    [
        ({}, [0], 1),
        ({}, [0, 1, 2, 3], 1),
        ({"rules": SHARED}, [0, 1], 1),
        ({"stabilizers": [1e-3, stabilizers.Clip(0.1)]}, [0, 1], 1),
        ({"rules": SHARED, "internal_batch_size": 1}, [0, 1], 2 + 1),
        ({"rules": [*SHARED, [(["last"], FlatRule, {})]]}, [0, 1], 1 + 3 + 2),
    ],
)
def test_how_often_the_model_runs(given, targets, passes) -> None:
    model = build(lambda: Residual(inplace=True))
    assert forwards(model, lambda: LRP(model).attribute_many(IMAGES, targets, **given)) == passes


def test_the_model_runs_for_each_attribute() -> None:
    """Negative control of the above."""
    model = build(Residual)
    assert forwards(model, lambda: [LRP(model).attribute(IMAGES, t) for t in (0, 1, 2)]) == 3


# planted faults ----------------------------------------------------------------------------------


def test_finds_a_variant_that_is_always_the_first(monkeypatch) -> None:
    monkeypatch.setattr(Turn, "variant", property(lambda self: 0, lambda self, value: None))
    assert_as_one_by_one(build(cnn), IMAGES, [0, 1], rules=SHARED[:1])
    with pytest.raises(AssertionError):
        assert_as_one_by_one(build(cnn), IMAGES, [0, 1], rules=SHARED)
    with pytest.raises(AssertionError):
        own = presets.epsilon()
        assert_as_one_by_one(build(cnn), IMAGES, [0], own=own, stabilizers=[1e-2, 1.0])


@pytest.mark.parametrize("given", [{"own": SHARED[2]}, {"rules": SHARED}])
def test_finds_a_memo_that_gives_another_tensor(monkeypatch, given) -> None:
    assert_as_one_by_one(build(cnn), IMAGES, [0, 1], **given)
    monkeypatch.setattr(coefficients._Layer, "_place", lambda self, memo, what: ("one for all",))
    with pytest.raises(AssertionError):
        assert_as_one_by_one(build(cnn), IMAGES, [0, 1], **given)


@pytest.mark.parametrize("given", [{"own": SHARED[0]}, {"own": GAMMA}, {"rules": [GAMMA] * 2}])
def test_finds_a_memo_of_which_something_is_written_over(monkeypatch, given) -> None:
    assert_as_one_by_one(build(cnn), IMAGES, [0, 1], **given)
    keep = Memo.keep

    def worn(self, key, value):
        keep(self, key, value)
        self.kept[key] = value * 1.5  # to the next pass; this one has its own

    monkeypatch.setattr(Memo, "keep", worn)
    with pytest.raises(AssertionError):
        assert_as_one_by_one(build(cnn), IMAGES, [0, 1], **given)


def test_finds_a_target_that_is_always_the_first(monkeypatch) -> None:
    score_of, seen = attribution.score_of, []

    def first(output, target):
        seen.append(target)
        return score_of(output, seen[0])

    with monkeypatch.context() as patch:
        patch.setattr(attribution, "score_of", first)
        found = LRP(build(cnn)).attribute_many(IMAGES, [0, 1])
    assert torch.equal(*found)
    assert not torch.equal(*LRP(build(cnn)).attribute_many(IMAGES, [0, 1]))


# what a layer keeps for other passes -------------------------------------------------------------


class Rectified(nn.Module):
    """A layer that one output reads behind its ReLU, and another one as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        y = F.relu(h)
        return torch.stack([y.sum(1), h.sum(1)], 1)


class BesideItsBatchNorm(nn.Module):
    """A convolution that is read with and without its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.last((F.relu(self.norm(h)) + F.leaky_relu(h)).mean((2, 3)))


@pytest.mark.parametrize(
    "own",
    [
        [(["layer"], EpsilonRule, {"epsilon": 0.1})],
        [(["layer"], AlphaBetaRule, {})],
        [(["layer"], GammaRule, {})],
        presets.zero(),
    ],
)
def test_a_layer_that_one_target_reads_behind_its_relu(own) -> None:
    assert_as_one_by_one(build(Rectified), VECTORS, [1, 0], own=own)
    assert_as_one_by_one(build(Rectified), VECTORS, [0, 1], own=own)


@pytest.mark.parametrize("targets", [[0, 1], [0, 1, 1]])
@pytest.mark.parametrize("rules", SHARED, ids=lambda preset: preset.name)
def test_a_layer_that_is_read_with_and_without_its_batch_norm(rules, targets) -> None:
    model = build(BesideItsBatchNorm)
    if rules.name == "epsilon_gamma_box":  # whose zB needs no memo: gamma instead
        rules = [(["conv"], GammaRule, {})]
    assert_as_one_by_one(model, IMAGES, targets, own=rules)


@pytest.mark.parametrize(
    "rules",
    [[(["conv"], GammaRule, {})], presets.epsilon_alpha2_beta1(), presets.epsilon_plus()],
)
def test_the_same_with_several_rules(rules) -> None:
    assert_as_one_by_one(build(BesideItsBatchNorm), IMAGES, [0], rules=[presets.zero(), rules])


def test_the_same_without_a_memo_and_unmerged() -> None:
    """Negative control: it is the memo."""
    for options in ({"optimize": False}, {"merge_batch_norm": False}):
        assert_as_one_by_one(
            build(BesideItsBatchNorm), IMAGES, [0, 1], rules=SHARED, tolerance=1e-13, **options
        )


class Doubled(GammaRule):
    """A user's rule with a parameter its constructor does not have."""

    factor = 2.0

    def groups(self, op, x):
        return tuple(g._replace(share=g.share * self.factor) for g in super().groups(op, x))


class Tripled(Doubled):
    factor = 3.0

    def groups(self, op, x):
        up = op.weight + self.factor * op.weight.clamp(min=0)
        down = op.weight + self.factor * op.weight.clamp(max=0)
        term = Term(up, op.bias, Part.POSITIVE), Term(down, None, Part.NEGATIVE)
        return (super().groups(op, x)[0]._replace(terms=term),)


def test_rules_of_a_users_own_have_a_memo_each() -> None:
    rules = [[(["3", "6"], rule, {})] for rule in (GammaRule, Doubled, Tripled, Doubled)]
    assert_as_one_by_one(build(cnn), IMAGES, [0, 1], rules=rules)


class Stretched(ZBoxRule):
    """A user's own zB rule, with other weights but the same constants."""

    def __init__(self, low, high, factor, stabilizer=1e-6) -> None:
        super().__init__(low, high, stabilizer)
        self.factor = factor

    def groups(self, op, x):
        (group,) = super().groups(op, x)
        own, low, high = group.terms
        return (group._replace(terms=(own, low._replace(weights=self.factor * low.weight), high)),)


def test_direct_rules_of_a_users_own_with_the_same_constants() -> None:
    rules = [
        [(["0"], Stretched, {"low": -6.0, "high": 6.0, "factor": factor})] for factor in (1.0, 2.0)
    ]
    assert_as_one_by_one(build(cnn), IMAGES, [0], rules=rules, cache_bytes=2**20)


class Block(nn.Module):
    """A module with a functional layer, which a rule on the module gives another name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@pytest.mark.parametrize(
    "other", [presets.epsilon(0.25), [(["2.linear_0"], EpsilonRule, {"epsilon": 0.5})]]
)
def test_a_rule_on_a_module_with_a_functional_layer_in_one_variant_only(other) -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block()))
    assert_as_one_by_one(model, VECTORS, [0], rules=[[(["2"], GammaRule, {})], other])


def test_an_error_below_a_direct_rule_names_it() -> None:
    class Odd(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.cos(self[0](x)))

    model = build(lambda: Odd(nn.Linear(4, 4), nn.Linear(4, 2)))
    rules = [[(["1"], EpsilonRule, {})], [(["1"], FlatRule, {})]]
    with pytest.raises(RuleError, match="FlatRule on layer '1'"):
        LRP(model).attribute_many(VECTORS, [0], rules=rules)
