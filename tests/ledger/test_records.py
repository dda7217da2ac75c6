"""Every number of a layer's record against dense float64 formulas."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from captum_lrp_stab import EpsilonRule, GammaRule, PassRule, diagnose
from captum_lrp_stab.ledger.measuring import histogram_of
from captum_lrp_stab.ledger.records import LayerRecord
from captum_lrp_stab.propagation import forms
from tests.helpers import ledgers
from tests.helpers.ledgers import (
    LAYERS,
    MOVING_AWAY,
    RULES,
    STABILIZERS,
    Expected,
    OnTop,
    expected,
    layer_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BIN = 1.06  # numbers in a histogram are known to half a bin of a twentieth of a power of ten


def inputs(shape, count=2):
    generator = torch.Generator().manual_seed(11)
    return torch.randn(count, *shape, dtype=torch.float64, generator=generator).clamp(-2.9, 3.4)


def pair(rule, stabilizer, layer, form, count=2) -> tuple[LayerRecord, Expected]:
    case, (package, dense) = RULES[rule], STABILIZERS[stabilizer]
    module, matrix, shape, place = layer_of(layer)
    x = inputs(shape, count)
    model = OnTop(module, len(matrix.b)).eval()
    found = diagnose(
        model, x, None, [([place], partial_rule(case.rule), {"stabilizer": package})], form=form
    )
    (record,) = (r for r in found.layers if r.has_rule)
    wanted = expected(case.sums, case.stabilized(dense), matrix, x, model.weights, form)
    return record, wanted


def partial_rule(rule):
    """A class that a name_map takes, of a rule with some of its arguments given."""
    if isinstance(rule, type):
        return rule

    def make(self, stabilizer):
        rule.func.__init__(self, *rule.args, **rule.keywords, stabilizer=stabilizer)

    return type(rule.func.__name__, (rule.func,), {"__init__": make})


def assert_record(record: LayerRecord, wanted: Expected, moves_away: bool) -> None:
    if not wanted.propagated.isfinite().all():  # 0/0, which only the gradient form takes for 0
        bad = record.received, record.propagated
        assert max(flow.nonfinite for flow in bad) > 0 or record.overflow
        return
    l1 = float(wanted.received.abs().sum())
    exact = partial(pytest.approx, rel=1e-11, abs=1e-12 * l1)
    for flow, dense in (
        (record.received, wanted.received),
        (record.propagated, wanted.propagated),
    ):
        assert flow.total == exact(float(dense.sum()))
        assert flow.l1 == exact(float(dense.abs().sum()))
        assert flow.largest == exact(float(dense.abs().max()))
        assert flow.nonfinite == 0
    shares = record.shares
    assert shares.bias == exact(wanted.bias)
    assert shares.stabilizer == exact(wanted.stabilizer)
    assert shares.rule == exact(wanted.rule)
    assert shares.operation == 0
    assert abs(shares.rounding) <= 1e-12 * max(l1, record.propagated.l1)
    assert record.amplification == pytest.approx(float(wanted.propagated.abs().sum()) / l1)
    assert record.peak == pytest.approx(wanted.peak, rel=1e-10)
    assert record.excess == pytest.approx(0.0 if moves_away else wanted.excess, rel=1e-9, abs=1e-12)
    assert record.growth == pytest.approx(wanted.growth, rel=1e-11)
    assert record.strongest is not None
    sample, *index = record.strongest.index
    flat = int(np.ravel_multi_index(index, record.shape[1:]))
    if wanted.growth <= 1 + 1e-9:  # else it is the one that grew most
        assert (sample, flat) == wanted.strongest
    divisors = record.denominators
    assert divisors is not None
    assert divisors.count == wanted.count
    assert divisors.smallest == pytest.approx(wanted.smallest, rel=1e-10)
    assert (divisors.zeros, divisors.noise) == (wanted.zeros, wanted.noise)
    if not moves_away:
        assert (divisors.flipped, divisors.shrunk) == (wanted.flipped, wanted.shrunk)
    for share in (0.25, 0.5, 0.99):
        pairs = (
            (divisors.sizes, wanted.sizes),
            (divisors.cancellation, wanted.cancellations),
        )
        for histogram, values in pairs:
            quantile = np.quantile(values, share, method="inverted_cdf")
            assert quantile / BIN <= histogram.quantile(share) <= quantile * BIN


def is_moving_away(rule, stabilizer):
    return stabilizer in MOVING_AWAY and rule != "epsilon-unsigned"


IN_TURN = [  # every rule on every layer in every form once, under every stabilizer on two layers
    (rule, layer, form, ("none", "signed", "additive")[(i + j) % 3])
    for rule in RULES
    for i, layer in enumerate(LAYERS)
    for j, form in enumerate(forms.NAMES)
]


@pytest.mark.parametrize(("rule", "layer", "form", "stabilizer"), IN_TURN)
def test_a_record_against_dense_formulas(rule, layer, form, stabilizer) -> None:
    record, wanted = pair(rule, stabilizer, layer, form)
    assert_record(record, wanted, is_moving_away(rule, stabilizer))


@pytest.mark.parametrize("form", forms.NAMES)
@pytest.mark.parametrize("stabilizer", ["quadratic-mean", "clip"])
@pytest.mark.parametrize("rule", ["zero", "gamma", "alpha2-beta1", "z_plus", "z_box"])
def test_other_stabilizers(rule, stabilizer, form) -> None:
    record, wanted = pair(rule, stabilizer, "conv2d-groups", form, count=3)
    assert_record(record, wanted, is_moving_away(rule, stabilizer))


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize("layer", ["conv2d-groups", "batch_norm2d"])
@pytest.mark.parametrize("rule", ["gamma", "epsilon", "alpha2-beta1"])
def test_a_slightly_wrong_formula_is_found_out(rule, layer, form) -> None:
    """The negative control of the tests above."""
    record, wanted = pair(rule, "signed", layer, form)
    assert_record(record, wanted, True)
    l1 = float(wanted.received.abs().sum())
    wrong = [
        {"bias": wanted.bias + 1e-6 * l1},
        {"stabilizer": wanted.stabilizer - 1e-6 * l1},
        {"rule": wanted.rule + 1e-6 * l1},
        {"received": wanted.received * (1 + 1e-6)},
        {"propagated": wanted.propagated * (1 + 1e-6)},
        {"peak": wanted.peak * (1 + 1e-6)},
        {"growth": wanted.growth * (1 + 1e-6)},
        {"count": wanted.count + 1},
        {"zeros": wanted.zeros + 1},
        {"noise": wanted.noise + 1},
        {"smallest": wanted.smallest * (1 + 1e-6) + 1e-9},
        {"cancellations": tuple(1.3 * c for c in wanted.cancellations)},
        {"sizes": tuple(1.3 * c for c in wanted.sizes)},
    ]
    for change in wrong:
        with pytest.raises(AssertionError):
            assert_record(record, replace(wanted, **change), True)
    # and a formula of the right kind with a parameter that is slightly off
    module, matrix, shape, _ = layer_of(layer)
    weights = OnTop(module, len(matrix.b)).weights
    off = expected(
        partial(ledgers.gamma, gamma=0.26),
        ledgers.reference.signed(0.1),
        matrix,
        inputs(shape),
        weights,
        form,
    )
    with pytest.raises(AssertionError):
        assert_record(record, off, True)


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize("layer", ["linear", "batch_norm2d"])
def test_the_pass_rule_hands_down_all(layer, form) -> None:
    module, _, shape, _ = layer_of(layer)
    if layer == "linear":
        module, shape = nn.Linear(5, 5).double(), (5,)
    model = OnTop(module, math.prod(shape)).eval()
    x = inputs(shape)
    found = diagnose(model, x, None, [(["layer"], PassRule, {})], form=form)
    (record,) = (r for r in found.layers if r.has_rule)
    R = model.layer(x).detach().flatten(1) * model.weights
    assert record.received.l1 == pytest.approx(float(R.abs().sum()), rel=1e-12)
    assert record.propagated.total == pytest.approx(float(R.sum()), rel=1e-12)
    assert record.propagated.l1 == pytest.approx(float(R.abs().sum()), rel=1e-12)
    assert record.denominators is None and record.peak is None
    assert abs(record.shares.total) <= 1e-12 * record.received.l1
    assert abs(found.ledger.elsewhere) <= 1e-12 * record.received.l1


def planted(form: str, **options):
    """Outputs z of 0 exactly, of rounding noise, and 1 and -3; inputs 1, 1, 1."""
    layer = nn.Linear(3, 4, bias=False).double()
    tiny = 2.0**-53  # 1 + tiny is 1
    layer.weight.data = torch.tensor(
        [[1, -1, 0], [0.1, 0.2, -0.30000000000000004 + 2 * tiny], [1, 0, 0], [-1, -1, -1]],
        dtype=torch.float64,
    )
    model = OnTop(layer, 4)
    rules = [(["layer"], EpsilonRule, {"epsilon": 0.0} | options)]
    x = torch.ones(1, 3, dtype=torch.float64)
    found = diagnose(model.eval(), x, None, rules, form=form)
    (record,) = (r for r in found.layers if r.has_rule)
    return found, record, layer(x).detach()[0]


@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_zeros_and_noise_are_counted(form) -> None:
    _, record, z = planted(form, stabilizer=1e-3)
    assert z[0] == 0 and 0 < abs(z[1]) < U_NOISE and z[2:].tolist() == [1, -3]
    divisors = record.denominators
    assert (divisors.count, divisors.zeros) == (4, 1)
    # a denominator of exactly 0 is below its rounding noise too, whatever contributes
    assert divisors.noise == 1 + int(abs(z[1]) < ledgers.U * 0.6)
    assert divisors.smallest == 0
    assert divisors.sizes.quantile(1.0) == pytest.approx(3, rel=0.06)
    assert divisors.cancellation.quantile(0.01) == pytest.approx(1, rel=0.06)


U_NOISE = 2.0**-51


def test_an_output_that_is_switched_off_is_no_denominator() -> None:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    model.double().eval()
    model[0].weight.data = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [2.0, 0.0]]).double()
    model[2].weight.data = torch.tensor([[1.0, 1.0, 0.0]]).double()
    x = torch.ones(1, 2, dtype=torch.float64)
    rules = [(["0", "2"], EpsilonRule, {})]
    by_form = {
        form: diagnose(model, x, 0, rules, form=form).layers[0].denominators
        for form in ("gradient", "relevance")
    }
    # the second is negative, the third is not looked at
    assert by_form["gradient"].count == 1 and by_form["gradient"].smallest == 2
    assert by_form["relevance"].count == 3


def test_an_output_of_0_is_counted_under_a_rule_for_one_sign() -> None:
    """It sends nothing in gradient form, where 0/0 is 0, but its denominator is one to know of."""
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, -1.0], [1.0, 0.0]]).double()
    model, x = OnTop(layer, 2).eval(), torch.ones(1, 2, dtype=torch.float64)
    found = diagnose(model, x, None, [(["layer"], GammaRule, {"gamma": 0.5})])
    (record,) = (r for r in found.layers if r.has_rule)
    assert record.denominators.count == 2 and record.denominators.smallest == 0.5  # 1.5 - 1


def test_additive_epsilon_flips_and_shrinks() -> None:
    """z + 2 of z = 1 and -3, in words of the issue: how many change sign."""
    layer = nn.Linear(1, 3, bias=False).double()
    layer.weight.data = torch.tensor([[1.0], [-1.0], [-3.0]]).double()
    model, x = OnTop(layer, 3).eval(), torch.ones(1, 1, dtype=torch.float64)
    for form in forms.NAMES:
        found = diagnose(
            model, x, None, [(["layer"], EpsilonRule, {"epsilon": 1.5, "signed": False})], form=form
        )
        (record,) = (r for r in found.layers if r.has_rule)
        divisors = record.denominators
        # 1 -> 2.5, -1 -> 0.5, -3 -> -1.5
        assert (divisors.count, divisors.flipped, divisors.shrunk) == (3, 1, 2)


@pytest.mark.parametrize("shape", [(1, 64, 224, 224), (1, 256, 56, 56), (1, 8, 300, 100)])
def test_quantiles_of_a_large_layer(shape) -> None:
    """What they are taken from must not be some columns, or some channels, alone."""
    for dim in (1, 3):
        values = torch.ones(shape)
        values.select(dim, 0).fill_(1e-3)
        assert histogram_of(values).quantile(0.2) == pytest.approx(1, rel=0.06)
