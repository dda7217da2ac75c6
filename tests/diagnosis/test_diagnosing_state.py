"""A diagnosis leaves everything as it was, sees LRP's own relevance, and prints whatever it saw."""

import json
import random
import threading
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    FlatRule,
    GammaRule,
    ZeroRule,
    attach_rules,
    diagnose,
    presets,
    stabilizers,
)
from captum_lrp_stab.errors import InputError, LRPError, ModelError, RuleError, StabilizerError
from captum_lrp_stab.propagation import forms
from tests.helpers.networks import Residual, TwoInputs, build, cnn
from tests.helpers.states import Model, Trouble, bad_layer, make, name_map, unchanged


def generators() -> tuple[Any, ...]:
    keys, *rest = np.random.get_state()[1:]
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest


@pytest.fixture(autouse=True)
def nothing_global_changes():
    def seen() -> tuple[Any, ...]:
        autocast = [
            (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")
        ]
        grads = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return autocast, grads, torch.get_default_dtype(), torch.is_anomaly_enabled()

    before = seen()
    yield
    assert seen() == before


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", forms.NAMES)
def test_nothing_is_left_behind(form, mode) -> None:
    model, x = make()
    factor = torch.rand(3, 5, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    model.out.register_forward_hook(lambda *a: None)
    before = generators()
    options: dict[str, Any] = {"form": form, "additional_forward_args": factor}
    if form == "relevance":  # where 0/0 is not 0
        options["stabilizer"] = 1e-3
    with mode(), unchanged(model, x, factor):
        found = diagnose(model, x, 1, name_map(""), **options)
    assert generators() == before
    assert found.verdict == "stable" and not found.relevances[0].requires_grad
    assert not found.score.requires_grad
    again = diagnose(model, x, 1, name_map(""), **options)
    assert again.to_json() == found.to_json() and torch.equal(*again.relevances, *found.relevances)


def test_nothing_is_left_behind_where_there_is_trouble() -> None:
    """The float64 copy and the receptive field run too."""
    model, x = make()
    bad_layer(model.float())
    x = x.float()
    rules = [(["conv", "hidden", "out"], ZeroRule, {})]
    before = generators()
    for form in ("relevance", "modified-forward"):
        with unchanged(model, x):
            found = diagnose(model, x, 1, rules, form=form)
        assert found.verdict == "not finite" and found.dtype_is_cause is False and found.sees
    assert generators() == before


@pytest.mark.parametrize("form", forms.NAMES)
@pytest.mark.parametrize("failure", ["forward", "backward", "groups", "stabilizer"])
def test_nothing_is_left_behind_after_an_error(failure, form) -> None:
    model, x = make()
    if failure in ("forward", "backward"):
        model.fails_in = failure
    expected: Any = (Trouble, ModelError) if form == "relevance" else Trouble
    before = generators()
    with unchanged(model, x), pytest.raises(expected):
        diagnose(model, x, 1, name_map(failure), form=form)
    assert generators() == before
    model.fails_in = ""
    # and the next one is as if nothing had been
    fresh, _ = make()
    first = diagnose(model, x, 1, name_map(""))
    assert first.to_json() == diagnose(fresh, x, 1, name_map("")).to_json()


class SometimesFailing:
    """Fails when called for the second time: in the backward pass, or in the float64 copy."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, z: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise Trouble("late")
        return z


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_stabilizer_that_fails_later(calls) -> None:
    model, x = make()
    bad_layer(model.float())
    x = x.float()
    rules = [(["hidden"], ZeroRule, {"stabilizer": SometimesFailing(calls)})]
    with unchanged(model, x):
        try:
            found = diagnose(model, x, 1, rules, form="relevance")
        except Trouble:
            return
    assert calls > 0 and found.verdict == "not finite"


def test_a_model_that_cannot_be_copied() -> None:
    class Uncopied(Model):
        def __deepcopy__(self, memo: Any) -> Any:
            raise Trouble("copied")

    torch.manual_seed(0)
    model = Uncopied().eval()
    bad_layer(model)
    rules = [(["conv", "hidden", "out"], ZeroRule, {})]
    x = torch.randn(1, 2, 6, 6)
    with unchanged(model, x):
        found = diagnose(model, x, 1, rules, form="relevance")
    assert found.verdict == "not finite" and found.dtype_is_cause is None


class OwnCoefficient(EpsilonRule):
    """A rule of a user's, which propagates half."""

    def coefficient(self, op: Any, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        return super().coefficient(op, x, z, c) / 2

    def relevance(self, op: Any, x: Tensor, z: Tensor, R: Tensor, protected: bool = False):
        return super().relevance(op, x, z, R, protected) / 2


@pytest.mark.parametrize("form", ["gradient", "relevance"])
def test_a_rule_with_a_backward_pass_of_its_own(form) -> None:
    model, x = make()
    rules = [(["hidden"], OwnCoefficient, {}), (["conv", "out"], EpsilonRule, {})]
    stabilizer = 1e-3 if form == "relevance" else None
    found = diagnose(model, x, 1, rules, form=form, stabilizer=stabilizer)
    record = next(r for r in found.layers if r.name == "hidden")
    assert record.denominators is None and record.strongest is None
    assert record.shares.rule == pytest.approx(record.received.total - record.propagated.total)
    ledger = found.ledger
    assert abs(ledger.elsewhere) <= 1e-10 * max(abs(ledger.score), ledger.inputs.l1)
    if form == "gradient":
        assert torch.equal(*found.relevances, LRP(model, rules).attribute(x, target=1))
    str(found), json.loads(found.to_json())


# the same as LRP's --------------------------------------------------------------------------------

NETWORKS = {
    "cnn": lambda: cnn(),
    "cnn-inplace": lambda: cnn(inplace=True),
    "gelu": lambda: cnn(nn.GELU()),
    "residual": Residual,
    "residual-inplace": lambda: Residual(True),
}
PRESETS = {
    "zero": presets.zero(),
    "epsilon": presets.epsilon(),
    "plus-flat": presets.epsilon_plus_flat(),
    "alpha-beta": presets.epsilon_alpha2_beta1(),
    "box": presets.epsilon_gamma_box(-6.0, 6.0),
    "tutorial": presets.lrp_tutorial(-6.0, 6.0),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
IN_TURN = [  # every pair of a network and a preset once, every other pair at least once
    (network, rules, DTYPES[(i + j) % 4])
    for i, network in enumerate(NETWORKS)
    for j, rules in enumerate(PRESETS)
]


@pytest.mark.filterwarnings("ignore::captum_lrp_stab.errors.StabilizerWarning")
@pytest.mark.parametrize(("network", "rules", "dtype"), IN_TURN, ids=str)
def test_the_relevance_is_that_of_lrp_bit_by_bit(network, rules, dtype) -> None:
    model = build(NETWORKS[network], dtype=dtype)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-5, 5).to(dtype)
    expected = LRP(model, PRESETS[rules], optimize=False).attribute(x, target=2)
    found = diagnose(model, x, 2, PRESETS[rules])
    assert torch.equal(found.relevances[0], expected)
    limits = {torch.float64: 1e-12, torch.float32: 1e-5}
    if dtype in limits:  # by default it is that up to rounding
        near = LRP(model, PRESETS[rules]).attribute(x, target=2)
        assert (near - expected).norm() <= limits[dtype] * expected.norm()


def test_several_inputs_and_rules_on_modules() -> None:
    model = build(TwoInputs)
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    named = [(["left"], GammaRule, {}), (["right"], FlatRule, {}), (["head"], EpsilonRule, {})]
    lrp = LRP(model, named, optimize=False)
    expected = lrp.attribute((a, b), (1, 2), additional_forward_args=0.5)
    with attach_rules(model, named):
        found = diagnose(model, (a, b), (1, 2), additional_forward_args=0.5)
    for ours, lrps in zip(found.relevances, expected, strict=True):
        assert torch.equal(ours, lrps)
    by_sample = diagnose(model, (a, b), [(0, 1), (1, 2), (1, 0)], named)
    assert by_sample.score.shape == (3,)


def test_under_autocast_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)).eval()
    x = torch.randn(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = LRP(model, presets.epsilon(1e-3)).attribute(x, target=1)
        found = diagnose(model, x, 1, presets.epsilon(1e-3))
    assert torch.equal(found.relevances[0], expected)


def test_several_threads_at_once() -> None:
    model, x = make()
    expected = diagnose(model, x, 1, name_map("")).to_json()
    results: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(diagnose(model, x, 1, name_map("")).to_json())
        )
        for _ in range(4)
    ]
    with unchanged(model, x):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [expected] * 4


# wrong arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", ["a", 0, float("nan"), True, 1, -5, None, [2]])
def test_a_wrong_threshold(threshold) -> None:
    model, x = make()
    with unchanged(model, x), pytest.raises(InputError, match=r"threshold is .* above 1"):
        diagnose(model, x, 1, name_map(""), threshold=threshold)


@pytest.mark.parametrize("form", ["x", "", "Gradient", "modified_forward", None, 3])
def test_a_wrong_form(form) -> None:
    model, x = make()
    with unchanged(model, x), pytest.raises(InputError, match=r"form.*gradient, relevance"):
        diagnose(model, x, 1, name_map(""), form=form)


def test_other_wrong_arguments() -> None:
    model, x = make()
    wrong: list[tuple[type[LRPError], dict[str, Any]]] = [
        (StabilizerError, {"stabilizer": -1.0}),
        (StabilizerError, {"stabilizer": "signed"}),
        (StabilizerError, {"stabilizer": stabilizers.Signed}),
        (RuleError, {"attention": "x"}),
        (InputError, {"target": 99}),
        (InputError, {"target": None}),
        (InputError, {"inputs": [1, 2]}),
        (InputError, {"inputs": x.long()}),
        (InputError, {"inputs": x * float("nan")}),
        (ModelError, {"model": lambda v: v}),
        (LRPError, {"rules": [(["nothing"], EpsilonRule, {})]}),
        (LRPError, {"rules": "epsilon"}),
    ]
    for error, changed in wrong:
        arguments = {"model": model, "inputs": x, "target": 1, "rules": name_map("")} | changed
        with unchanged(model, x), pytest.raises(error):
            diagnose(**arguments)
    with pytest.raises(ModelError, match="eval"):
        diagnose(model.train(), x, 1, name_map(""))
    model.eval()
    model.out.bias.data[0] = float("nan")
    with pytest.raises(ModelError, match="non-finite"):
        diagnose(model, x, 0, name_map(""))
