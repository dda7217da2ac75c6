"""Several attributions at once against one by one, and what a call may leave behind: nothing."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP


class Several(nn.Module):
    """Pools, batch norm behind no layer, SiLU in place, GELU, functional layers, reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.silu, self.pool = nn.SiLU(inplace=True), nn.AvgPool2d(2)
        self.scale = nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3) / 4)
        self.relu, self.last_pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.silu(self.norm(self.first(x))))
        x = F.gelu(self.scale(x))
        y = self.relu(F.conv2d(x, self.weight, padding=1))
        y = F.hardswish(F.conv2d(y, self.weight, padding=1), inplace=True)
        y += F.avg_pool2d(x, 3, 1, 1)
        return self.last(self.last_pool(y).flatten(1))


class Halves(nn.Module):
    """Two layers that read one, for rules set on the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stock, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stock(x).relu()
        return self.left(x) + self.right(x)


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-13) -> None:
    """Assert that nested results have the same structure, and values up to rounding."""
    assert type(actual) is type(expected)
    if not isinstance(expected, Tensor):
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e, tolerance)
        return
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert expected.dim() == 1 or expected.abs().max() > 0  # a delta can be 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def assert_as_one_by_one(
    model: nn.Module,
    inputs: Any,
    targets: list[Any],
    extra: Any = None,
    *,
    own: Any = None,
    rules: list[Any] | None = None,
    stabilizers: list[Any] | None = None,
    tolerance: float = 0.0,
    **options: Any,
) -> None:
    """Assert that each result of ``attribute_many`` is that of an ``attribute`` of its own."""
    explainer = LRP(model, own, **options)
    found = explainer.attribute_many(inputs, targets, extra, rules=rules, stabilizers=stabilizers)
    assert isinstance(found, list)
    several = rules is not None or stabilizers is not None
    if stabilizers is None:
        singles = [LRP(model, one, **options) for one in rules or [own]]
    else:
        singles = [
            with_stabilizer(model, own, one, inputs, extra, **options) for one in stabilizers
        ]
    for target, results in zip(targets, found, strict=True):
        for single, actual in zip(singles, results if several else [results], strict=True):
            expected = single.attribute(inputs, target, extra)
            assert type(actual) is type(expected)
            pairs = zip(_as_tuple(actual), _as_tuple(expected), strict=True)
            for a, e in pairs:
                assert (a.shape, a.dtype, a.requires_grad) == (e.shape, e.dtype, False)
                assert e.isfinite().all()
                assert e.abs().max() > 0
                assert (a - e).abs().max() <= tolerance * e.abs().max()


def with_stabilizer(
    model: nn.Module, own: Any, stabilizer: Any, inputs: Any, extra: Any, **options: Any
) -> LRP:
    """An explainer whose every rule, of a preset or name_map, is built with the stabilizer."""
    name_map = own(model, inputs, extra) if callable(own) else own
    changed = [(names, rule, {**p, "stabilizer": stabilizer}) for names, rule, p in name_map]
    return LRP(model, changed, **options)


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def forwards(model: nn.Module, call: Callable[[], Any]) -> int:
    """How often the model runs during a call."""
    ran: list[int] = []
    handle = model.register_forward_hook(lambda module, inputs, output: ran.append(len(ran)))
    try:
        call()
    finally:
        handle.remove()
    return len(ran)


def state(model: nn.Module) -> list[Any]:
    """Everything of a model that a call could change."""
    found: list[Any] = []
    for name, module in model.named_modules():
        hooks = [
            len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")
        ]
        found.append((name, module.training, sorted(vars(module)), hooks))
        found.append(getattr(module, "rule", None))
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        grad = None if t.grad is None else t.grad.tolist()
        found.append((name, id(t), t.data_ptr(), t._version, t.requires_grad, grad, t.tolist()))
    return found
