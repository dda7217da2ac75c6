"""Where instability starts, why, and what to do: every cause, provoked once, at a known neuron."""

import math

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import FlatRule, WSquareRule, ZeroRule, diagnose, stabilizers
from captum_lrp_stab.ledger.locating import Trouble
from captum_lrp_stab.propagation import forms
from tests.helpers.locating import ONES, linear, origin_of, two, zero

pytestmark = pytest.mark.usefixtures("one_thread")


class Lost:
    """An epsilon that is 0 in float16."""

    def __call__(self, z: Tensor) -> Tensor:
        return z + 1e-9


# each cause --------------------------------------------------------------------------------------


def test_no_trouble() -> None:
    for form in forms.NAMES:
        found = diagnose(two([1.0, 2.0], [1.0, 1.0]), ONES, 0, zero("0", "1"), form=form)
        assert (found.verdict, found.origin, found.cause) == ("stable", None, None)
        assert (found.sees, found.dtype_is_cause) == ((), None)
        assert "finite" in found.explanation()


def test_overflow_of_an_output() -> None:
    model = two([300.0, 300.0], [1.0, 1.0], dtype=torch.float16)
    x = torch.tensor([[300.0, 1.0]]).half()
    for form in forms.NAMES:
        found = diagnose(model, x, 0, zero("0", "1"), form=form)
        origin = origin_of(found)
        assert found.verdict == "not finite" and found.dtype == "float16"
        assert (origin.name, origin.kind, origin.direction) == ("0", "Linear", "forward")
        assert (origin.trouble, origin.count) == (Trouble.OVERFLOW, 1)
        assert origin.neuron.index == (0, 0) and origin.neuron.z == math.inf
        assert found.cause.kind == "overflow" and "float16" in found.cause.what
        assert "wider dtype" in found.cause.remedy
        assert found.dtype_is_cause is True and "float16 is the cause" in str(found)
    wide = diagnose(model.bfloat16(), x.bfloat16(), 0, zero("0", "1"))
    assert wide.verdict == "stable"


def test_overflow_of_a_message() -> None:
    """Outputs are finite, but 128 / 0.125 * 128 is not, in float16."""
    model = two([1.0, -1.0 + 2**-10], [1.0, 1.0], dtype=torch.float16)
    rules = [(["0"], ZeroRule, {}), (["1"], FlatRule, {})]
    found = diagnose(model, ONES.half() * 128, 0, rules, form="relevance")
    assert found.verdict == "not finite"
    origin = origin_of(found)
    assert (origin.name, origin.direction, origin.count) == ("0", "backward", 2)
    assert origin.neuron.index == (0, 0) and origin.neuron.z == 0.125
    assert found.cause.kind == "overflow" and "float16" in found.cause.what
    # in float64 it is amplified 1000 times, but finite: not the same
    assert "It is the same in float64" not in found.explanation()


@pytest.mark.parametrize("form", ["relevance", "modified-forward"])
def test_exact_zero(form) -> None:
    found = diagnose(two([1.0, -1.0], [1.0, 1.0]), ONES, 0, zero("0", "1"), form=form)
    origin = origin_of(found)
    assert found.verdict == "not finite"
    assert (origin.name, origin.layer, origin.use) == ("0", "0", 0)
    assert origin.direction == ("backward" if form == "relevance" else "forward")
    assert origin.neuron.index == (0, 0)
    assert (origin.neuron.z, origin.neuron.denominator, origin.neuron.stabilized) == (0, 0, 0)
    assert origin.neuron.magnitude == 2
    assert "ZeroRule" in origin.rule and "Identity" in origin.stabilizer
    assert found.cause.kind == "exact zero" and "exactly 0" in found.cause.what
    assert "Signed" in found.cause.remedy and "gradient form" in found.cause.remedy
    assert found.dtype_is_cause is False
    if form == "relevance":
        assert origin.trouble == Trouble.NONFINITE and origin.count == 2  # both inputs
        assert origin.input.index == (0, 0) and origin.input.x == 1
        assert not math.isfinite(origin.input.relevance)


def test_epsilon_that_underflows() -> None:
    model = two([1.0, -1.0], [1.0, 1.0], dtype=torch.float16)
    rules = zero("0", "1", stabilizer=Lost())
    found = diagnose(model, ONES.half(), 0, rules, form="relevance")
    assert found.verdict == "not finite" and origin_of(found).name == "0"
    assert found.cause.kind == "epsilon underflows"
    assert "1e-09" in found.cause.what and "float16" in found.cause.what
    assert "larger epsilon" in found.cause.remedy and "wider dtype" in found.cause.remedy
    assert origin_of(found).neuron.stabilized_in_float64 == pytest.approx(1e-9)
    assert found.dtype_is_cause is True
    own = diagnose(model, ONES.half(), 0, rules, form="relevance", stabilizer=1e-9)
    assert own.verdict == "stable"
    assert any("1e-09" in warning for warning in own.warnings)


POLES = {"exactly": (0.5, 0.0), "nearly": (0.50001, 1e-5)}


@pytest.mark.parametrize("form", forms.NAMES)
@pytest.mark.parametrize("pole", POLES)
def test_a_pole(pole, form) -> None:
    epsilon, left = POLES[pole]
    rules = zero("0", "1", stabilizer=stabilizers.Additive(epsilon))
    found = diagnose(two([1.0, -1.5], [1.0, 1.0]), ONES, 0, rules, form=form)
    origin = origin_of(found)
    assert found.verdict == ("not finite" if left == 0 else "unstable")
    assert origin.name == "0" and origin.neuron.index == (0, 0)
    assert origin.neuron.z == -0.5
    assert origin.neuron.stabilized == pytest.approx(left, abs=1e-6)
    assert found.cause.kind == "pole" and "-0.5" in found.cause.what
    assert "away from 0" in found.cause.remedy
    assert found.dtype_is_cause is False
    assert diagnose(two([1.0, -1.5], [1.0, 1.0]), ONES, 0, zero("0", "1")).verdict == "stable"
    if form == "modified-forward" and left:
        assert origin.trouble == Trouble.GROWTH and origin.direction == "forward"
        assert origin.factor == pytest.approx((0.5 * 0.5 / 1.0014e-5 + 4 / 2.5) / 2.5, rel=1e-3)


def test_cancellation() -> None:
    """1e4 - (1e4 - 0.01) with a large relevance; and a difference that is rounding alone."""
    found = diagnose(two([1e4, -1e4 + 0.01], [1.0, 1.0]), ONES, 0, zero("0", "1"))
    origin = origin_of(found)
    assert (found.verdict, origin.trouble) == ("unstable", Trouble.AMPLIFICATION)
    assert origin.neuron.index == (0, 0)
    d = float(torch.tensor(1e4) + torch.tensor(-1e4 + 0.01))
    assert origin.neuron.denominator == pytest.approx(d)
    assert origin.neuron.magnitude == pytest.approx(2e4, rel=1e-4)
    # all of the layer: (R_0 / d * 2e4 + 2) / (R_0 + 2), where R is z
    expected = (2e4 + 2) / (d + 2)
    record = next(r for r in found.layers if r.name == "0")
    assert record.amplification == pytest.approx((2e4 + 2) / (d + 2), rel=1e-3)
    assert origin.factor == pytest.approx(expected, rel=1e-3)
    assert found.cause.kind == "cancellation" and "cancels" in found.cause.what
    assert "epsilon" in found.cause.remedy and "gamma" in found.cause.remedy

    noisy = two([1e4, -1e4 * (1 + 2**-23), 0.0], [1.0, 1.0, 0.0], [1.0, 2.0, 0.0])
    x = torch.tensor([[1.0, 1.0, 1.0]])
    found = diagnose(noisy, x, 0, zero("0", "1"))
    assert found.cause.kind == "cancellation" and "noise" in found.cause.what
    assert "RoundingAware" in found.cause.remedy
    rules = zero("0", "1", stabilizer=stabilizers.RoundingAware(8))
    better = diagnose(noisy, x, 0, rules)
    factors = [
        next(r for r in one.layers if r.name == "0").amplification for one in (found, better)
    ]
    assert factors[1] < factors[0] / 2


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize("above", [FlatRule, WSquareRule])
def test_near_zero(above, form) -> None:
    model = two([1.0, -1.0 + 1e-5], [1.0, 1.0], [1.0, 2.0])
    rules = [(["0"], ZeroRule, {}), (["1"], above, {})]
    found = diagnose(model, ONES, 0, rules, form=form)
    assert found.verdict == "unstable"
    assert origin_of(found).name == "0" and origin_of(found).neuron.index == (0, 0)
    assert found.cause.kind == "near zero" and "not proportional" in found.cause.what
    assert "proportional to its input" in found.cause.remedy
    # R is (1e-5 + 2 + 3) / 3 for each
    assert origin_of(found).neuron.relevance == pytest.approx(5 / 3, rel=1e-3)
    proportional = diagnose(model, ONES, 0, zero("0", "1"), form=form)
    assert proportional.verdict == "stable"


def test_the_threshold_is_the_one_asked_for() -> None:
    model = nn.Sequential(linear([1.0, -0.5])).eval()  # propagates 1.5 for 0.5
    for threshold, verdict in ((2.9, "unstable"), (3.1, "stable")):
        found = diagnose(model, ONES, 0, zero("0"), threshold=threshold)
        assert found.verdict == verdict and found.threshold == threshold
    assert diagnose(model, ONES, 0, zero("0"), threshold=2).origin.factor == pytest.approx(3)


def test_one_neuron_alone() -> None:
    """Contributions that cancel between neurons: the layer is quiet, the neuron is not."""
    model = nn.Sequential(linear([1e4, -1e4 + 1.0], [-1e4, 1e4 + 1.0]), linear([1.0, 1.0])).eval()
    found = diagnose(model, ONES, 0, zero("0", "1"), threshold=5000)
    record = next(r for r in found.layers if r.name == "0")
    assert record.amplification == pytest.approx(1.0, rel=1e-3)
    assert record.peak == pytest.approx(1e4, rel=1e-2)
    assert origin_of(found).factor == pytest.approx(record.peak)
    assert origin_of(found).neuron.propagated == pytest.approx(2e4, rel=1e-2)
