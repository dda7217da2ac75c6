"""Nothing is left behind: model, inputs and grad mode, after success and after every exception."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from captum.attr import LRP as CaptumLRP
from captum.attr import LayerLRP as CaptumLayerLRP
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, attach_rules
from captum_lrp_stab.assignment.name_map import NameMap
from tests.helpers.states import FAILURES, Model, Trouble, make, name_map, unchanged

# What must not change


CHANGES: dict[str, Callable[[Model, Tensor], Any]] = {
    "value": lambda m, x: m.out.bias.data.add_(1),
    "memory": lambda m, x: setattr(m.out.bias, "data", m.out.bias.data.clone()),
    "buffer": lambda m, x: m.norm.running_mean.add_(1),
    "requires_grad": lambda m, x: m.conv.weight.requires_grad_(False),
    "training": lambda m, x: m.pool.train(),
    "attribute": lambda m, x: setattr(m.pool, "activations", {}),
    "hook": lambda m, x: m.pool.register_forward_hook(lambda *a: None),
    "backward-hook": lambda m, x: m.pool.register_full_backward_hook(lambda *a: None),
    "hook-with-kwargs": lambda m, x: m.pool.register_forward_hook(print, with_kwargs=True),
    "class": lambda m, x: setattr(m.relu, "__class__", nn.ReLU6),
    "input": lambda m, x: x.add_(1),
    "input-version": lambda m, x: x.mul_(1),
    "input-requires_grad": lambda m, x: x.requires_grad_(),
    "input-grad": lambda m, x: setattr(x, "grad", torch.zeros_like(x)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=[*CHANGES])
def test_the_check_sees_a_change(change) -> None:
    model, x = make()
    with pytest.raises(AssertionError), unchanged(model, x):
        change(model, x)


# Ours and stock Captum's, with our rules

Explain = Callable[[Model, NameMap, Tensor], Any]


def with_attached(explainer: Callable[[Model], Any]) -> Explain:
    def explain(model: Model, rules: NameMap, x: Tensor) -> Any:
        with attach_rules(model, rules):
            return explainer(model).attribute(x, target=1)

    return explain


EXPLAINERS: dict[str, Explain] = {
    "LRP": lambda model, rules, x: LRP(model, rules).attribute(x, target=1),
    "LayerLRP": lambda model, rules, x: LayerLRP(model, model.pool, rules).attribute(x, target=1),
    "all-layers": lambda model, rules, x: LayerLRP(model, None, rules).attribute(x, target=1),
    "captum.LRP": with_attached(CaptumLRP),
    "captum.LayerLRP": with_attached(lambda model: CaptumLayerLRP(model, model.pool)),
}


def flat(relevance: Tensor | list[Tensor]) -> Tensor:
    several = relevance if isinstance(relevance, list) else [relevance]
    return torch.cat([r.detach().flatten() for r in several])


every_explainer = pytest.mark.parametrize("explain", EXPLAINERS.values(), ids=[*EXPLAINERS])
ours = pytest.mark.parametrize("explain", [*EXPLAINERS.values()][:3], ids=[*EXPLAINERS][:3])


@every_explainer
@pytest.mark.parametrize("failure", ["", *FAILURES], ids=["success", *FAILURES])
def test_state_is_as_before(explain, failure) -> None:
    """The input requires grad from the start, because Captum leaves that on it after an error."""
    model, x = make()
    model.fails_in = failure
    x.requires_grad_()
    expected = pytest.raises(Trouble, match=failure) if failure else nullcontext()
    with unchanged(model, x), expected:
        explain(model, name_map(failure), x)
    model.fails_in = ""
    fresh, _ = make()
    with unchanged(model, x):
        later = flat(explain(model, name_map(""), x))
    assert torch.equal(later, flat(explain(fresh, name_map(""), x)))


@ours
@pytest.mark.parametrize("failure", ["", *FAILURES], ids=["success", *FAILURES])
@pytest.mark.parametrize("kind", ["plain", "with-grad", "non-leaf"])
def test_inputs_are_as_before(explain, kind, failure) -> None:
    model, x = make()
    model.fails_in = failure
    if kind != "plain":
        x.requires_grad_()
        x.grad = torch.ones_like(x)
    x = x * 1 if kind == "non-leaf" else x
    expected = pytest.raises(Trouble, match=failure) if failure else nullcontext()
    with unchanged(model, x), expected:
        explain(model, name_map(failure), x)


@ours
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
@pytest.mark.parametrize("made", ["outside", "inside"])
def test_works_in_every_grad_mode(explain, mode, made) -> None:
    model, x = make()
    expected = flat(explain(model, name_map(""), x))
    with mode():
        inside = x.clone() if made == "inside" else x
        relevance = explain(model, name_map(""), inside)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert torch.equal(flat(relevance), expected)


def test_target_and_arguments_made_in_inference_mode() -> None:
    model, x = make()
    factor = torch.full((5,), 2.0, dtype=torch.float64)
    expected = LRP(model, name_map("")).attribute(x, model(x, factor).argmax(1), factor)
    with torch.inference_mode():
        factor = factor.clone()
        target = model(x, factor).argmax(1)
        relevance = LRP(model, name_map("")).attribute(x, target, factor)
    assert torch.equal(relevance, expected)


@every_explainer
def test_two_calls_are_equal_bit_for_bit(explain) -> None:
    model, x = make()
    first, second = (flat(explain(model, name_map(""), x)) for _ in range(2))
    assert torch.equal(first, second)
    assert bool(first.abs().sum() > 0)


@ours
def test_the_users_own_hooks_fire_and_stay(explain) -> None:
    model, x = make()
    plain = flat(explain(model, name_map(""), x))
    seen: list[tuple[int, ...]] = []
    model.hidden.register_forward_hook(lambda m, inputs, out: seen.append(tuple(out.shape)))
    model.pool.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
    with unchanged(model, x):
        doubled = flat(explain(model, name_map(""), x))
    assert seen == [(3, 5)]
    assert not torch.allclose(doubled, plain)
    model(x)
    assert len(seen) == 2


@ours
def test_eight_threads_on_one_model(explain) -> None:
    model, _ = make()
    samples = [make(seed)[1] for seed in range(8)]
    expected = [flat(explain(model, name_map(""), x)) for x in samples]
    start = threading.Barrier(8)

    def work(x: Tensor) -> list[Tensor]:
        start.wait()
        return [flat(explain(model, name_map(""), x)) for _ in range(10)]

    with unchanged(model, *samples), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, samples))
    for result, alone in zip(results, expected, strict=True):
        assert all(torch.equal(relevance, alone) for relevance in result)
