"""Operations without a rule of their own: linear, moving or selecting values, activations.

Source: Bach et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch import max_pools
from captum_lrp_stab.dispatch.layer_use import current_site
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import activations, calls, gates, table
from captum_lrp_stab.operations.calls import argument, first, others, rest
from captum_lrp_stab.operations.gates import Gate
from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.tensors.nested import tensors_in

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.mode import Interception


Function = Callable[..., Any]


def unknown(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an operation of no kind, under its plain gradient."""
    operation.fallback = "no LRP rule is known for this operation"
    return func(*args, **kwargs)


def mixing(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run an operation that is linear, or homogeneous, in what depends on the input."""
    operation.treatment = "LRP-0"
    kind = operation.operands.inherited(func, args, kwargs)
    target = calls.written(func, args, kwargs)
    site = None if target is None else current_site(target)
    if site is not None:
        site.keep_copy(target)
    out = mode.mixing(operation, func, args, kwargs)
    gates.note_shift(out, func, args, kwargs, operation.operands)
    return gates.marked(out, kind)


def moving(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run an operation that moves, repeats, selects or drops values."""
    if canonical_name(func) in table.CONJUGATING and first(args, kwargs).is_complex():
        return mixing(mode, operation, func, args, kwargs)
    operation.treatment = "moved"
    kind = operation.operands.inherited(func, args, kwargs)
    out = mode.moving(func, args, kwargs)
    gates.marked(args[0] if func is Tensor.__setitem__ else out, kind)
    return out


def max_pool(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a max pool; in half precision ties are broken by the values before rounding."""
    pool = max_pools.resolved(canonical_name(func), first(args, kwargs))
    if kwargs.get("return_indices"):
        pool = None
    return moving(mode, operation, func if pool is None else pool, args, kwargs)


def dropout(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a dropout that drops nothing.

    Raises:
        ModelError: It does.
    """
    bound = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
    if bound.get("training", bound.get("train", True)) and bound.get("p", 0.5):
        raise ModelError(
            f"dropout '{operation.name}' is active, so that the relevance would be of a random "
            "network; call model.eval()"
        )
    return moving(mode, operation, func, args, kwargs)


def linear_in_one(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a function that is linear in one argument, such as a grid sample in what it samples."""
    x = argument(args, kwargs, *table.LINEAR_IN_ONE[canonical_name(func)])
    if any(operation.operands.has(t) and t is not x for t in tensors_in(args, kwargs)):
        operation.fallback = "it is not linear in an argument that depends on the input"
        return func(*args, **kwargs)
    return mixing(mode, operation, func, args, kwargs)


def reducing(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a reduction of groups of values: a sum, a mean, or the choice of one of each group."""
    how = argument(args, kwargs, table.REDUCING[canonical_name(func)], "reduce")
    if how in ("amax", "amin", "max", "min"):
        return moving(mode, operation, func, args, kwargs)
    run = mixing if how in ("mean", "sum") else unknown
    return run(mode, operation, func, args, kwargs)


def rectifier(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an activation that is linear on each side of 0: relevance passes by its derivative."""
    operation.treatment = "passed"
    x = first(args, kwargs)
    if any(map(operation.operands.has, others(args, kwargs))):
        return unknown(mode, operation, func, args, kwargs)
    order = max_pools.order_of(x) if activations.is_monotone(func, args, kwargs) else None
    kind = operation.operands.gate(x) if operation.operands.is_factor(x) else None
    out = _rectified(mode, func, args, kwargs)
    max_pools.keep_order(out, order)
    return gates.marked(out, kind)


def _rectified(mode: Interception, func: Function, args: Any, kwargs: Any) -> Any:
    x = first(args, kwargs)
    site, in_place = current_site(x), calls.writes(func, args, kwargs)
    if site is None:
        return mode.rectifier(func, args, kwargs)
    is_relu = func in activations.RECTIFIERS
    site.cut_off |= is_relu
    rectified = is_relu and site.is_elementwise
    if in_place and not (rectified and mode.optimize):
        site.keep_copy(x)
    # not so where a probe has put a copy in the output's place, or another operation has read it
    serves = mode.optimize and rectified and (site.is_output(x) if in_place else site.readers < 2)
    out = mode.rectifier(func, args, kwargs)
    if serves:
        site.keep_rectified(out)
    return out


def activation(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an element-wise activation with g(0) = 0: relevance passes by the factor g(z) / z."""
    x, further, options = first(args, kwargs), args[1:], rest(kwargs)
    operands = operation.operands
    kind = operands.gate(x) if operands.is_factor(x) else None
    alone = operands.has(x) and not any(map(operands.has, others(args, kwargs)))  # not so 2 ** y
    if alone and kind is None and activations.is_inverse(func, args, kwargs):
        kind = Gate.FACTOR
    slope = activations.slope_at_zero(func, args, kwargs) if alone else None
    if slope is None:
        chooses = canonical_name(func) in activations.CHOOSING
        run = choosing if chooses else unknown
        return gates.marked(run(mode, operation, func, args, kwargs), kind)
    operation.treatment = "passed"
    site = current_site(x)
    if site is not None:
        site.cut_off |= activations.cuts_off(func, args, kwargs)
        site.keeps_sign = activations.keeps_sign(func, args, kwargs)
    if kind is None:
        bounds = activations.bounds_of(func, args, kwargs)
        kind = gates.of_activation(canonical_name(func), x, bounds)

    def g(z: Tensor) -> Any:
        return func(z, *further, **options)  # not args, which hold x: see FactorStep

    if not calls.writes(func, args, kwargs):
        return gates.marked(mode.activation(x, slope, g), kind)
    kept = x.detach().clone() if site is None else site.keep_copy(x)
    return gates.marked(mode.activation_in_place(x, slope, g, kept), kind)


def choosing(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a function that chooses between values and bounds: relevance goes to what is chosen."""
    operation.treatment = "moved, beside a constant"
    return mode.moving(func, args, kwargs)


def gate(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run a function whose values are gates, and which has no rule where they are not."""
    weights = operation.operands.gate(first(args, kwargs)) is Gate.SOFTMAX
    kind = Gate.SOFTMAX if weights else Gate.FACTOR
    return gates.marked(unknown(mode, operation, func, args, kwargs), kind)
