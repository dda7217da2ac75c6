"""What ``advise`` says is followed, and makes the dtype agree with float64."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    ZBoxRule,
    ZeroRule,
    diagnose,
    plan,
    presets,
    stabilizers,
)
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.diagnosis import Advice, advise
from captum_lrp_stab.propagation import forms
from tests.helpers.advice import (
    TOLERANCE,
    chosen,
    error,
    is_within,
    mixed,
    off,
    relevance,
)
from tests.helpers.networks import TwoInputs, build
from tests.helpers.planting_gardener import KINDS
from tests.helpers.planting_harm import Planting
from tests.helpers.plantings import clean_run, planting

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = range(200)
SOME = range(7)  # every kind, in every architecture
LEAST = [1, 16]


def form_of(case: Planting) -> Any:
    return forms.form_of(case.form, case.stabilizer)


@cache
def advised(seed: int) -> Advice:
    case = planting(seed)
    return advise(case.model, case.x, case.target, case.rules, form=form_of(case))


@pytest.mark.filterwarnings("ignore::captum_lrp_stab.errors.StabilizerWarning")
@pytest.mark.parametrize(
    "seed",
    [pytest.param(s, marks=[] if s in SOME else pytest.mark.slow) for s in ALL],
    ids=lambda seed: f"{seed}-{KINDS[seed % len(KINDS)].replace(' ', '_')}",
)
def test_following_the_advice_makes_the_dtype_agree_with_float64(seed):
    case, advice = planting(seed), advised(seed)
    run = case.model, case.x, case.target
    dtype = chosen(advice, case.x)
    found = error(*run, advice.name_map, dtype=dtype, form=form_of(case))
    assert is_within(found), (found, advice)
    assert advice.holds and advice.error == pytest.approx(found, rel=1e-6, abs=1e-12)
    before = error(*run, case.rules, form=form_of(case))
    if before is None or advice.error_before is None:
        assert before is advice.error_before
    else:
        assert advice.error_before == pytest.approx(before, rel=1e-6, abs=1e-12)
    assert not advice.was_stable
    if advice.dtype is not None:  # the rules are as they were
        assert not advice.changes and dtype != case.x.dtype
        assert not is_within(before)
        pair = [relevance(*run, r, dtype, form_of(case)) for r in (case.rules, advice.name_map)]
        assert torch.equal(*pair)
    model, x = copy.deepcopy(case.model).to(dtype), case.x.to(dtype)
    after = diagnose(model, x, case.target, advice.name_map, form=form_of(case))
    assert advice.is_stable == (after.origin is None), after.explanation()
    mine = relevance(*run, advice.name_map, dtype, form_of(case))
    assert torch.equal(mine, advice.relevances[0].double())


def test_every_kind_is_among_those_that_are_followed():
    assert {KINDS[s % len(KINDS)] for s in SOME} == set(KINDS)
    assert len({planting(s).architecture for s in SOME}) == 5


def half_a_decade_less(epsilon: float) -> float:
    digit, _, exponent = f"{epsilon:.0e}".partition("e")
    assert epsilon == pytest.approx(float(f"{digit}e{exponent}")) and digit in "13"
    return float(f"1e{exponent}" if digit == "3" else f"3e{int(exponent) - 1}")


@pytest.mark.parametrize(
    "seed",
    [*LEAST, *(pytest.param(s, marks=pytest.mark.slow) for s in (15, 30, 50, 113, 120))],
)
def test_the_epsilon_is_the_least(seed):
    case, advice = planting(seed), advised(seed)
    (change,) = advice.changes
    rules = rule_set_of(case.model, advice.name_map).named
    rule = rules[change.layer]
    assert type(rule) is EpsilonRule and change.layer == case.layer and advice.is_stable
    assert repr(rule) == change.after

    def helps(parameters: dict[str, Any]) -> bool:
        entries = [(["" + name], type(r), r.parameters()) for name, r in rules.items()]
        entries = [e for e in entries if e[0] != [change.layer]]
        entries.append(([change.layer], EpsilonRule, parameters))
        run = case.model, case.x, case.target
        origin = diagnose(*run, entries, form=form_of(case)).origin
        is_cured = origin is None or origin.layer != case.layer
        return is_cured and is_within(error(*run, entries, form=form_of(case)))

    assert helps({"epsilon": rule.epsilon})
    assert not helps({"epsilon": half_a_decade_less(rule.epsilon)})
    for factor in (8.0, 64.0, 512.0):  # what moves rounding noise alone does not do either
        assert not helps({"epsilon": 0.0, "stabilizer": stabilizers.RoundingAware(factor)})


@pytest.mark.slow
def test_there_is_nothing_to_change_on_clean_networks():
    seen = set()
    for seed in (s for s in range(60) if s % 11 != 10):  # without torchvision's, which are large
        case = clean_run(seed)
        run = case.model, case.x, case.target
        tolerance = 0.05 if case.kind == "zero" else TOLERANCE  # float32's own, without epsilon
        advice = advise(*run, case.rules, form=form_of(case), tolerance=tolerance)
        assert advice.changes == () and advice.dtype is None, (seed, case.kind, advice)
        assert advice.was_stable and advice.is_stable and advice.holds
        assert advice.error == advice.error_before
        assert str(advice).startswith("nothing to change")
        pair = [
            relevance(*run, rules, case.x.dtype, form_of(case))
            for rules in (case.rules, advice.name_map)
        ]
        assert torch.equal(*pair), (seed, case.kind)
        seen |= {case.kind, case.form, case.architecture, case.x.dtype}
    assert len(seen) == 8 + 3 + 5 + 2


# kinds of rules, layers and models ---------------------------------------------------------------


PLACES = {"last": "last", "functional": "conv2d_0"}
MAPS: dict[str, Any] = {
    "preset": presets.epsilon(1e-6),
    "zero": presets.zero(),
    "name_map": [(["first", "conv2d_0", "last"], EpsilonRule, {}), (["head"], GammaRule, {})],
    "callable": lambda model: [(["first", "conv2d_0", "last", "head"], ZeroRule, {})],
    "captum": [
        (["first"], captum_rules.Alpha1_Beta0_Rule, {}),
        (["conv2d_0", "last"], captum_rules.EpsilonRule, {}),
        (["head"], captum_rules.GammaRule, {}),
    ],
}


@cache
def advised_on(rules: str, trouble: str) -> Advice:
    return advise(*mixed(trouble), 1, MAPS[rules])


@pytest.mark.parametrize(
    ("rules", "trouble"), [*((rules, "last") for rules in MAPS), ("name_map", "functional")]
)
def test_rules_of_every_kind(rules, trouble):
    model, x = mixed(trouble)
    run = model, x, 1
    assert diagnose(*run, MAPS[rules]).origin.layer == PLACES[trouble]
    advice = advised_on(rules, trouble)
    assert [c.layer for c in advice.changes] == [PLACES[trouble]] and advice.dtype is None
    found = error(*run, advice.name_map)
    assert is_within(found) and advice.error == pytest.approx(found, rel=1e-6)
    assert diagnose(*run, advice.name_map).verdict == "stable" and advice.is_stable
    assert_only_changed(model, x, MAPS[rules], advice)


def assert_only_changed(model: nn.Module, x: Tensor, rules: Any, advice: Advice) -> None:
    before, after = (plan(model, x, r).layers for r in (rules, advice.name_map))
    changed = {c.layer for c in advice.changes}
    for old, new in zip(before, after, strict=True):
        same = (old.name, old.rule, old.parameters, old.stabilizer) == (
            *(new.name, new.rule, new.parameters, new.stabilizer),
        )
        assert same != (old.name in changed), (old, new)


def test_rules_on_modules():
    model, x = mixed("last")
    model.first.rule = captum_rules.Alpha1_Beta0_Rule()
    model.last.rule = EpsilonRule(0.0)
    model.head.rule = captum_rules.EpsilonRule()
    advice = advise(model, x, 1)
    assert advice.holds and {c.layer for c in advice.changes} == {"last"}
    assert [type(m.rule) for m in (model.first, model.last)] == [
        captum_rules.Alpha1_Beta0_Rule,
        EpsilonRule,
    ]
    assert is_within(error(model, x, 1, advice.name_map))
    found = LRP(model, advice.name_map).attribute(x, 1)
    assert off(found.double(), relevance(model, x, 1, advice.name_map, torch.float64)) <= TOLERANCE


@pytest.mark.parametrize("form", forms.NAMES)
def test_every_form(form):
    model, x = mixed("last")
    rules = presets.epsilon(1e-6)
    stabilizer = 1e-6 if form == "relevance" else None  # of the mean of a channel that is dead
    chosen_form = forms.form_of(form, stabilizer)
    advice = advise(model, x, 1, rules, form=chosen_form)
    assert is_within(error(model, x, 1, advice.name_map, form=chosen_form)) and advice.holds
    if form != "modified-forward":  # where epsilon lessens what the layer receives, not its share
        assert [c.layer for c in advice.changes] == ["last"] and advice.is_stable


def test_a_stabilizer_takes_the_place_of_every_other():
    model, x = mixed("last")
    names = ["first", "conv2d_0", "last", "head"]
    rules = [(names, GammaRule, {"gamma": 0.0, "stabilizer": 50.0})]
    assert advise(model, x, 1, rules).changes == ()
    advice = advise(model, x, 1, rules, stabilizer=0.0)
    (change,) = advice.changes
    assert change.layer == "last" and "Signed(epsilon=0.0" in change.before
    assert is_within(error(model, x, 1, advice.name_map))


def test_rules_that_differ_in_a_tensor_stay_apart():
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    lows = torch.zeros(4, dtype=torch.float64), torch.full((4,), -2.0, dtype=torch.float64)
    rules = [([n], ZBoxRule, {"low": a, "high": 3.0}) for n, a in zip("02", lows, strict=True)]
    x = torch.rand(1, 4, dtype=torch.float64)
    advice = advise(model, x, 0, rules)
    pair = [relevance(model, x, 0, r, torch.float64) for r in (rules, advice.name_map)]
    assert torch.equal(*pair)


def test_several_inputs_and_further_arguments():
    model = build(TwoInputs, dtype=torch.float32)
    x = torch.rand(2, 4), torch.rand(2, 3)
    advice = advise(model, x, (1, 2), presets.epsilon(), additional_forward_args=2.0)
    assert advice.changes == () and advice.holds
    assert [tuple(R.shape) for R in advice.relevances] == [(2, 4), (2, 3)]


# dtypes ------------------------------------------------------------------------------------------


class TestOverflow:
    """Outputs beyond 65504 in float16, which no stabilizer helps against."""

    @staticmethod
    def overflowing() -> tuple[nn.Module, Tensor]:
        model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
        with torch.no_grad():
            model[0].weight.copy_(torch.linspace(200, 400, 16).view(4, 4))
            model[1].weight.mul_(1e-3)
        return model.half(), torch.linspace(80, 120, 4)[None].half()

    @pytest.mark.parametrize("form", forms.NAMES)
    def test_float32(self, form):
        model, x = self.overflowing()
        advice = advise(model, x, 0, presets.epsilon(1e-3), form=form)
        assert advice.dtype == "float32" and advice.changes == () and advice.holds
        assert advice.error_before is None and not advice.was_stable and advice.is_stable
        text = str(advice)
        assert "no stabilizer" in text and "not finite" in text and "use float32" in text
        rules = advice.name_map
        assert is_within(error(model, x, 0, rules, dtype=torch.float32, form=form))
        assert not is_within(error(model, x, 0, rules, dtype=torch.bfloat16, form=form))

    def test_bfloat16_where_that_will_do(self):
        model, x = self.overflowing()
        advice = advise(model, x, 0, presets.epsilon(1e-3), tolerance=0.2)
        assert advice.dtype == "bfloat16" and advice.holds
        assert advice.relevances[0].dtype == torch.bfloat16
        found = error(model, x, 0, advice.name_map, dtype=torch.bfloat16)
        assert is_within(found, 0.2) and advice.error == pytest.approx(found, rel=1e-6)


def test_a_tolerance_that_float32_cannot_meet():
    model, x = mixed("last")
    advice = advise(model, x, 0, presets.epsilon(), tolerance=1e-14)
    assert advice.dtype == "float64" and advice.error == 0 and "use float64" in str(advice)


class Vanishing(nn.Module):
    """A sum that is 0, at which relevance form divides by 0 in any dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return self.head((y + -y) + F.relu(y))


def test_where_nothing_helps():
    model = build(Vanishing, dtype=torch.float32)
    advice = advise(model, torch.rand(1, 4), 0, presets.epsilon(), form="relevance")
    assert not advice.holds and advice.error is None and advice.error_before is None
    assert advice.changes == () and advice.dtype is None and not advice.is_stable
    assert "nothing to change" not in str(advice) and "not finite" in str(advice)
    pinned = forms.form_of("relevance", 1e-6)
    helped = advise(model, torch.rand(1, 4), 0, presets.epsilon(), form=pinned)
    assert helped.error is not None


# words -------------------------------------------------------------------------------------------


def test_in_words():
    advice = advised(1)
    (change,) = advice.changes
    text = str(advice)
    assert all(part in text for part in (change.layer, change.before, change.after))
    assert f"{advice.error:.2g}" in text and f"{advice.error_before:.2g}" in text
    assert "amplified" not in text
    amplified = advised(17)  # a cancellation that float64 has too
    assert not amplified.is_stable and "amplified" in str(amplified)


def executed(advice: Advice) -> Any:
    names: dict[str, Any] = {}
    exec(advice.to_python(), names)
    return names["name_map"]


def assert_equal_maps(one: Any, other: Any) -> None:
    for (names, rule, given), (names_too, rule_too, given_too) in zip(one, other, strict=True):
        assert (list(names), rule, list(given)) == (list(names_too), rule_too, list(given_too))
        for a, b in zip(given.values(), given_too.values(), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_as_python(seed):
    advice = advised(seed)
    assert_equal_maps(executed(advice), advice.name_map)


@pytest.mark.parametrize("rules", MAPS)
def test_as_python_of_every_kind_of_rule(rules):
    model, x = mixed("last")
    advice = advised_on(rules, "last")
    assert_equal_maps(executed(advice), advice.name_map)
    pair = [relevance(model, x, 1, r, x.dtype) for r in (advice.name_map, executed(advice))]
    assert torch.equal(*pair)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_python_with_tensors(dtype):
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), dtype=dtype)
    low = torch.tensor([-1 / 3, -torch.pi, -1e-9, 0.0], dtype=dtype)
    rules = [(["0"], ZBoxRule, {"low": low, "high": 3.0}), (["2"], EpsilonRule, {})]
    advice = advise(model, torch.rand(1, 4, dtype=dtype), 0, rules)
    assert_equal_maps(executed(advice), advice.name_map)
