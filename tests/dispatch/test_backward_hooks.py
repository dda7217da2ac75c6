"""Hooks on gradients do not change relevance, are not called, and stay where they are."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_full_backward_hook

from captum_lrp_stab import LRP, LayerLRP, diagnose, presets
from captum_lrp_stab.errors import ModelError
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
RULES = presets.epsilon_plus_flat()


class Net(nn.Module):
    """A batch norm that is one layer with its convolution, and an activation."""

    def __init__(self, look: Callable[[Tensor], Any] = lambda h: None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 4, 3)
        self.conv, self.norm = nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)
        self.act, self.head = nn.SiLU(), nn.Linear(36, 3)
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        self.look(h)
        return self.head(self.act(self.norm(self.conv(h))).flatten(1))


def explained(model: nn.Module, **options: Any) -> Tensor:
    return LRP(model, RULES, **options).attribute(X, 1)


KINDS = ("register_full_backward_hook", "register_full_backward_pre_hook", "register_backward_hook")


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")
@pytest.mark.parametrize("place", ["conv", "norm", "act", "head", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_a_modules_hook_waits(place, kind) -> None:
    model, seen = build(Net), []
    expected = explained(model)
    of_stem = LayerLRP(model, model.stem, RULES).attribute(X, 1)

    def doubled(module: nn.Module, *gradients: Any) -> Any:
        seen.append(module)
        return tuple(g * 2 for g in gradients[0])

    getattr(model.get_submodule(place), kind)(doubled)
    assert torch.equal(explained(model), expected)
    assert relative_error(explained(model, checkpoint=["act"]), expected) <= 1e-12
    assert torch.equal(LayerLRP(model, model.stem, RULES).attribute(X, 1), of_stem)
    diagnose(model, X, 1, RULES)
    assert seen == []
    model(X.clone().requires_grad_()).sum().backward()  # as before
    assert len(seen) == 1


def test_hooks_come_back_after_an_exception() -> None:
    model = build(lambda: Net(lambda h: 1 / 0))
    model.conv.register_full_backward_hook(lambda *given: None)
    hooks = model.conv._backward_hooks
    with pytest.raises(ZeroDivisionError):
        explained(model)
    assert model.conv._backward_hooks is hooks
    assert len(hooks) == 1


def test_threads_on_one_model_put_its_hooks_off_together() -> None:
    start, seen = threading.Barrier(4), []
    model = build(Net)
    expected = explained(model)
    model.conv.register_full_backward_hook(lambda *given: seen.append(given))
    hooks, found = model.conv._backward_hooks, []

    def run() -> None:
        start.wait()
        found.extend(explained(model) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(R, expected) for R in found)
    assert seen == []
    assert model.conv._backward_hooks is hooks


@pytest.mark.parametrize("keeps", [False, True])
def test_a_hook_that_the_forward_sets_on_a_value_is_not_set(keeps) -> None:
    handles: list[Any] = []

    def set_hook(h: Tensor) -> None:
        handles.append(h.register_hook(lambda g: g * 2))

    model = build(lambda: Net(set_hook))
    expected = explained(build(Net))
    assert torch.equal(explained(model), expected)
    if not keeps:
        handles[0].remove()
    x = X.clone().requires_grad_()  # the control: it doubles a gradient
    plain, doubled = (torch.autograd.grad(m(x)[:, 1].sum(), x)[0] for m in (build(Net), model))
    assert relative_error(doubled, 2 * plain) <= 1e-12


def test_a_hook_of_all_modules_is_refused() -> None:
    model = build(Net)
    handle = register_module_full_backward_hook(lambda *given: None)
    try:
        with pytest.raises(ModelError, match="registered for all modules"):
            explained(model)
    finally:
        handle.remove()
    explained(model)
