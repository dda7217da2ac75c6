"""Which module of a model is running, and what the operations of a forward pass are called.

A leaf module's own operation has the module's name. Any other operation is called
``module.kind_n``: the n-th of its kind that the module called in one run of its forward, not
counting what its children call. Names are therefore the same in every pass, and a module that runs
twice gives the same names twice.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch import backward_hooks
from captum_lrp_stab.dispatch.leaf_modules import leaf_modules
from captum_lrp_stab.operations.calls import TorchCall

OnInput = Callable[[str, Any, Any], tuple[Any, Any]]
"""Called with a module's name and its arguments; returns those to run it with."""
OnOutput = Callable[[str, Any], Any]
"""Called with a module's name and its output; returns the output to go on with."""


class Naming:
    """Where a forward pass is.

    Args:
        model: The model; it carries hooks only while :meth:`watch` is entered.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.entered: set[str] = set()
        self._leaves = {name for name, _ in leaf_modules(model)}
        self._frames: list[tuple[str, Counter[str]]] = [("", Counter())]
        self._thread = threading.get_ident()

    @contextmanager
    def watch(self, on_input: OnInput, on_output: OnOutput) -> Iterator[None]:
        """Follow which module is running, by hooks that are removed on exit."""
        handles = []
        try:
            for name, module in self.modules.items():
                before, after = self._entering(name, on_input), self._leaving(name, on_output)
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after, always_call=True))
            with backward_hooks.waiting(self.modules.values()):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str, on_input: OnInput) -> Callable[[nn.Module, Any, Any], Any]:
        # another thread may meet the hook while it is being removed, when torch gives no kwargs
        def hook(module: nn.Module, args: Any, kwargs: Any = None) -> Any:
            if threading.get_ident() != self._thread:
                return None
            self._frames.append((name, Counter()))
            self.entered.add(name)
            return on_input(name, args, kwargs)

        return hook

    def _leaving(self, name: str, on_output: OnOutput) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            while len(self._frames) > 1 and self._frames.pop()[0] != name:
                pass
            return on_output(name, output)

        return hook

    @property
    def current(self) -> str:
        """The name of the module that is running."""
        return self._frames[-1][0]

    @property
    def module(self) -> nn.Module:
        """The module that is running."""
        running: nn.Module = self.modules[self.current]
        return running

    @property
    def run(self) -> object:
        """An object for each run of a module in the pass, to compare by identity."""
        return self._frames[-1][1]

    @property
    def is_leaf(self) -> bool:
        """Whether the module that is running contains no other."""
        return self.current in self._leaves

    def is_running(self, name: str) -> bool:
        """Return whether a module has been called and has not returned."""
        return any(name == running for running, _ in self._frames)

    def is_own(self, call: TorchCall, is_layer: bool) -> bool:
        """Return whether the module that is running is a leaf that is there to call a function.

        Args:
            call: The call of the function.
            is_layer: Whether it is a layer with weights, or an average pool or batch norm.
        """
        return self.is_leaf and _is_own(self.module, call, is_layer)

    def of(self, call: TorchCall) -> tuple[str, str]:
        """Return the name and kind of an operation that is not a module's own."""
        current, counts = self._frames[-1]
        kind = call.name
        while True:
            name = f"{current}.{kind}_{counts[kind]}" if current else f"{kind}_{counts[kind]}"
            counts[kind] += 1
            if name not in self.modules:
                return name, kind


def _is_own(module: nn.Module, call: TorchCall, is_layer: bool) -> bool:
    """Return whether a leaf module is there to call this function."""
    if isinstance(module, types.RuleBearing):
        return is_layer
    if isinstance(module, types.Activation):
        kind = call.kind
        return kind.activation or kind.rectifies or kind.clamps or kind.chooses or kind.power
    of_torch = type(module).__module__.startswith("torch.nn.modules.")
    return of_torch and type(module) is not nn.Module
