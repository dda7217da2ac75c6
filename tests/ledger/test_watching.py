"""Watching several sets of rules after one forward pass shows what each shows alone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import EpsilonRule, FlatRule, ZeroRule, presets
from captum_lrp_stab.by_name import stabilizer_of
from captum_lrp_stab.images.reading import default_picture
from captum_lrp_stab.ledger.watching import Watched, watch, watch_each
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.study.investigation import investigate
from captum_lrp_stab.task import Task, run_each
from tests.helpers.networks import Shortcut, build
from tests.helpers.several import Several
from tests.helpers.studies import classifier

NAMES = ("none", "signed:0.1", "additive:0.1", "clip:0.1", "quadratic-mean:0.1")
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Overflow(nn.Module):
    """A gate that overflows, and a layer whose denominators are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) * torch.exp(1000 * x.abs())).softmax(1)


def counting(model: nn.Module) -> list[int]:
    """Return a list that grows with each forward pass."""
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


def all_of(tasks: list[Task]) -> list[Watched]:
    seen: list[Watched] = []
    watch_each(tasks, seen.append)
    return seen


def assert_as_alone(tasks: list[Task]) -> list[Watched]:
    together = all_of(tasks)
    assert len(together) == len(tasks)
    for seen, task in zip(together, tasks, strict=True):
        alone = watch(task)
        for actual, expected in zip(seen.done.relevances, alone.done.relevances, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
        # as text: NaN is not equal to itself
        assert list(map(repr, seen.records)) == list(map(repr, alone.records))
        assert repr(seen.ledger) == repr(alone.ledger)
    return together


def under(model: nn.Module, x: Tensor, rules=None) -> list[Task]:
    one = Task(model, (x,), 1, rules=rules)
    return [replace(one, stabilizer=stabilizer_of(name)) for name in NAMES]


@pytest.mark.parametrize("preset", ["zero", "epsilon_plus", "epsilon_alpha2_beta1"])
def test_each_is_as_alone(preset) -> None:
    model = build(Several)
    seen = assert_as_alone(under(model, X, getattr(presets, preset)()(model, X)))
    # the control: the stabilizers are not alike, nor are the records
    assert len({repr(s.records) for s in seen}) == len(NAMES)
    assert {r.stabilizer for s in seen for r in s.records if r.stabilizer} == {
        repr(stabilizer_of(name)) for name in NAMES
    }


def test_attention_is_as_alone() -> None:
    model = build(Shortcut)
    assert_as_alone(under(model, X[:, :2], presets.epsilon()(model, X[:, :2])))


def test_what_is_not_finite_is_as_alone() -> None:
    model = build(Overflow)
    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    seen = assert_as_alone(under(model, x, presets.zero()(model, x)))
    assert not any(s.done.is_finite for s in seen)
    assert any(r.overflow for s in seen for r in s.records)


def test_rules_that_differ_are_told_by_their_names() -> None:
    model = build(Several)
    passes = counting(model)
    one = Task(model, (X,), 1)
    layers = ["first", "last"]
    rules = [[(layers, EpsilonRule, {"epsilon": 0.5})], [(layers, ZeroRule, {})]]
    seen = all_of([replace(one, rules=name_map) for name_map in rules])
    assert len(passes) == 2  # to plan, to attribute
    told = [{r.name: r.rule for r in s.records} for s in seen]
    assert "EpsilonRule" in told[0]["first"]
    assert "ZeroRule" in told[1]["first"]


def test_a_rule_that_sends_relevance_behind_a_product_is_as_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    model = build(lambda: model)
    model[0].running_mean.zero_()
    rules = [(["1"], FlatRule, {}), (["3"], EpsilonRule, {"epsilon": 0.1})]
    assert_as_alone(under(model, X, rules))


def test_the_study_of_a_picture_takes_one_forward_pass_for_all_stabilizers() -> None:
    counts = {}
    for names in (NAMES[1:2], NAMES[1:]):
        c = classifier()
        passes = counting(c.model)
        investigate(c, default_picture(), names=names, rules="epsilon")
        counts[len(names)] = len(passes)
    assert counts[1] == counts[4]


def test_other_forms_take_one_each() -> None:
    counts = []
    for names in (NAMES[1:2], NAMES[1:]):
        c = classifier()
        passes = counting(c.model)
        investigate(c, default_picture(), names=names, rules="epsilon", form="relevance")
        counts.append(len(passes))
    assert counts[1] == counts[0] + 3


def test_progress_is_told_before_each() -> None:
    said: list[str] = []
    found = investigate(
        classifier(), default_picture(), names=NAMES, rules="epsilon", progress=said.append
    )
    assert said == [run.name for run in found.records[0].runs]


@pytest.mark.parametrize("form", forms.NAMES)
def test_runs_come_in_order(form) -> None:
    model = build(Several)
    tasks = [
        replace(s, form=forms.form_of(form, s.stabilizer))
        for s in under(model, X, presets.epsilon()(model, X))
    ]
    calls: list[Tensor] = []
    done = run_each(tasks, after=lambda p: calls.append(p.relevances[0]))
    assert [p.relevances[0] is c for p, c in zip(done, calls, strict=True)] == [True] * len(NAMES)
