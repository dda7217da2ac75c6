"""How often a comparison runs each side, what it tells meanwhile, and that it comes to an end."""

import io
import itertools
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, compare, presets, stabilizers
from captum_lrp_stab.comparison import comparing, pair, search
from captum_lrp_stab.comparison.agreement import agreement
from captum_lrp_stab.comparison.known_differences import GAMMA_BIAS, SIGNED_STABILIZER
from captum_lrp_stab.task import Task
from captum_lrp_stab.tensors.blocks import spaced
from tests.helpers.agreement import drawn
from tests.helpers.networks import build, cnn

OURS = "captum-lrp-stab"
X = drawn(2, 3, 8, 8)


def told(model: nn.Module, x: Tensor, rules: Any, reference: Any, **options: Any) -> Any:
    """A comparison, and what it says of its runs."""
    steps: list[str] = []
    done = compare(model, x, 1, rules, reference, progress=steps.append, **options)
    return done, steps


# how often ---------------------------------------------------------------------------------------


def test_what_agrees_runs_once_on_each_side() -> None:
    for reference in ("float64", "zennit", "captum", "modified_forward"):
        done, steps = told(build(cnn, dtype=torch.float32), X.float(), presets.epsilon(), reference)
        assert done.verdict == "equal"
        assert steps == [OURS, reference]


def test_rounding_against_float64_takes_one_more_run() -> None:
    """That run shows that float64 gives the same each time."""
    model = build(cnn, dtype=torch.float32)
    done, steps = told(model, X.float(), presets.zero(), "float64", tolerance=1e-12)
    assert done.verdict == "rounding" and "in float64 it is 0" in done.explanation
    assert steps == [OURS, "float64", f"{OURS} in float64"]


def test_rules_are_not_tried_where_the_forward_pass_differs() -> None:
    """No rule of ours changes what a layer computes."""

    class Other(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.body = build(cnn, seed=1)[0]
            self.rest = model[1:]

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.body(x))

    model = build(cnn)
    other = build(cnn)
    other[0].weight.data.mul_(1.1)
    done, steps = told(model, X, presets.epsilon_plus(), LRP(other, presets.epsilon_plus()))
    assert done.verdict == "different" and done.first.name == "0"
    assert done.first.direction == "forward"
    assert not [step for step in steps if "gamma" in step or "epsilon" in step]
    assert len(steps) <= 5


def test_only_what_acts_where_the_sides_part_is_tried() -> None:
    """They part at the last layer, which has an epsilon; gamma's bias is below."""
    rules = [(["0", "3"], GammaRule, {}), (["6"], EpsilonRule, {"epsilon": 0.1})]
    other = [(["0", "3"], GammaRule, {}), (["6"], EpsilonRule, {"epsilon": 0.3})]
    model = build(cnn)
    done, steps = told(model, X, rules, LRP(model, other))
    assert done.verdict == "different" and done.first.name == "6"
    tried = [step for step in steps if "trial" in step]
    assert tried and not any("gamma" in step for step in tried)


def test_two_differences_of_one_layer_are_found_together() -> None:
    """Neither alone lets the sides agree any further."""
    model = build(cnn)
    (target, *_) = (model(X) < 0).all(0).nonzero().flatten().tolist()  # where the signs matter
    rules = [(["0", "3"], EpsilonRule, {}), (["6"], GammaRule, {"stabilizer": 0.01})]
    options = {"stabilizer": stabilizers.Additive(0.01), "bias": "captum"}
    other = LRP(model, [(["0", "3"], EpsilonRule, {}), (["6"], GammaRule, options)])
    done = compare(model, X, target, rules, other)
    assert done.verdict == "known difference"
    assert {d.name for d in done.differences} == {GAMMA_BIAS.name, SIGNED_STABILIZER.name}


def test_the_search_comes_to_an_end(monkeypatch) -> None:
    def reference(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return LRP(model, presets.epsilon_plus()).attribute(x, target).roll(1, -1)

    model = build(cnn)
    whole, steps = told(model, X, presets.epsilon(0.1), reference)
    assert whole.verdict == "different" and "ended" not in whole.explanation
    assert max(trials(steps)) > 2
    monkeypatch.setattr(search, "MOST_TRIALS", 2)
    monkeypatch.setattr(comparing, "MOST_TRIALS", 2)
    short, steps = told(model, X, presets.epsilon(0.1), reference)
    assert short.verdict == "different"
    assert short.explanation.endswith("the search for known differences ended after 2 trials")
    assert max(trials(steps)) == 2


def trials(steps: list[str]) -> list[int]:
    """The numbers of the trials that had a run."""
    pattern = r"[\w-]+, trial (\d+) of at most \d+: without \w[\w '0-9-]+"
    found = (re.fullmatch(pattern, step) for step in steps if "trial" in step)
    return [int(match[1]) for match in found]


# what is computed of each layer ------------------------------------------------------------------


def test_what_a_layer_hands_down_to_one_reader_is_compared_once(monkeypatch) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return agreement(*arguments)

    monkeypatch.setattr(pair, "agreement", counted)
    model = build(cnn)
    done = compare(model, X, 1, presets.epsilon(), LRP(model, presets.epsilon_plus()))
    seen = [layer for layer in done.layers if layer.output and layer.input]
    assert len(seen) == 8
    # the outputs, the first input and that of all
    assert len(calls) == len(seen) + 2
    for before, after in itertools.pairwise(seen):
        assert after.input == before.output
    expected = agreement(done.relevances, done.reference_relevances)
    assert seen[0].input == expected == done.overall


def test_large_layers_are_ranked_in_part() -> None:
    a = drawn(2, 300, 400)
    b = a + 0.5 * drawn(2, 300, 400, seed=1)
    whole, part = agreement([a], [b]), agreement([a], [b], 2**14)
    assert part.spearman != whole.spearman
    assert part.spearman == pytest.approx(whole.spearman, abs=0.01)
    for name in ("max_absolute", "relative_l2", "cosine", "pearson", "top_overlap", "total"):
        assert getattr(part, name) == getattr(whole, name)
    small = [drawn(2, 100)], [drawn(2, 100, seed=1)]
    assert agreement(*small, 2**14) == agreement(*small)


def test_spaced_elements_are_of_every_column() -> None:
    t = torch.arange(12 * 64).reshape(12, 64)
    assert torch.equal(spaced(t, None), t.flatten()) and torch.equal(spaced(t, 10**6), t.flatten())
    some = spaced(t, 100)
    assert 50 < len(some) <= 100
    assert len((some % 64).unique()) > 32


# copies ------------------------------------------------------------------------------------------


class Weight(nn.Parameter):
    """A parameter of a type of its own."""


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.own = Weight(torch.rand(4))
        self.register_buffer("scale", torch.rand(4))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) * self.scale * self.own.detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_copy_in_another_dtype_is_whole_and_apart(dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Shared().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    copied = Task(model, (torch.ones(1, 4),)).copied(dtype).model
    assert copied.second.weight is copied.first.weight is not model.first.weight
    assert type(copied.own) is Weight and isinstance(copied.first.bias, nn.Parameter)
    assert copied.first.weight.requires_grad and not copied.second.bias.requires_grad
    assert copied.count.dtype is torch.int64
    for name, t in copied.state_dict().items():
        assert t.dtype is (dtype if t.is_floating_point() else torch.int64)
        torch.testing.assert_close(t, before[name].to(t.dtype), rtol=0, atol=0)
    for t in copied.state_dict().values():
        t.zero_()
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])


# the bar -----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """What looks like a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("seen", [True, False], ids=["terminal", "file"])
def test_a_bar_is_shown_where_it_is_asked_for_and_seen(asked, seen, monkeypatch) -> None:
    written = Terminal() if seen else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setenv("TERM", "xterm")
    model = build(cnn)
    done = compare(model, X, 1, presets.zero(), "float64", progress=asked)
    assert done.verdict == "equal"
    assert bool(written.getvalue()) == (asked and seen)
    if asked and seen:
        assert "done" in written.getvalue()
