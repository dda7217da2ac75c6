"""Seeing every operation of a forward pass, with the name of the layer it belongs to.

:class:`Interception` is a ``TorchFunctionMode``: while it is active *on this thread*, each torch
function the model calls, as a module, functional, method or operator, passes through it. That is
what lets one forward pass of an unchanged model serve functional code, reused modules and several
threads at once; forward hooks that the model carries for the time of the pass say which module an
operation belongs to. Subclasses decide what becomes of the operations that need a rule.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lrp_stab import activations, describe, mapping, operations, types
from captum_lrp_stab.affine import Affine, Convolution, Pad
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.errors import ModelError, RuleError
from captum_lrp_stab.sites import Operation, Site, current_site, is_mergeable

Call = Callable[[], Tensor]


class Interception(TorchFunctionMode, ABC):
    """Route rule-bearing operations to :meth:`affine`, activations to :meth:`activation`.

    Args:
        model: The model; it carries hooks only while :meth:`watch` is entered.
        rules: Rule by layer name.
        default: Rule of linear layers and convolutions without one.
        merge_batch_norm: Treat a batch norm that follows a linear layer as one layer with it.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule],
        default: Rule,
        merge_batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.rules = rules
        self.default = default
        self.merge_batch_norm = merge_batch_norm
        self.operations: list[Operation] = []
        self.leaves: tuple[Tensor, ...] = ()  # the tensors that stand for the model's inputs
        self.modules = dict(model.named_modules())
        self._leaves = {name for name, _ in mapping.leaf_modules(model)}
        self._stack: list[str] = []
        self._counts: Counter[str] = Counter()
        self._thread = threading.get_ident()
        self._ran: set[str] = set()  # layers with a rule whose forward was called
        self._served: set[str] = set()  # layers whose rule met an operation it can serve

    # which module an operation belongs to --------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Follow which module is running, by hooks that are removed on exit."""
        handles = []
        try:
            for name, module in self.modules.items():
                handles.append(module.register_forward_pre_hook(self._entering(name)))
                leaving = self._leaving(name)
                handles.append(module.register_forward_hook(leaving, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], Any]:
        def hook(module: nn.Module, inputs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            self._stack.append(name)
            if name in self.rules:
                self._ran.add(name)
            return self.on_input(name, inputs)

        return hook

    def _leaving(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if threading.get_ident() != self._thread:
                return None
            while self._stack and self._stack.pop() != name:
                pass
            return self.on_output(name, output)

        return hook

    def on_input(self, name: str, inputs: Any) -> Any:
        """Return what a module gets in place of its inputs, or None."""
        return None

    def on_output(self, name: str, output: Any) -> Any:
        """Return what a module gives in place of its output, or None."""
        return None

    def _place(self, func: Callable[..., Any]) -> tuple[str, str]:
        """Return the name and kind of the operation: its leaf module's, or one made of the call."""
        current = self._stack[-1] if self._stack else ""
        module = self.modules[current]
        if current in self._leaves and (current in self.rules or isinstance(module, _NAMED)):
            return current, type(module).__name__
        kind = func.__name__.strip("_")
        prefix = f"{current}.{kind}" if current else kind
        while True:
            name = f"{prefix}_{self._counts[prefix]}"
            self._counts[prefix] += 1
            if name not in self.modules:
                return name, kind

    # dispatch ------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one torch function call; inside, the mode is off."""
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is None or not torch.is_grad_enabled():
            return self.other(func, args, kwargs)
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or not x.requires_grad:
            self._served.update(self._stack[-1:])  # nothing of the input passes here
            return func(*args, **kwargs)
        return handler(self, func, x, args, kwargs)

    def other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation that needs no rule; list it if its gradient is no LRP rule."""
        self._refuse_randomness(func, kwargs)
        out = func(*args, **kwargs)
        differentiable = torch.is_grad_enabled() and any(
            t.requires_grad for t in operations.tensors_in((out,), {})
        )
        if differentiable:
            reason = operations.fallback_reason(func, args, kwargs, self._depends_on_input)
            if reason and self._depends_on_input(*operations.tensors_in(args, kwargs)):
                name, kind = self._place(func)
                self.operations.append(Operation(name, kind, fallback=reason))
        return out

    def _depends_on_input(self, *tensors: Tensor) -> bool:
        """Return whether a tensor depends on the model's input: not so one made of parameters."""
        made = [t for t in tensors if t.requires_grad and not t.is_leaf]
        return any(operations.reaches(t, self.leaves) for t in made)

    def _refuse_randomness(self, func: Callable[..., Any], kwargs: Any) -> None:
        name = func.__name__
        drops = bool(kwargs.get("dropout_p"))
        if not drops and name not in operations.RANDOM:
            return
        module = self.modules[self._stack[-1] if self._stack else ""]
        if drops or module.training:
            place, _ = self._place(func)
            raise ModelError(
                f"operation '{place}' of {type(module).__name__} is random, so that the relevance "
                "would be of a random network; call model.eval()"
            )

    def refuse_unserved(self) -> None:
        """Raise RuleError if a layer with a rule ran without an operation the rule serves."""
        for name in sorted(self._ran - self._served):
            module, rule = self.modules[name], self.rules[name]
            if isinstance(module, types.Activation + types.Dropout):  # PassRule: served as they are
                continue
            raise RuleError(
                f"{type(rule).__name__} on layer '{name}' ({type(module).__name__}): the layer ran "
                "no linear operation, average pool or batch norm of its own that the rule could "
                "serve; leave the layer out of the name_map"
            )

    def _on_affine(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        name, kind = self._place(func)
        rule = self._rule(name, func)
        if rule is None:
            return self.mixing(Operation(name, kind), func, args, kwargs)
        if self._depends_on_input(*operations.tensors_in(args[1:], _rest(kwargs))):
            reason = "its weights or its bias depend on the input"
            self.operations.append(Operation(name, kind, fallback=reason))
            return func(*args, **kwargs)
        op = describe.of_call(func, args, kwargs)
        tag = getattr(x, "_lrp_padded", None)
        if tag is not None and isinstance(op, Convolution) and op.pad is None:
            unpadded, pad, versions = tag
            if versions == (unpadded._version, x._version):
                x, op = unpadded, replace(op, pad=pad)
        return self._serve(Operation(name, kind, rule), op, rule, x, lambda: func(*args, **kwargs))

    def _rule(self, name: str, func: Any) -> Rule | None:
        if name in self.rules:
            self._served.add(name)
            return self.rules[name]
        module = self.modules.get(name)
        pools = func in _WITHOUT_DEFAULT or isinstance(module, types.AvgPool + types.BatchNorm)
        return None if pools else self.default

    def _serve(self, operation: Operation, op: Affine, rule: Rule, x: Tensor, call: Call) -> Tensor:
        self.operations.append(operation)
        site = Site(operation, op, rule, x)
        out = self.affine(site, call)
        out._lrp_site = (site, out._version)  # type: ignore[attr-defined]
        return out

    @abstractmethod
    def affine(self, site: Site, call: Call) -> Tensor:
        """Return the output of a rule-bearing layer, connected to ``site.x`` by its rule."""

    def mixing(self, operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation that mixes its inputs linearly and has no rule: LRP-0."""
        return func(*args, **kwargs)

    def _on_batch_norm(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        name, kind = self._place(func)
        bound = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs
        if bound.get("training"):
            raise ModelError(
                f"batch norm '{name}' normalises by the statistics of the batch, so that one "
                "sample's relevance would depend on the others; call model.eval(), or give it "
                "running statistics"
            )

        def call() -> Tensor:
            return func(*args, **kwargs)  # type: ignore[no-any-return]

        site = current_site(x)
        if self._depends_on_input(*operations.tensors_in(args[1:], _rest(kwargs))):
            reason = "its scale or its shift depend on the input"
            self.operations.append(Operation(name, kind, fallback=reason))
            return func(*args, **kwargs)
        if self.merge_batch_norm and site is not None and is_mergeable(site, x):
            scale = describe.of_call(func, args, kwargs)
            assert scale.bias is not None
            merged = site.op.scaled(scale.weight, scale.bias)
            if merged is not None:
                site.operation.batch_norm = name
                self._served.add(name)
                self.operations.remove(site.operation)
                out = self._serve(site.operation, merged, site.rule, site.x, call)
                return self.on_merge(site.name, out)
        rule = self._rule(name, func)
        if rule is None:
            return self.mixing(Operation(name, kind), func, args, kwargs)
        op = describe.of_call(func, args, kwargs)
        return self._serve(Operation(name, kind, rule), op, rule, x, call)

    def on_merge(self, name: str, output: Tensor) -> Tensor:
        """Return the output of layer ``name`` merged with its batch norm."""
        return output

    def _on_pad(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        bound = dict(zip(_PAD_ARGUMENTS, args, strict=False)) | kwargs
        mode = bound.get("mode", "constant")
        if mode != "constant" or not bound.get("value"):
            pad = Pad(tuple(bound["pad"]), mode)
            out._lrp_padded = (x, pad, (x._version, out._version))
        return out

    def _on_relu(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        site = current_site(x)
        if site is None or not activations.is_inplace(func, args, kwargs):
            return func(*args, **kwargs)
        rectified = func in activations.RECTIFIERS and site.rule.is_elementwise
        if not rectified:
            site.keep(site.z.clone())
        out = func(*args, **kwargs)
        if rectified and site.z.data_ptr() == x.data_ptr():
            site.version = site.z._version
            site.rectified = True
        return out

    def _on_activation(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        slope = activations.slope_at_zero(func, args, kwargs)
        if slope is None:
            return self.other(func, args, kwargs)
        if not activations.is_inplace(func, args, kwargs):
            return self.activation(x, slope, lambda z: func(z, *args[1:], **_rest(kwargs)))
        site = current_site(x)
        if site is not None:
            site.keep(site.z.clone())
        out = self.activation(x, slope, lambda z: func(z.clone(), *args[1:], **_rest(kwargs)))
        return x.copy_(out)

    @abstractmethod
    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)``, connected to ``z`` so that relevance passes unchanged."""

    def _on_dropout(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Any:
        bound = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        if bound.get("training", bound.get("train", True)) and bound.get("p", 0.5):
            name, _ = self._place(func)
            raise ModelError(
                f"dropout '{name}' is active, so that the relevance would be of a random network; "
                "call model.eval()"
            )
        return func(*args, **kwargs)


def _rest(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "input"}


_BATCH_NORM_ARGUMENTS = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)
_PAD_ARGUMENTS = ("input", "pad", "mode", "value")
_NAMED = types.RuleBearing + types.Activation + types.Dropout
_WITHOUT_DEFAULT = {
    F.batch_norm,
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
}
_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
)
_Handler = Callable[[Interception, Any, Tensor, Any, Any], Any]
_HANDLERS: dict[Any, _Handler] = {
    **dict.fromkeys(describe.BUILDERS, Interception._on_affine),
    **dict.fromkeys(activations.SLOPES, Interception._on_activation),
    **dict.fromkeys(activations.LINEAR_SIDES, Interception._on_relu),
    F.batch_norm: Interception._on_batch_norm,
    F.pad: Interception._on_pad,
    **dict.fromkeys(_DROPOUTS, Interception._on_dropout),
}
