"""Relevance that passes an operation under its plain gradient: said once, and where."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, compare, diagnose, presets, visualize
from captum_lrp_stab.diagnosis import advise
from captum_lrp_stab.errors import FallbackError, FallbackWarning, InputError, LRPWarning
from tests.helpers.networks import Doubled, build

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Steps(nn.Module):
    """Two layers, and between them what is given."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(6, 6), nn.Linear(6, 2), between
        self.recurrent = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        if self.between is nn.LSTM:
            return self.last(self.recurrent(z[:, None])[0][:, 0])
        return self.last(self.between(z))


def steps(between: Any) -> nn.Module:
    return build(lambda: Steps(between))


def said(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [warning for warning in caught if issubclass(warning.category, LRPWarning)]


@pytest.mark.parametrize(
    ("name", "between"),
    [
        ("exp_0", torch.exp),
        ("softplus_0", F.softplus),
        ("sigmoid_0", torch.sigmoid),
        ("recurrent", nn.LSTM),
        ("Doubled", Doubled.apply),  # no torch function: the finished graph alone shows it
        ("logsumexp_0", lambda z: z.logsumexp(1, keepdim=True).expand(-1, 6)),
        ("exp_0", lambda z: z.add_(1).exp_()),
    ],
)
def test_each_is_named_once(name, between) -> None:
    model = steps(between)
    explainer = LRP(model)
    (warning,) = said(lambda: explainer.attribute(X, target=1))
    assert warning.category is FallbackWarning
    assert f"passes 1 operation under its plain gradient: {name} (" in str(warning.message)
    for remedy in ("plan", "fallbacks='ignore'", "strict=True"):
        assert remedy in str(warning.message)
    assert warning.filename == __file__
    assert not said(lambda: explainer.attribute(X, target=0))
    assert not said(lambda: explainer.attribute_many(X, [0, 1]))
    assert len(said(lambda: LRP(model).attribute(X, target=1))) == 1  # another explainer
    assert not said(lambda: LRP(model, fallbacks="ignore").attribute(X, target=1))
    with pytest.raises(FallbackError, match=name):
        LRP(model, strict=True).attribute(X, target=1)


@pytest.mark.parametrize(
    "between",
    [
        F.gelu,
        lambda z: z * torch.sigmoid(z.exp()),  # what a gate is made of gets none
        lambda z: z + 0 * z.detach().exp(),
        lambda z: z.softmax(1) * z,
        lambda z: (z.exp(), z)[1],  # which nobody reads
        lambda z: (Doubled.apply(z), z)[1],
    ],
)
def test_nothing_is_said_where_none_is_passed(between) -> None:
    assert not said(lambda: LRP(steps(between)).attribute(X, target=1))


def test_a_place_met_later_is_named_alone() -> None:
    model = steps(lambda z: z.exp() if len(z) == 3 else F.softplus(z).exp())
    explainer = LRP(model)
    assert len(said(lambda: explainer.attribute(X, target=1))) == 1
    (warning,) = said(lambda: explainer.attribute(X[:2], target=1))
    assert "1 operation under its plain gradient: softplus_0 (" in str(warning.message)


def test_the_first_five_are_named() -> None:
    model = nn.Sequential(*(nn.Softplus() for _ in range(7)))
    (warning,) = said(lambda: LRP(model).attribute(X, target=1))
    start = "relevance passes 7 operations under their plain gradient: 0 (Softplus: "
    assert str(warning.message).startswith(start)
    assert "4 (Softplus: no LRP rule is known for this operation) and 2 more; there it" in str(
        warning.message
    )


ONCE: dict[str, Callable[[nn.Module], Any]] = {
    "a layer": lambda m: LayerLRP(m, m.first).attribute(X, target=1),
    "several targets": lambda m: LRP(m).attribute_many(X, [0, 1]),
    "in batches": lambda m: LRP(m).attribute(X, target=1, internal_batch_size=1),
    "several sets of rules": lambda m: LRP(m).attribute_many(
        X, [0, 1], rules=[presets.zero(), presets.epsilon_plus_flat()]
    ),
    "a layer that is checkpointed": lambda m: LRP(m, checkpoint=["first"]).attribute(X, target=1),
    "a noise tunnel": lambda m: NoiseTunnel(LRP(m)).attribute(X, nt_samples=3, target=1),
}


@pytest.mark.parametrize("name", ONCE)
def test_it_is_said_once_whatever_the_call(name) -> None:
    warning, *more = said(lambda: ONCE[name](steps(torch.exp)))
    assert not more
    assert warning.category is FallbackWarning
    assert warning.filename == __file__


def test_inside_a_checkpoint_and_beside_it() -> None:
    model = build(lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Softplus()), nn.ELU()))
    (warning,) = said(lambda: LRP(model, checkpoint=["0"]).attribute(X, target=1))
    assert "0.1 (Softplus" in str(warning.message)
    custom = steps(lambda z: Doubled.apply(z))
    whole = build(lambda: nn.Sequential(nn.Linear(6, 6), custom))
    (warning,) = said(lambda: LRP(whole, checkpoint=["1"]).attribute(X, target=1))
    assert "Doubled (autograd.Function: a custom backward pass)" in str(warning.message)


def test_a_grid_of_heatmaps_says_it_once() -> None:
    model = build(
        lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(72, 2))
    )
    picture = torch.rand(1, 3, 8, 8).double()
    rules = {"zero": presets.zero(), "z+": presets.epsilon_plus()}
    call = lambda: visualize.rules_by_stabilizers(model, picture, 1, rules, {"": 1e-6})  # noqa: E731
    assert len(said(call)) == 1


def test_the_value_is_checked() -> None:
    for explainer in (lambda m, **k: LRP(m, **k), lambda m, **k: LayerLRP(m, m.first, **k)):
        with pytest.raises(InputError, match="fallbacks is 'no'; give 'warn' or 'ignore'"):
            explainer(steps(torch.exp), fallbacks="no")


# what looks at a pass says it in its own words, and warns of nothing ------------------------------


def test_a_diagnosis_says_it_beside_its_verdict() -> None:
    found = diagnose(steps(F.softplus), X, 1, presets.epsilon())
    assert found.verdict == "stable"
    assert found.fallbacks == ("softplus_0 (softplus: no LRP rule is known for this operation)",)
    said = "stable, but relevance passes 1 operation under its plain gradient: softplus_0 (softplus"
    assert str(found).startswith(said)
    assert found.conclusion().startswith(said)
    assert found.facts()["fallbacks"] == list(found.fallbacks)
    assert found.warnings == ()
    plain = diagnose(steps(F.relu), X, 1, presets.epsilon())
    assert plain.fallbacks == ()
    assert str(plain).startswith("stable: relevance is finite")


def test_a_diagnosis_that_is_not_stable_says_it_too() -> None:
    model = steps(F.softplus)
    with torch.no_grad():
        model.last.weight.copy_(torch.tensor([[1.0, -1.0] * 3] * 2) * 1e3)
        model.last.bias.zero_()
    found = diagnose(model, X, 1, presets.zero(), threshold=1.01)
    assert found.verdict == "unstable"
    assert str(found).startswith("unstable, and relevance passes 1 operation under its plain")


def test_what_runs_many_passes_is_silent() -> None:
    model = steps(F.softplus)
    assert not said(lambda: compare(model, X, 1, presets.epsilon(), "float64"))
    assert not said(lambda: advise(model.float(), X.float(), 1, presets.zero()))
