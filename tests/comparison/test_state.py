"""``compare`` leaves the model, the tensors and the random state as they were."""

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from zennit.composites import EpsilonPlus

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, attach_rules, compare, presets
from captum_lrp_stab.errors import InputError, ReferenceFailedError
from tests.helpers.compared import (
    EPSILON,
    NAMED,
    TARGET,
    VECTORS,
    asked,
    dense,
    every_named,
    fails,
    ones,
)
from tests.helpers.comparisons import by_gradient
from tests.helpers.states import FAILURES, Model, Trouble, make, name_map, state, tensor_state


def rules_of(model: nn.Module) -> dict[str, Any]:
    """The rules on the modules, and what stands on each, tensors and hooks by identity."""
    found = {n: vars(m)["rule"] for n, m in model.named_modules() if "rule" in vars(m)}
    return {
        name: (id(rule), type(rule), {key: id(value) for key, value in vars(rule).items()})
        for name, rule in found.items()
    }


def surroundings() -> dict[str, Any]:
    """Random numbers, and what all rules and modules share."""
    _, *numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": (numpy_state[0].tobytes(), *numpy_state[1:]),
        "rules": [
            (dict(rule.relevance_input), dict(rule.relevance_output), rule.STABILITY_FACTOR)
            for rule in (captum_rules.PropagationRule, captum_rules.GammaRule)
        ],
        "hooks": len(nn.modules.module._global_forward_hooks),
        "modes": torch._C._len_torch_function_stack(),
        "dtype": torch.get_default_dtype(),
    }


def snapshot(model: nn.Module, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    hooks = [None if t._backward_hooks is None else dict(t._backward_hooks) for t in tensors]
    given = [(tensor_state(t), t._version) for t in tensors]
    around = {"given": given, "hooks": hooks, "rules": rules_of(model)}
    return state(model) | around | {"surroundings": surroundings()}


@contextmanager
def nothing_changes(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    before = snapshot(model, tensors)
    yield
    assert snapshot(model, tensors) == before


CHANGES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "value": lambda m, x: m[0].weight.data.add_(1),
    "memory": lambda m, x: setattr(m[0].weight, "data", m[0].weight.data.clone()),
    "attribute": lambda m, x: setattr(m[0], "activations", {}),
    "rule": lambda m, x: setattr(m[0], "rule", captum_rules.EpsilonRule()),
    "rule-lost": lambda m, x: delattr(m[0], "rule"),
    "rule-attribute": lambda m, x: setattr(m[0].rule, "STABILITY_FACTOR", 1e-6),
    "rule-relevance": lambda m, x: setattr(m[0].rule, "relevance_input", {}),
    "class": lambda m, x: setattr(m[0], "__class__", type("Linear", (nn.Linear,), {})),
    "input": lambda m, x: x.data.add_(1),
    "input-hook": lambda m, x: x.register_hook(print),
    "input-grad": lambda m, x: setattr(x, "grad", torch.ones_like(x)),
    "input-attribute": lambda m, x: setattr(x, "hook_registered", True),
    "torch": lambda m, x: torch.rand(1),
    "random": lambda m, x: random.random(),
    "numpy": lambda m, x: np.random.rand(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=[*CHANGES])
def test_the_check_sees_a_change(change) -> None:
    model, x = dense(), VECTORS.clone().requires_grad_()
    model[0].rule = captum_rules.GammaRule()
    with pytest.raises(AssertionError), nothing_changes(model, x):
        change(model, x)


REFERENCES: dict[str, Callable[[nn.Module], Any]] = {
    **{name: lambda model, name=name: name for name in NAMED},
    "LRP": lambda model: LRP(model, presets.epsilon_plus()),
    "composite": lambda model: EpsilonPlus(),
    "function": lambda model: ones,
    "failing": lambda model: fails,
}


every_reference = pytest.mark.parametrize("choose", REFERENCES.values(), ids=[*REFERENCES])


Kind = Callable[[Tensor], Tensor]


def with_grad(x: Tensor) -> Tensor:
    x.requires_grad_()
    x.grad = torch.ones_like(x)
    return x


KINDS: dict[str, Kind] = {
    "plain": lambda x: x,
    "with grad": with_grad,
    "no leaf": lambda x: x.requires_grad_() * 1,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *itertools.product(["plain"], REFERENCES),
        *itertools.product(["with grad", "no leaf"], ["zennit", "captum", "float64"]),
    ],
)
def test_state_is_as_before(kind, name) -> None:
    model, x = make()
    x, factor = KINDS[kind](x), torch.full((5,), 2.0, dtype=torch.float64)
    target = torch.tensor([0, 1, 2])
    reference = REFERENCES[name](model)
    expected = pytest.raises(ReferenceFailedError) if reference in (fails, ones) else nullcontext()
    with nothing_changes(model, x, factor, target), expected:
        # the functions take no fourth argument: an exception like another
        compare(model, x, target, EPSILON, reference, additional_forward_args=(factor,))


@every_reference
@pytest.mark.parametrize("failure", FAILURES)
def test_state_is_as_before_after_an_exception(failure, choose) -> None:
    model, x = make()
    model.fails_in = failure
    x = with_grad(x)
    with nothing_changes(model, x), pytest.raises((Trouble, ReferenceFailedError)):
        compare(model, x, TARGET, name_map(failure), choose(model))


class Alarm:
    """Raises in one of the forward passes, whether of the model or of a copy."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Trouble("alarm")

    def __deepcopy__(self, memo: Any) -> "Alarm":
        return self


class Alarmed(Model):
    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        y = super().forward(x, factor)
        self.alarm()
        return y


def outcome(model: nn.Module, x: Tensor, reference: Any) -> str:
    try:
        return compare(model, x, TARGET, name_map(""), reference).verdict
    except (Trouble, ReferenceFailedError) as error:
        return type(error).__name__


@every_reference
def test_state_is_as_before_whichever_pass_fails(choose) -> None:
    """Each comparison runs the model several times; some passes fail without harm.

    The first are of different kinds, those of the search for known differences of one.
    """
    model, x = make()
    model.__class__ = Alarmed
    model.alarm = Alarm(0)
    expected = outcome(model, x, choose(model))
    passes, found = model.alarm.calls, []
    for at in (*range(1, min(passes, 8)), passes):
        model.alarm = Alarm(at)
        with nothing_changes(model, x):
            found.append(outcome(model, x, choose(model)))
    assert passes >= 2
    assert found[:2] == ["Trouble", "Trouble"]  # this package's own passes
    model.alarm = Alarm(0)
    assert outcome(model, x, choose(model)) == expected


@every_named
def test_state_is_as_before_after_an_interruption(reference) -> None:
    model, x = make()

    def interrupt(step: str) -> None:
        if step != "captum-lrp-stab":
            raise KeyboardInterrupt

    with nothing_changes(model, x), pytest.raises(KeyboardInterrupt):
        compare(model, x, TARGET, EPSILON, reference, progress=interrupt)


ON_MODULES: dict[str, Callable[[], dict[int, Any]]] = {
    "ours": lambda: {0: GammaRule(0.3), 2: EpsilonRule(0.1)},
    "Captum's": lambda: {0: captum_rules.EpsilonRule(1e-3)},
}


@every_named
@pytest.mark.parametrize("rules", ON_MODULES.values(), ids=[*ON_MODULES])
def test_rules_on_the_modules_are_as_before(rules, reference) -> None:
    model, x = dense(), VECTORS.clone()
    for index, rule in rules().items():
        model[index].rule = rule
    with nothing_changes(model, x):
        compare(model, x, TARGET, None, reference)
        compare(model, x, TARGET, EPSILON, reference)
    with nothing_changes(model, x), pytest.raises(InputError):
        compare(model, x, 99, None, reference)


@pytest.mark.parametrize("reference", NAMED[1:])
def test_captums_rules_that_change_weights_are_as_before(reference) -> None:
    model, x = dense(), VECTORS.clone()
    model[0].rule, model[2].rule = captum_rules.GammaRule(0.3), captum_rules.Alpha1_Beta0_Rule()
    with nothing_changes(model, x):
        compare(model, x, TARGET, None, reference)


def test_rules_of_a_reference_are_as_before() -> None:
    model, other, x = dense(), dense(), VECTORS.clone()
    other[0].rule = GammaRule(0.3)
    with nothing_changes(other, x):
        comparison = compare(model, x, TARGET, EPSILON, LRP(other))
    assert comparison.verdict == "different"


def test_a_stabilizer_given_once_is_not_kept() -> None:
    """Not by the rules of a reference, nor by those attached to a model."""
    model, rules = dense(), [(["0", "2"], GammaRule, {"gamma": 0.3})]
    other = LRP(dense(), rules)
    before = other.attribute(VECTORS, target=TARGET)
    with attach_rules(model, rules):
        comparison = compare(model, VECTORS, TARGET, None, other, stabilizer=0.5)
        assert comparison.verdict == "equal"
        attached = LRP(model).attribute(VECTORS, target=TARGET)
    for after in (attached, other.attribute(VECTORS, target=TARGET)):
        assert torch.equal(after, before)
    for relevances in (comparison.relevances, comparison.reference_relevances):
        assert not torch.allclose(relevances[0], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_reference_of_ours_on_a_model_in_another_dtype(dtype) -> None:
    """It runs in the dtype of the inputs, on a copy."""
    other = dense().to(dtype)
    here = torch.float64 if dtype == torch.float32 else torch.float32
    model, x = copy.deepcopy(other).to(here), VECTORS.to(here)
    with nothing_changes(other, x):
        assert compare(model, x, TARGET, EPSILON, LRP(other, EPSILON)).verdict == "equal"


def test_hooks_of_the_user_stay_and_change_both_sides() -> None:
    model, x = dense(), VECTORS.clone()
    plain = asked("captum_driver").relevances[0]
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    model[0].register_full_backward_hook(lambda module, before, after: None)
    with nothing_changes(model, x):
        comparison = compare(model, x, TARGET, EPSILON, "float64")
    assert comparison.verdict == "equal"
    assert not torch.allclose(comparison.relevances[0], plain)


MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode}


@pytest.mark.parametrize(
    ("mode", "made"), [("no_grad", "outside"), ("inference", "outside"), ("inference", "inside")]
)
@pytest.mark.parametrize("name", [*NAMED, "LRP", "function"])
def test_works_in_every_grad_mode(mode, name, made) -> None:
    model = dense()
    reference = by_gradient if name == "function" else REFERENCES[name](model)
    expected = asked(reference, model=model)
    with MODES[mode]():
        x = VECTORS.clone() if made == "inside" else VECTORS
        found = asked(reference, model=model, inputs=x)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode == "inference")
    assert found.to_json() == expected.to_json()
