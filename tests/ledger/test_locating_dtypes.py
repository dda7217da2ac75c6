"""The dtype as a cause, and what LRP(nonfinite=...) says."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, diagnose, presets, stabilizers
from captum_lrp_stab.errors import NonFiniteRelevanceError, NonFiniteRelevanceWarning
from captum_lrp_stab.ledger.causes import cause_of
from captum_lrp_stab.ledger.locating import locate
from captum_lrp_stab.ledger.records import Flow, LayerRecord, Shares
from captum_lrp_stab.propagation import forms
from tests.helpers.locating import FUNCTIONS, ONES, Between, two, zero

# dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", forms.NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, form) -> None:
    """The same numbers as in float64, to the dtype's precision."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    x = torch.rand(2, 3, 6, 6)
    model, x = model.to(dtype), x.to(dtype)
    found = diagnose(model, x, 1, presets.epsilon(1e-3), form=form)
    exact = diagnose(model.double(), x.double(), 1, presets.epsilon(1e-3), form=form)
    assert found.verdict == exact.verdict == "stable"
    assert (found.dtype, exact.dtype) == (str(dtype).removeprefix("torch."), "float64")
    tolerance = 20 * torch.finfo(dtype).eps
    assert [r.name for r in found.layers] == [r.name for r in exact.layers]
    for ours, true in zip(found.layers, exact.layers, strict=True):
        scale = true.received.l1
        pairs = [(ours.received.l1, true.received.l1), (ours.propagated.l1, true.propagated.l1)]
        pairs += [(getattr(ours.shares, n), getattr(true.shares, n)) for n in SHARES]
        for one, other in pairs:
            assert abs(one - other) <= tolerance * scale, (ours.name, ours.shares, true.shares)
        if true.peak is not None:
            assert ours.peak == pytest.approx(true.peak, rel=tolerance)
        if true.denominators is not None:
            assert ours.denominators.count == true.denominators.count
            assert ours.denominators.smallest == pytest.approx(
                true.denominators.smallest, rel=tolerance, abs=tolerance
            )


SHARES = ("bias", "stabilizer", "rule", "operation", "rounding")


def test_float16_is_no_trouble_by_itself() -> None:
    """Nothing is amplified here: no layer may be reported, whatever coefficients are scaled by."""
    model = two([1.0, 2.0], [2.0, 1.0], dtype=torch.float16)
    found = diagnose(model, ONES.half(), 0, zero("0", "1"), threshold=2)
    assert found.verdict == "stable", str(found)
    record = next(r for r in found.layers if r.name == "0")
    assert record.peak == pytest.approx(0.5)
    assert record.strongest.propagated == pytest.approx(3.0)


def test_noise_is_that_of_the_dtype() -> None:
    """A denominator of 1e-3 out of 2 is noise in bfloat16, and none in float32."""
    for dtype, count in ((torch.bfloat16, 1), (torch.float32, 0)):
        model = two([1.0, -0.998046875], [1.0, 1.0], dtype=dtype)  # 1 - 2^-9
        model[0].weight.data[0, 1] = -1 + 2**-8
        found = diagnose(model, ONES.to(dtype), 0, zero("0", "1"))
        noise = next(r for r in found.layers if r.name == "0").denominators.noise
        assert noise == count


@pytest.mark.parametrize("form", forms.NAMES)
def test_autocast(form) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x = torch.randn(2, 4)
    exact = diagnose(model, x, 1, presets.epsilon(1e-3), form=form)
    with torch.autocast("cpu", torch.bfloat16):
        found = diagnose(model, x, 1, presets.epsilon(1e-3), form=form)
        assert torch.is_autocast_enabled("cpu")
    assert (found.dtype, exact.dtype) == ("bfloat16", "float32")
    assert found.verdict == "stable"
    assert found.ledger.score == pytest.approx(exact.ledger.score, rel=0.05, abs=0.02)
    assert found.ledger.shares.bias == pytest.approx(exact.ledger.shares.bias, rel=0.05, abs=0.02)
    scale = max(abs(found.ledger.score), found.ledger.inputs.l1)
    assert abs(found.ledger.elsewhere) <= 0.01 * scale


@pytest.mark.parametrize("form", ["relevance", "modified-forward"])
def test_autocast_is_the_cause(form) -> None:
    """1 + 2^-9 is 1 in bfloat16."""
    model = two([1.0, -1.0 - 2.0**-9], [1.0, 1.0])
    assert diagnose(model, ONES, 0, zero("0", "1"), form=form).verdict == "stable"
    with torch.autocast("cpu", torch.bfloat16):
        found = diagnose(model, ONES, 0, zero("0", "1"), form=form)
        assert torch.is_autocast_enabled("cpu")
    assert found.verdict == "not finite" and found.dtype_is_cause is True
    assert found.cause.kind == "exact zero"
    assert "bfloat16 is the cause" in found.explanation()


def test_float64_has_no_wider_dtype() -> None:
    model = two([1.0, -1.0], [1.0, 1.0], dtype=torch.float64)
    found = diagnose(model, ONES.double(), 0, zero("0", "1"), form="relevance")
    assert found.verdict == "not finite" and found.dtype_is_cause is None
    assert "float64" not in found.explanation()


# LRP(nonfinite=...) -------------------------------------------------------------------------------


def test_the_error_names_layer_neuron_values_and_remedy() -> None:
    rules = zero("0", "1", stabilizer=stabilizers.Additive(0.5))
    model, x = two([1.0, -1.5], [1.0, 1.0]), torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    said = (
        r"2 non-finite values of relevance first arose in layer '0' under "
        r"ZeroRule\(stabilizer=Additive\(epsilon=0.5\)\) at output \(1, 0\) "
        r"\(z = -0.5, s\(z\) = 0, R = -0.375\).*moves the denominator.*away from 0"
    )
    with pytest.raises(NonFiniteRelevanceError, match=said):
        LRP(model, rules, nonfinite="raise").attribute(x, target=0)
    with pytest.warns(NonFiniteRelevanceWarning, match=said):
        LRP(model, rules).attribute(x, target=0)
    quiet = LRP(model, rules, nonfinite="ignore").attribute(x, target=0)
    assert quiet.isfinite().all(1).tolist() == [True, False]


def test_the_error_names_an_overflow_and_an_operation() -> None:
    model = two([300.0, 300.0], [1.0, 1.0], dtype=torch.float16)
    x = torch.tensor([[1.0, 1.0], [300.0, 1.0]]).half()
    said = r"1 non-finite pre-activations .* layer '0' .*\(1, 0\) \(z = inf.*float16.*wider dtype"
    with pytest.raises(NonFiniteRelevanceError, match=said):
        LRP(model, zero("0", "1"), nonfinite="raise").attribute(x, target=0)
    model = Between(FUNCTIONS["exp_0"][0]).eval()
    with pytest.raises(NonFiniteRelevanceError, match=r"operation 'exp_0'.*\(0, 1\) \(z = inf\)"):
        explainer = LRP(model, zero("a", "c"), nonfinite="raise", fallbacks="ignore")
        explainer.attribute(torch.tensor([[1.0, 2.0]]), 0)


def test_finite_trouble_is_no_error() -> None:
    model = two([1e4, -1e4 + 0.01], [1.0, 1.0])
    assert diagnose(model, ONES, 0, zero("0", "1")).verdict == "unstable"
    LRP(model, zero("0", "1"), nonfinite="raise").attribute(ONES, target=0)


def record(name: str, **changes) -> LayerRecord:
    flow = Flow(1.0, 1.0, 1.0)
    plain = LayerRecord(name, "Linear", "", "", "", (1, 1), True, flow, flow, Shares())
    return replace(plain, **changes)


def test_what_is_looked_for_in_which_order() -> None:
    grown = record("a", growth=3.0)
    loud = record("b", propagated=Flow(1.0, 2e3, 1.0))
    added = record("c", excess=2.0)
    bad = record("d", propagated=Flow(1.0, 1.0, 1.0, 1))
    overflowing = record("e", overflow=1)
    quiet = record("f")

    def first(*records: LayerRecord, **options) -> str | None:
        found = locate(records, **options)
        return None if found is None else found.name

    assert first(quiet) is None and first() is None
    assert first(quiet, loud, added) == "c" and first(quiet, added, loud) == "b"
    assert first(bad, loud) == "b" and first(loud, bad) == "d"
    assert first(loud, bad, grown, overflowing) == "a"
    assert first(overflowing, grown) == "e" and first(bad, overflowing) == "e"
    assert first(loud, threshold=3e3) is None
    assert first(grown, loud, added, nonfinite_only=True) is None
    assert first(bad, loud, grown, nonfinite_only=True) == "d"
    assert first(bad, grown, overflowing, nonfinite_only=True) == "e"
    assert first(record("g", peak=2e3)) == "g"
    for one in (grown, loud, added, bad, overflowing):
        assert cause_of(locate([one]), torch.float32).remedy


def test_softmax_and_attention_are_quiet() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.c = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
            return self.c(y).mean(1)

    torch.manual_seed(0)
    found = diagnose(Attention().eval(), torch.randn(2, 5, 4), 1, presets.epsilon())
    assert found.verdict == "stable"
