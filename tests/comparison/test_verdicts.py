"""Verdicts that are easily wrong: rounding that is none, doubling that is none, false places."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, compare, presets
from captum_lrp_stab.comparison import runs
from tests.helpers.networks import build

EPSILON = presets.epsilon(1e-3)  # an epsilon that float16 has too


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat() -> Tensor:
    """A picture with areas of one colour: max pools meet ties."""
    x = torch.full((1, 3, 16, 16), 0.5)
    x[:, :, 4:8, 5:9] = 1.0
    return x


def silent(model: nn.Module, x: Tensor, target: int) -> Tensor:
    return torch.zeros_like(x)


def silent_on_the_last(model: nn.Module, x: Tensor, target: int) -> Tensor:
    relevance: Tensor = LRP(model, EPSILON).attribute(x, target).clone()
    relevance[-1] = 0
    return relevance


def negated(model: nn.Module, x: Tensor, target: int) -> Tensor:
    return -LRP(model, EPSILON).attribute(x, target)


def noise(model: nn.Module, x: Tensor, target: int) -> Tensor:
    return drawn(*x.shape).to(x)


@pytest.mark.parametrize("reference", [silent, silent_on_the_last, negated, noise])
@pytest.mark.parametrize("x", [drawn(3, 3, 16, 16), flat()], ids=["noise", "flat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_other_maps_are_no_rounding(reference: Callable[..., Tensor], x: Tensor, dtype) -> None:
    model = build(pooled, dtype=dtype)
    assert compare(model, x.to(dtype), 1, EPSILON, reference).verdict == "different"


class Counting:
    """A stabilizer that is another in each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        return z + torch.where(z >= 0, 1.0, -1.0).to(z) * 1e-2 * self.calls


def test_two_runs_in_float64_that_differ_are_no_rounding() -> None:
    model, x = build(pooled, dtype=torch.float32), drawn(1, 3, 16, 16)
    assert compare(model, x, 1, EPSILON, "float64", stabilizer=Counting()).verdict == "different"
    assert compare(model, x, 1, EPSILON, "float64", stabilizer=0.1).verdict == "equal"


def test_autocast_is_rounding() -> None:
    model, x = build(pooled, dtype=torch.float32), drawn(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        done = compare(model, x, 1, EPSILON, "captum")
    assert (done.verdict, done.dtype) in [("equal", "bfloat16"), ("rounding", "bfloat16")]


def test_a_reference_that_knows_no_float64() -> None:
    model, x = build(pooled, dtype=torch.float32), drawn(1, 3, 16, 16)

    def single(model: nn.Module, x: Tensor, target: int) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return (1 + 8e-5) * LRP(model, EPSILON).attribute(x, target)

    done = compare(model, x, 1, EPSILON, single)
    assert done.verdict == "different"
    assert "rounding is not ruled out" in done.explanation


class Bias(nn.Module):
    """An addition with one summand of data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 6, bias=False), nn.Linear(6, 2)
        self.b = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b))


class Sum(nn.Module):
    """An addition of what functional calls give."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x)) + F.relu(self.b(x)))


@pytest.mark.parametrize("reference", ["zennit", "captum", "captum_driver"])
def test_an_addition_is_doubled_only_where_it_has_two_summands(reference: str) -> None:
    x = drawn(3, 4).double()
    bias = compare(build(Bias), x, 1, EPSILON, reference)
    assert (bias.verdict, bias.first.name) == ("different", "add_0")
    done = compare(build(Sum), x, 1, EPSILON, reference)
    assert [(d.name, d.where) for d in done.differences] == [
        ("doubled at a functional addition", "add_0")
    ]
    assert (done.verdict, done.first.name) == ("known difference", "add_0")


class SequenceFirst(nn.Module):
    """Inner layers whose first dimension is not the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.r, self.b, self.c = (
            nn.Linear(4, 6),
            nn.ReLU(),
            nn.Linear(6, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.r(self.a(x.transpose(0, 1))))[0])


@pytest.mark.parametrize("length", [5, 3])
@pytest.mark.parametrize("reference", ["captum", "captum_driver", "zennit"])
def test_layers_whose_batch_is_not_first(length: int, reference: str) -> None:
    done = compare(build(SequenceFirst), drawn(3, length, 4).double(), 1, EPSILON, reference)
    assert (done.verdict, done.first) == ("equal", None)
    sizes = [layer.output.relative_l2 for layer in done.layers if layer.output is not None]
    assert len(sizes) == 4
    assert max(sizes) < 1e-10


def test_errors_that_cancel_out_are_told() -> None:
    class Negated(EpsilonRule):
        def coefficient(self, *arguments: Any) -> Tensor:
            return -super().coefficient(*arguments)

    model = build(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    rules = [(["0", "2"], Negated, {"epsilon": 0.1})]
    done = compare(model, drawn(4, 6).double(), 1, rules, "captum_driver")
    assert done.verdict == "equal"
    assert "cancels out; they part at '2'" in done.explanation
    assert done.first.name == "2"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the many runs of a search, only a few are kept with their layers."""
    kept: list[int] = []
    recorded = runs.Runs._recorded

    def counting(self: Any, *arguments: Any) -> Any:
        found = recorded(self, *arguments)
        kept.append(len(self._recordings))
        return found

    monkeypatch.setattr(runs.Runs, "_recorded", counting)
    model, x = build(pooled), drawn(2, 3, 16, 16).double()
    assert compare(model, x, 1, EPSILON, noise).verdict == "different"
    assert len(kept) > max(kept)
    assert max(kept) <= runs._MOST_RECORDINGS


def test_three_differences_to_a_reference_whose_layers_are_not_seen() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    x = drawn(16, 6).double()
    with torch.no_grad():  # scores of either sign, or that of epsilon would make no difference
        model[2].bias -= model(x).mean(0)
    rules = [(["0"], GammaRule, {"gamma": 0.5}), (["2"], EpsilonRule, {"epsilon": 0.1})]
    others = [
        (["0"], GammaRule, {"gamma": 0.5, "bias": "captum"}),
        (["2"], EpsilonRule, {"epsilon": 0.1, "signed": False}),
    ]

    def other(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return LRP(model, others).attribute(x, target) / model(x)[:, target, None].detach()

    done = compare(model, x, 1, rules, other)
    assert {d.name for d in done.differences} == {
        "gamma's bias",
        "signed against unsigned epsilon",
        "normalised output",
    }
    assert done.verdict == "known difference"
    assert compare(model, x, 1, rules, noise).verdict == "different"
