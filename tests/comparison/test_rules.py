"""``compare`` with rules on the modules, other stabilizers, and attention."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from zennit import rules as zennit

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    compare,
    presets,
    stabilizers,
)
from tests.helpers.attention import TOKENS, Attention, E
from tests.helpers.comparisons import (
    CHAINS,
    DIFFERENT,
    EXACT,
    HIGH,
    IMAGES,
    LOW,
    TARGET,
    VECTORS,
    assert_different,
    assert_equal,
    assert_rows,
    by_captum,
    by_us,
    by_zennit,
    dense,
    pictured,
    same,
    zennit_map,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import build
from tests.helpers.random_maps import drawn

# Rules on the modules ---------------------------------------------------------------------------


def with_rules(**rules: Any) -> nn.Module:
    model = build(dense)
    for name, rule in rules.items():
        model.get_submodule(name.removeprefix("_")).rule = rule
    return model


OURS = {"_0": ("0", GammaRule, {"gamma": 0.4}), "_4": ("4", EpsilonRule, {"epsilon": 0.1})}


NAME_MAP = [([name], rule, given) for name, rule, given in OURS.values()]


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "float64"])
def test_rules_set_on_the_modules(reference) -> None:
    model = with_rules(**{key: rule(**given) for key, (_, rule, given) in OURS.items()})
    rules = [model[0].rule, model[4].rule]
    comparison = compare(model, VECTORS, TARGET, None, reference)
    assert_equal(comparison)
    assert [model[0].rule, model[4].rule] == rules
    by_map = compare(build(dense), VECTORS, TARGET, NAME_MAP, reference)
    assert comparison.to_json() == by_map.to_json()
    assert comparison.to_json() != compare(build(dense), VECTORS, TARGET, None, reference).to_json()


def captums() -> dict[str, captum_rules.PropagationRule]:
    return {
        "0": captum_rules.GammaRule(0.3),
        "2": captum_rules.Alpha1_Beta0_Rule(),
        "4": captum_rules.EpsilonRule(0.05),
    }


@pytest.mark.parametrize("reference", ["captum", "captum_driver", "float64"])
def test_captums_rules_set_on_the_modules(reference) -> None:
    model = with_rules(**{f"_{name}": rule for name, rule in captums().items()})
    comparison = compare(model, VECTORS, TARGET, None, reference)
    assert_equal(comparison)
    expected = by_captum(build(dense), VECTORS, captums).relevance
    assert relative_error(comparison.reference_relevances[0], expected) <= EXACT
    assert comparison.layers[0].rule == "captum.GammaRule()"
    assert_different(compare(model, VECTORS, TARGET, None, LRP(build(dense))))


def test_rules_of_a_list_stand_before_those_on_the_modules() -> None:
    model = with_rules(_0=GammaRule(0.4))
    rules = presets.epsilon(0.1)
    expected = compare(build(dense), VECTORS, TARGET, rules, "captum_driver")
    found = compare(model, VECTORS, TARGET, rules, "captum_driver")
    assert_equal(found)
    assert found.to_json() == expected.to_json()


def test_a_rule_on_a_module_that_a_list_leaves_out_has_no_effect() -> None:
    rules = [(["0", "3", "7"], EpsilonRule, {"epsilon": 0.01})]
    model = build(pictured)
    model[5].rule = captum_rules.EpsilonRule(0.5)
    for reference in ("captum", "captum_driver", "zennit"):
        expected = compare(build(pictured), IMAGES, TARGET, rules, reference)
        assert compare(model, IMAGES, TARGET, rules, reference).to_json() == expected.to_json()
    set_on_it = compare(model, IMAGES, TARGET, None, "captum_driver")
    without = compare(build(pictured), IMAGES, TARGET, None, "captum_driver")
    assert set_on_it.to_json() != without.to_json()


def test_known_differences_of_rules_set_on_the_modules() -> None:
    by_map = compare(build(dense), VECTORS, TARGET, NAME_MAP[:1], "captum")
    on_modules = compare(with_rules(_0=GammaRule(0.4)), VECTORS, TARGET, None, "captum")
    assert by_map.verdict == "known difference"
    assert on_modules.differences == by_map.differences


# Stabilizers ------------------------------------------------------------------------------------


def signs(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z)


def rms(z: Tensor, dims: Any = 1) -> Tensor:
    return z.square().mean(dims, keepdim=True).sqrt()


def doubled_and_moved(z: Tensor) -> Tensor:
    return 2 * z + 0.1


STABILIZERS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "float": (0.2, lambda z: z + 0.2 * signs(z)),
    "signed": (stabilizers.Signed(0.1), lambda z: z + 0.1 * signs(z)),
    "signed-relative": (
        stabilizers.Signed(0.1, relative=True),
        lambda z: z + 0.1 * signs(z) * rms(z),
    ),
    "quadratic-mean": (stabilizers.RootMeanSquare(0.1), lambda z: z + 0.1 * rms(z) + 1e-9),
    "quadratic-mean of the batch": (
        stabilizers.RootMeanSquare(0.1, per_sample=False),
        lambda z: z + 0.1 * rms(z, (0, 1)) + 1e-9,
    ),
    "additive": (stabilizers.Additive(0.3), lambda z: z + 0.3),
    "clip": (stabilizers.Clip(0.5), lambda z: signs(z) * z.abs().clamp(min=0.5)),
    "function": (doubled_and_moved, doubled_and_moved),
}


every_stabilizer = pytest.mark.parametrize("s", STABILIZERS)


MIXED = [(["0"], GammaRule, {}), (["2"], AlphaBetaRule, {}), (["4"], EpsilonRule, {"epsilon": 0.1})]


def stabilized(s: Callable[[Tensor], Tensor]) -> Any:
    """MIXED with a stabilizer, written for zennit by hand."""
    return zennit_map(
        _0=zennit.Gamma(0.25, stabilizer=s),
        _1=zennit.Pass(),
        _2=zennit.AlphaBeta(2, 1, stabilizer=s),
        _3=zennit.Pass(),
        _4=zennit.Epsilon(lambda z: s(z + 0.1 * signs(z))),
    )


@every_stabilizer
def test_the_stabilizer_takes_the_place_of_every_rules_own(s) -> None:
    model, names = build(dense), ["0", "1", "2", "3", "4"]
    given, formula = STABILIZERS[s]
    explicit = [
        (names, rule, parameters | {"stabilizer": given}) for names, rule, parameters in MIXED
    ]
    comparison = compare(model, VECTORS, TARGET, MIXED, "zennit", stabilizer=given)
    assert_equal(comparison)
    theirs = by_zennit(copy.deepcopy(model), VECTORS, stabilized(formula))
    assert_rows(comparison, by_us(model, VECTORS, explicit, names), theirs, same(names))
    without = compare(model, VECTORS, TARGET, MIXED, "zennit")
    for now, before in (
        (comparison.relevances, without.relevances),
        (comparison.reference_relevances, without.reference_relevances),
    ):
        assert relative_error(now[0], before[0]) > DIFFERENT


FIRST: dict[str, tuple[Any, dict[str, Any], Callable[[Any], Any]]] = {
    "zero": (ZeroRule, {}, zennit.Epsilon),
    "z_plus": (ZPlusRule, {}, lambda s: zennit.ZPlus(stabilizer=s)),
    "gamma": (GammaRule, {"gamma": 0.7}, lambda s: zennit.Gamma(0.7, stabilizer=s)),
    "w_square": (WSquareRule, {}, lambda s: zennit.WSquare(stabilizer=s)),
    "flat": (FlatRule, {}, lambda s: zennit.Flat(stabilizer=s)),
    "z_box": (
        ZBoxRule,
        {"low": LOW, "high": HIGH},
        lambda s: zennit.ZBox(LOW, HIGH, stabilizer=s),
    ),
    "alpha3-beta2": (
        AlphaBetaRule,
        {"alpha": 3.0, "beta": 2.0},
        lambda s: zennit.AlphaBeta(3, 2, stabilizer=s),
    ),
}


@pytest.mark.parametrize("s", ["float", "quadratic-mean"])
@pytest.mark.parametrize(("rule", "given", "hook"), FIRST.values(), ids=[*FIRST])
def test_every_rule_has_the_stabilizer_in_zennit(rule, given, hook, s) -> None:
    """In the first layer; those above have none of their own, and get the default with it."""
    stabilizer, formula = STABILIZERS[s]
    above = [zennit.Epsilon(lambda z: formula(z + 1e-6 * signs(z))) for _ in range(2)]
    composite = zennit_map(_0=hook(formula), _1=zennit.Pass(), _2=above[0], _4=above[1])
    theirs = by_zennit(build(dense), VECTORS, composite)
    rules = [(["0"], rule, given)]
    comparison = compare(build(dense), VECTORS, TARGET, rules, "zennit", stabilizer=stabilizer)
    assert_equal(comparison)
    assert relative_error(comparison.reference_relevances[0], theirs.relevance) <= EXACT
    without = compare(build(dense), VECTORS, TARGET, rules, "zennit")
    assert relative_error(without.reference_relevances[0], theirs.relevance) > DIFFERENT


@pytest.mark.parametrize("reference", ["captum", "captum_driver", "float64", "LRP"])
@pytest.mark.parametrize(
    ("chain", "s"),
    [
        *(("dense", s) for s in ("signed-relative", "quadratic-mean of the batch", "function")),
        *(("pictured", s) for s in ("float", "quadratic-mean")),
    ],
)
def test_stabilizers_are_equal_on_both_sides(s, reference, chain) -> None:
    make, x = CHAINS[chain]
    model = build(make)
    rules = presets.epsilon_alpha2_beta1()
    given = STABILIZERS[s][0]
    other = LRP(model, rules) if reference == "LRP" else reference
    comparison = compare(model, x, TARGET, rules, other, stabilizer=given)
    explicit = [
        (names, rule, parameters | {"stabilizer": given})
        for names, rule, parameters in rules(model)
    ]
    if (reference, chain) == ("captum", "pictured"):  # it divides at max pools as well
        assert comparison.overall.relative_l2 <= 1e-6
    else:
        assert_equal(comparison)
    other = LRP(model, explicit) if reference == "LRP" else reference
    expected = compare(model, x, TARGET, explicit, other)
    for pair in (
        (comparison.relevances, expected.relevances),
        (comparison.reference_relevances, expected.reference_relevances),
    ):
        assert torch.equal(pair[0][0], pair[1][0])
    assert comparison.tolerance == expected.tolerance


def test_rows_tell_the_stabilizer_in_use() -> None:
    rules = MIXED[:1]  # the other layers have none of their own
    comparison = compare(build(dense), VECTORS, TARGET, rules, "float64", stabilizer=0.2)
    shown = [layer.rule for layer in comparison.layers if layer.rule != "passed"]
    assert all("stabilizer=Signed(epsilon=0.2" in rule for rule in shown) and len(shown) == 3
    without = compare(build(dense), VECTORS, TARGET, rules, "float64")
    assert not any("epsilon=0.2" in layer.rule for layer in without.layers)


def test_the_stabilizer_of_a_rounding_error_needs_this_package_on_both_sides() -> None:
    aware = stabilizers.RoundingAware()
    for reference in ("captum_driver", "float64"):
        assert_equal(
            compare(build(dense), VECTORS, TARGET, presets.epsilon(), reference, stabilizer=aware)
        )


def test_the_stabilizer_takes_the_place_of_captums_rules_own() -> None:
    model = with_rules(_0=captum_rules.GammaRule(0.3))
    given = with_rules(_0=captum_rules.GammaRule(0.3))
    given[0].rule.STABILITY_FACTOR = 0.2
    rules = [(["2", "4"], EpsilonRule, {"epsilon": 1e-6, "stabilizer": 0.2})]
    for name, rule, parameters in ((n, r, p) for names, r, p in rules for n in names):
        given.get_submodule(name).rule = rule(**parameters)
    comparison = compare(model, VECTORS, TARGET, None, "float64", stabilizer=0.2)
    expected = LRP(given).attribute(VECTORS, target=TARGET)
    assert relative_error(comparison.relevances[0], expected) <= EXACT


# Attention --------------------------------------------------------------------------------------


def test_attention_is_treated_alike_on_both_sides() -> None:
    model = build(Attention, dtype=torch.float32)
    x = drawn(2, TOKENS, E, seed=1).float()
    found = {}
    for rule in ("attnlrp", "cp"):
        comparison = compare(model, x, TARGET, presets.zero(), "float64", attention=rule)
        assert comparison.verdict in ("equal", "rounding")
        assert comparison.overall.relative_l2 < 1e-4
        expected = LRP(model, presets.zero(), attention=rule).attribute(x, target=TARGET)
        assert torch.equal(comparison.relevances[0], expected)
        exact = LRP(copy.deepcopy(model).double(), presets.zero(), attention=rule)
        expected = exact.attribute(x.double(), target=TARGET)
        assert relative_error(comparison.reference_relevances[0], expected) <= EXACT
        found[rule] = comparison
    assert relative_error(found["cp"].relevances[0], found["attnlrp"].relevances[0]) > DIFFERENT


def test_another_treatment_of_attention_is_found_at_the_attention() -> None:
    model, x = build(Attention), drawn(2, TOKENS, E, seed=1)
    rules = presets.zero()
    other = LRP(model, rules, attention="attnlrp")
    comparison = compare(model, x, TARGET, rules, other, attention="cp")
    assert_different(comparison)
    assert comparison.first.direction == "backward"
    assert comparison.first.name.startswith("matmul")
    assert_equal(
        compare(model, x, TARGET, rules, LRP(model, rules, attention="cp"), attention="cp")
    )
