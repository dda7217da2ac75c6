"""What the tests of segments share: small networks, and the comparison with a pass without."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, presets

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Part(nn.Module):
    """A segment that does what it is told."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.told, self.state = nn.Linear(6, 6), forward, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.told(self, *args, **kwargs)


class Around(nn.Module):
    """A layer, a segment and a layer, put together as told."""

    def __init__(self, seg: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.pre, self.seg, self.head = nn.Linear(6, 6), seg, nn.Linear(6, 3)
        self.told = forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.told(self, x, *args, **kwargs)


def plain(model: Around, x: Tensor) -> Tensor:
    """Run one after the other."""
    return model.head(model.seg(model.pre(x)))


def mlp() -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())


def runs_of(module: nn.Module, call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call gives, and how often a module ran in it."""
    ran: list[int] = []
    handle = module.register_forward_hook(lambda *_: ran.append(1))
    try:
        return call(), len(ran)
    finally:
        handle.remove()


def relevance(
    model: nn.Module,
    x: Any,
    checkpoint: Any,
    rules: Any = None,
    extra: Any = None,
    target: Any = 1,
    **options: Any,
) -> Any:
    """Return an attribution with segments, of which plain gradients are a part like any other."""
    options = {"fallbacks": "ignore", **options}
    explainer = LRP(model, rules or presets.epsilon(), checkpoint=checkpoint, **options)
    return explainer.attribute(x, target, extra)


def assert_as_without(
    model: nn.Module,
    x: Any = X,
    checkpoint: Any = ("seg",),
    *,
    runs: int = 1,
    rounding: float = 0.0,
    **options: Any,
) -> None:
    """Assert that segments leave the relevance as it is, and that each ran again.

    Args:
        model: The model.
        x: Its input.
        checkpoint: The names of the segments.
        runs: How many runs are added.
        rounding: What may be different; not a bit unless gradients are added in another order.
        **options: Of :func:`relevance`.
    """
    for name in checkpoint:
        module = model.get_submodule(name)
        expected, before = runs_of(module, lambda: relevance(model, x, (), **options))
        actual, after = runs_of(module, lambda: relevance(model, x, checkpoint, **options))
        assert after == before + runs
        pairs = (
            [(actual, expected)]
            if isinstance(expected, Tensor)
            else zip(actual, expected, strict=True)
        )
        for a, e in pairs:
            assert e.abs().max() > 0
            assert a.dtype == e.dtype
            torch.testing.assert_close(a, e, rtol=rounding, atol=0)
