"""A loss on relevance: an error, where its gradient was 0 without a word."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LRP as CaptumLRP
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, presets, visualize
from captum_lrp_stab.errors import LRPError, NotDifferentiableError
from captum_lrp_stab.tensors.nested import tensors_in
from tests.helpers.networks import TwoInputs, build

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "relevance": lambda m, x: LRP(m).attribute(x, target=1),
    "delta": lambda m, x: LRP(m).attribute(x, target=1, return_convergence_delta=True)[1],
    "in batches": lambda m, x: LRP(m).attribute(x, target=1, internal_batch_size=2),
    "checkpointed": lambda m, x: LRP(m, checkpoint=["0"]).attribute(x, target=1),
    "a tuple": lambda m, x: LRP(m).attribute((x,), target=1),
    "many": lambda m, x: LRP(m).attribute_many(x, [0, 1]),
    "many, several": lambda m, x: LRP(m).attribute_many(x, [0], stabilizers=[1e-6, 1e-3]),
    "a layer": lambda m, x: LayerLRP(m, m[0]).attribute(x, target=1),
    "layers": lambda m, x: LayerLRP(m, None).attribute(x, 1, return_convergence_delta=True),
    "layers, in batches": lambda m, x: LayerLRP(m, ["0", "2"]).attribute(
        x, target=1, internal_batch_size=1
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_differentiating_raises(name) -> None:
    model = net()
    expected = tensors_in((CALLS[name](model, X),), {})
    assert not any(t.requires_grad for t in expected)
    x = X.clone().requires_grad_()
    found = tensors_in((CALLS[name](model, x),), {})
    assert found
    for t, e in zip(found, expected, strict=True):
        assert torch.equal(t, e)
        assert t.requires_grad
        loss = (t**2).sum() + model(x).sum()
        with pytest.raises(NotDifferentiableError, match="a loss on it would train nothing") as got:
            loss.backward()
        assert isinstance(got.value, (RuntimeError, LRPError))
        for sources in ([x], [*model.parameters()], [model[0].weight]):
            with pytest.raises(NotDifferentiableError):
                torch.autograd.grad((t**2).sum() + model(x).sum(), sources, retain_graph=True)
        t.mul_(2.0)[..., 0] = 1.0  # it can be written to
        assert not t.detach().requires_grad


@pytest.mark.parametrize("name", CALLS)
def test_without_it_a_result_is_as_before(name) -> None:
    """The control: no graph where no input requires a gradient, or none is asked for."""
    model = net()
    for x, grad in ((X, True), (X.clone().requires_grad_(), False)):
        with torch.set_grad_enabled(grad):
            found = tensors_in((CALLS[name](model, x),), {})
        assert not any(t.requires_grad for t in found)
        assert all(t.numpy() is not None for t in found)


def test_training_beside_a_constant_explanation() -> None:
    model, x = net(), X.clone().requires_grad_()
    relevance = LRP(model).attribute(x, target=1)
    (model(x)[:, 1] * relevance.detach().sum(1)).sum().backward()
    assert model[0].weight.grad.abs().max() > 0
    assert x.grad.abs().max() > 0


def test_one_of_several_inputs() -> None:
    model = build(TwoInputs)
    a, b = X, torch.randn(3, 3).double().requires_grad_()
    for relevance in LRP(model).attribute((a, b), target=(1, 2)):
        with pytest.raises(NotDifferentiableError):
            relevance.sum().backward()


class Memory:
    """Something whose end can be seen."""


def test_nothing_between_is_kept() -> None:
    """Of a network before the model its parameters are, the values between are not."""
    before, model = nn.Linear(4, 4).double(), net()
    kept: list[weakref.ref[Memory]] = []

    def features() -> Tensor:
        y = before(X).relu()
        memory = Memory()
        kept.append(weakref.ref(memory))
        y.register_hook(lambda c, memory=memory: c)
        return y * 1.0

    results = [LRP(model).attribute(features(), target=1) for _ in range(3)]
    gc.collect()
    assert [one() for one in kept] == [None] * 3
    with pytest.raises(NotDifferentiableError):
        torch.autograd.grad(results[0].sum(), before.weight)


def test_captums_own_result_requires_a_gradient_too() -> None:
    """And cannot be differentiated either: with an error that is not about it."""
    relevance = CaptumLRP(net()).attribute(X.clone().requires_grad_(), target=1)
    assert relevance.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        relevance.sum().backward()


def test_captums_methods_around_it() -> None:
    model, x = net(), X.clone().requires_grad_()
    explainer = LRP(model, presets.epsilon())
    smooth = NoiseTunnel(explainer).attribute(x, nt_samples=3, target=1)
    assert not smooth.requires_grad
    relevance = explainer.attribute(x, target=1)
    off = infidelity(model, lambda y: (0.1 * torch.ones_like(y), y - 0.1), x, relevance, target=1)
    most = sensitivity_max(explainer.attribute, x, target=1)
    assert off.isfinite().all() and most.isfinite().all()
    assert not (off.requires_grad or most.requires_grad)


def test_heatmaps_of_it() -> None:
    conv = build(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2)))
    x = torch.rand(1, 3, 8, 8).double().requires_grad_()
    figure = visualize.heatmap(LRP(conv).attribute(x, target=1))
    assert figure.axes
    grid = visualize.rules_by_stabilizers(conv, x, 1, {"zero": presets.zero()}, {"": 1e-6})
    assert grid.axes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler's
def test_under_torch_compile() -> None:
    model = net()

    @torch.compile(backend="eager")
    def outer(x: Tensor) -> Tensor:
        return LRP(model).attribute(x * 1.0, target=1) * 2

    found = outer(X.clone().requires_grad_())
    torch._dynamo.reset()
    with pytest.raises(NotDifferentiableError):
        found.sum().backward()
