"""Diagnosis and advice at the edges: odd models, rules and stabilizers; what is left in memory."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import ZBoxRule, ZeroRule, diagnose, presets
from captum_lrp_stab.diagnosis import advise, sweep
from captum_lrp_stab.errors import InputError, LRPError, ModelError
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")


def net(inner: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, inner), nn.ReLU(), nn.Linear(inner, 3)).eval()


X = torch.linspace(-1, 2, 24).reshape(4, 6)


class OfOneDtype(nn.Module):
    """A constant made in the forward pass, whatever the dtype of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(self.a(x), torch.eye(2)))


def test_a_model_that_cannot_run_in_float64_is_diagnosed() -> None:
    torch.manual_seed(0)
    found = diagnose(OfOneDtype(), X[:1], 0, presets.zero(), threshold=1.0001)
    assert found.origin is not None and found.dtype_is_cause is None


def test_a_model_that_cannot_run_in_float64_gets_no_advice() -> None:
    with pytest.raises(ModelError, match=r"cannot run in float64.*dtype of its input"):
        advise(OfOneDtype(), X[:1], 0, presets.zero())


@pytest.mark.parametrize("run", [diagnose, advise, sweep])
def test_parameters_that_are_not_finite_are_refused(run) -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"'0\.weight' has 1 non-finite"):
        run(model, X, 0, presets.epsilon())


@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_a_stabilizer_that_gives_nan_is_the_cause(form: str) -> None:
    found = diagnose(net(), X, 0, presets.zero(), stabilizer=lambda z: z * math.nan, form=form)
    assert found.verdict == "not finite" and found.cause is not None
    assert (found.cause.kind, found.origin.layer) == ("stabilizer", "2")


def test_captums_own_rules_keep_their_parameters_in_advice() -> None:
    rule = captum_rules.GammaRule
    name_map = [(["0"], rule, {"gamma": 2.0, "set_bias_to_zero": True}), (["2"], rule, {})]
    given = {tuple(n): p for n, _, p in advise(net(), X, 0, name_map).name_map}
    assert given[("0",)] == {"gamma": 2.0, "set_bias_to_zero": True}
    followed = diagnose(net(), X, 0, advise(net(), X, 0, name_map).name_map)
    asked = diagnose(net(), X, 0, name_map)
    torch.testing.assert_close(followed.relevances, asked.relevances, rtol=0, atol=0)


def test_boxes_of_one_shape_stay_apart_in_advice() -> None:
    low = [torch.full((6,), -5.0), torch.full((6,), -9.0)]
    name_map = [
        ([layer], ZBoxRule, {"low": bound, "high": 5.0})
        for layer, bound in zip("02", low, strict=True)
    ]
    found = advise(net(6), X, 0, name_map).name_map
    assert [float(parameters["low"][0]) for _, _, parameters in found] == [-5.0, -9.0]


def test_a_score_of_0_is_said() -> None:
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    found = diagnose(model, X[:1], 0, presets.epsilon())
    assert found.verdict == "stable" and "the score is 0" in found.explanation()


def test_the_sum_of_relevance_that_is_not_finite_is_no_number() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    found = diagnose(model, torch.ones(1, 2), 0, presets.zero(), form="relevance")
    assert found.verdict == "not finite"
    assert "2 NaN/Inf" in found.table()[1][-1]
    assert "nan" not in str(found)


@pytest.mark.parametrize("tolerance", [0, -1, math.nan, math.inf, True, "1e-3"])
def test_tolerances_are_checked(tolerance) -> None:
    with pytest.raises(InputError, match=r"tolerance is .*; give a positive number"):
        advise(net(), X, 0, presets.epsilon(), tolerance=tolerance)


class Residual(nn.Module):
    """An addition in place, and a batch norm that is merged."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(6, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        out = self.norm(self.b(h))
        out += h
        return F.relu_(out)


def test_no_tensor_of_a_pass_is_left() -> None:
    """Cycles through the graph cannot be found by the garbage collector."""
    model, carried = Residual().eval(), [forms.form_of(form, 1e-6) for form in forms.NAMES]
    tasks = [Task(model, (X,), 0, None, presets.epsilon(), form=form) for form in carried]

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    for task in tasks:
        task.propagate()
    before = alive()
    for task in 5 * tasks:
        task.propagate()
    assert alive() <= before


def test_an_error_of_captums_own_is_one_of_ours() -> None:
    model = nn.Sequential(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 1, 3)), nn.Flatten())

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(1, 1, 3)
            self.inner.pad = nn.ZeroPad2d(1)
            self.flat = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            return self.flat(self.inner(self.inner.pad(x)))

    x = torch.ones(1, 1, 4, 4)
    assert diagnose(model, x, 0, [(["0.1"], ZeroRule, {})], form="stock").layers
    with pytest.raises(LRPError, match=r"'inner' .* contains a module of its own"):
        diagnose(Odd(), x, 0, [(["inner"], ZeroRule, {})], form="stock")
