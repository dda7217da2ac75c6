"""Linear layers in another spelling: products with weights, and biases added to a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch.in_place import written_over
from captum_lrp_stab.dispatch.layer_use import Site, current_site
from captum_lrp_stab.dispatch.layers import served
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.without_rule import mixing
from captum_lrp_stab.operations import calls
from captum_lrp_stab.operations.calls import argument
from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.rules import contractions

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.mode import Interception


Function = Callable[..., Any]


def contraction(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a product with weights under its rule, as a linear layer."""
    op, x = contractions.of_call(func, args, kwargs, operation.operands.has)
    rules = mode.rules_of(operation, func, x)
    if not rules:
        return mixing(mode, operation, func, args, kwargs)
    return served(mode, operation, op, rules, x, lambda: func(*args, **kwargs))


def shift(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run an addition; what a module adds to a layer that it has run itself may be the bias.

    ``x @ w + b`` is one layer if ``b`` is made of parameters and has one number for each unit.
    """
    site, bias = _biased(mode, operation, func, args, kwargs)
    if site is None or bias is None:
        return mixing(mode, operation, func, args, kwargs)
    target = calls.written(func, args, kwargs)
    plain = calls.out_of_place(func)
    site.operation.is_merged = True
    operation.name, operation.kind = site.operation.name, site.operation.kind
    operation.layer, operation.owner = site.operation.layer, site.operation.owner
    operation.ordinals |= site.operation.ordinals
    one = mode.site(operation, replace(site.affine, bias=bias), site.rules, site.x)
    site.z = None  # another reader of the layer without its bias is rare
    out = mode.on_merge(one, lambda: plain(*args, **kwargs))
    return out if target is None else written_over(target, out)


def _biased(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> tuple[Site | None, Tensor | None]:
    """Return the layer that an addition adds a bias to, and the bias."""
    y, b = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")
    factor = kwargs.get("alpha", 1)
    if canonical_name(func) != "add":
        factor = -factor
    elif factor == 1 and not operation.operands.has(y):
        y, b = b, y
    if not operation.operands.has(y) or not isinstance(b, Tensor) or kwargs.get("out") is not None:
        return None, None
    site = current_site(y)
    if site is None or site.run is not mode.places.run or site.turn is not mode.turn:
        return None, None
    if site.affine.bias is not None or site.scale is not None or not mode.is_weights(b):
        return None, None
    values = site.affine.as_bias(b.detach(), y)
    return site, None if values is None else values * factor
