"""Hooks on gradients, which are put off while the backward pass carries relevance.

A backward hook of a module is made for gradients: it would see coefficients in their place, change
them, and, even where it only looks, come between a layer and the batch norm that is one with it:
torch puts a node of its own there.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules import module as everywhere
from torch.utils.hooks import RemovableHandle

from captum_lrp_stab.errors import ModelError

_ATTRIBUTES = ("_backward_hooks", "_backward_pre_hooks")
_LOCK = threading.Lock()
Hooks = OrderedDict[int, Any]


class _Waiting(Hooks):
    """No hooks, in the place of those put off; counts the passes that are running."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__()
        self.hooks, self.passes = hooks, 0


@contextmanager
def waiting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put off the backward hooks of modules; several threads may explain one model at once."""
    put_off: list[tuple[nn.Module, str, _Waiting]] = []
    with _LOCK:
        for module in modules:
            for name in _ATTRIBUTES:
                hooks = getattr(module, name)
                if not hooks and not isinstance(hooks, _Waiting):
                    continue
                if not isinstance(hooks, _Waiting):
                    hooks = _Waiting(hooks)
                    setattr(module, name, hooks)
                hooks.passes += 1
                put_off.append((module, name, hooks))
    try:
        yield
    finally:
        with _LOCK:
            for module, name, hooks in put_off:
                hooks.passes -= 1
                if not hooks.passes:
                    setattr(module, name, hooks.hooks)


def check() -> None:
    """Raise ModelError if there are backward hooks of all modules, which no model can put off."""
    if everywhere._global_backward_hooks or everywhere._global_backward_pre_hooks:
        raise ModelError(
            "a backward hook is registered for all modules "
            "(torch.nn.modules.module.register_module_full_backward_hook), which would change "
            "what the backward pass carries; remove it for the attribution"
        )


def unused() -> RemovableHandle:
    """Return the handle of a hook that is not set."""
    return RemovableHandle(OrderedDict())
