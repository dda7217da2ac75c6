"""What LRP makes of an operation: the way from a torch function to a rule, a factor or shares.

A treatment is a function of the mode that sees the operation, its record, and the call; it returns
the result of the call, connected to its inputs so that the backward pass carries relevance.

Sources: Bach et al. 2015; Arras et al. 2017 (gates); Ali et al. 2022 (normalisation, CP-LRP);
Achtibat et al. 2024 (products, softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab import activations, describe, gates, operations, surrogates, ties
from captum_lrp_stab.affine import Convolution, Pad
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import canonical_name, made, tensors_in
from captum_lrp_stab.sites import Operation, Site, current_site, is_mergeable

if TYPE_CHECKING:
    from captum_lrp_stab.interception import Interception

Function = Callable[..., Any]
Treatment = Callable[["Interception", Operation, Function, Any, Any], Any]


def of(func: Function) -> Treatment | None:
    """Return the treatment of a torch function, or None if nothing is known about it."""
    return _BY_FUNCTION.get(func) or _BY_NAME.get(canonical_name(func))


def unknown(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an operation of no kind, under its plain gradient."""
    operation.fallback = "no LRP rule is known for this operation"
    return func(*args, **kwargs)


# layers with a rule ------------------------------------------------------------------------------


def affine(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run a linear layer, a convolution or an average pool under its rule."""
    x = _first(args, kwargs)
    if not made(x) or any(mode.depends_on_input(t) for t in _others(args, kwargs)):
        return product(mode, operation, func, args, kwargs)
    op = describe.of_call(func, args, kwargs)
    tag = getattr(x, "_lrp_padded", None)
    if tag is not None and isinstance(op, Convolution) and op.pad is None:
        unpadded, pad, versions, padding = tag
        if versions == (unpadded._version, x._version):
            x, op = unpadded, replace(op, pad=pad)
            padding.nodes = None  # reached, through the convolution
    rule = mode.rule_of(operation.name, func, x)
    if rule is None:
        return mixing(mode, operation, func, args, kwargs)
    kind = gates.inherited(func, args, kwargs)
    out = mode.serve(Site(operation, op, rule, x), lambda: func(*args, **kwargs))
    return gates.marked(out, kind)


def batch_norm(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a batch norm as one layer with the linear layer before it, or under its own rule.

    Raises:
        ModelError: It normalises by the statistics of the batch.
    """
    x, name = _first(args, kwargs), operation.name
    bound = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs
    if bound.get("training"):
        raise ModelError(
            f"batch norm '{name}' normalises by the statistics of the batch, so that one "
            "sample's relevance would depend on the others; call model.eval(), or give it "
            "running statistics"
        )
    if any(mode.depends_on_input(t) for t in _others(args, kwargs)):
        operation.fallback = "its scale or its shift depend on the input"
        return func(*args, **kwargs)
    site = current_site(x)
    if site is not None and not any(o is site.operation for o in mode.operations):
        site = None  # of an earlier pass
    if mode.rule_set.merge_batch_norm and site is not None and is_mergeable(site, x):
        scale = describe.of_call(func, args, kwargs)
        assert scale.bias is not None
        merged = site.op.scaled(scale.weight, scale.bias)
        if merged is not None:
            site.operation.batch_norm, site.operation.is_merged = name, True
            operation.name, operation.kind = site.operation.name, site.operation.kind
            operation.batch_norm = name
            operation.ordinals |= site.operation.ordinals
            one = Site(operation, merged, site.rule, site.x)
            return mode.on_merge(one, lambda: func(*args, **kwargs))
    rule = mode.rule_of(name, func, x)
    if rule is None:
        return mixing(mode, operation, func, args, kwargs)
    op = describe.of_call(func, args, kwargs)
    return mode.serve(Site(operation, op, rule, x), lambda: func(*args, **kwargs))


def native_batch_norm(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run ``torch.batch_norm``, which has its arguments in another order."""
    names = "input weight bias running_mean running_var training momentum eps cudnn_enabled"
    bound = dict(zip(names.split(), args, strict=False)) | kwargs
    bound.pop("cudnn_enabled", None)
    return batch_norm(mode, operation, F.batch_norm, (), bound)


# linear operations -------------------------------------------------------------------------------


def mixing(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run an operation that is linear, or homogeneous, in what depends on the input."""
    operation.treatment = "LRP-0"
    kind = gates.inherited(func, args, kwargs)
    written = current_site(args[0]) if args and operations.writes(func, kwargs) else None
    if written is not None:  # a copy costs less than to compute it again
        written.keep(written.z.clone())
    out = mode.mixing(operation, func, args, kwargs)
    gates.note_shift(out, func, args)
    return gates.marked(out, kind)


def moving(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run an operation that moves, repeats, selects or drops values."""
    operation.treatment = "moved"
    kind = gates.inherited(func, args, kwargs)
    out = mode.moving(func, args, kwargs)
    gates.marked(args[0] if func is Tensor.__setitem__ else out, kind)
    return out


def pad(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run a padding, which a convolution that follows takes as its own."""
    x, out = _first(args, kwargs), moving(mode, operation, func, args, kwargs)
    bound = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
    padding = bound.get("mode", "constant")
    if padding != "constant" or not bound.get("value"):
        versions = x._version, out._version
        out._lrp_padded = (x, Pad(tuple(bound["pad"]), padding), versions, operation)
    return out


def max_pool(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a max pool; in half precision ties are broken by the values before rounding."""
    pool = ties.resolved(canonical_name(func), _first(args, kwargs))
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


def sampling(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an interpolation at the points of a grid, which is linear if the grid is fixed."""
    if any(mode.depends_on_input(t) for t in _others(args, kwargs)):
        operation.fallback = "a grid that depends on the input"
        return func(*args, **kwargs)
    return mixing(mode, operation, func, args, kwargs)


# activations -------------------------------------------------------------------------------------


def rectifier(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an activation that is linear on each side of 0: relevance passes by its derivative."""
    operation.treatment = "passed"
    x = _first(args, kwargs)
    if any(made(t) for t in _others(args, kwargs)):
        return unknown(mode, operation, func, args, kwargs)
    version = x._version
    out = _rectified(mode, func, args, kwargs)
    ties.pass_order(x, version, out)
    return out


def _rectified(mode: Interception, func: Function, args: Any, kwargs: Any) -> Any:
    x = _first(args, kwargs)
    site = current_site(x)
    if site is None or not activations.is_inplace(func, args, kwargs):
        return mode.rectifier(func, args, kwargs)
    rectified = func in activations.RECTIFIERS and site.rule.is_elementwise
    if not rectified:
        site.keep(site.z.clone())
    out = mode.rectifier(func, args, kwargs)
    if rectified and site.z.data_ptr() == x.data_ptr():
        site.version = site.z._version
        site.rectified = True
    return out


def activation(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run an element-wise activation with g(0) = 0: relevance passes by the factor g(z) / z."""
    x, others = _first(args, kwargs), _rest(kwargs)
    if not isinstance(x, Tensor):  # 2 ** y
        return unknown(mode, operation, func, args, kwargs)
    slope = activations.slope_at_zero(func, args, kwargs)
    if activations.is_inverse(func, args, kwargs) or gates.is_factor(x):
        return gate(mode, operation, func, args, kwargs)
    if slope is None or not made(x) or any(made(t) for t in _others(args, kwargs)):
        return unknown(mode, operation, func, args, kwargs)
    operation.treatment = "passed"
    bounds = activations.bounds_of(func, args, kwargs)
    kind = gates.of_activation(canonical_name(func), x, bounds)
    if not activations.is_inplace(func, args, kwargs):
        out = mode.activation(x, slope, lambda z: func(z, *args[1:], **others))
        return gates.marked(out, kind)
    site = current_site(x)
    if site is not None:
        site.keep(site.z.clone())
    out = mode.activation(x, slope, lambda z: func(z.clone(), *args[1:], **others))
    return gates.marked(x.copy_(out), kind)


# products, gates, normalisation ------------------------------------------------------------------


def product(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a product: gates are held constant, other factors share the relevance equally."""
    tensors = list(tensors_in(args, kwargs))
    is_factor = [mode.depends_on_input(t) for t in tensors]
    if canonical_name(func) in operations.SUMMANDS:
        summand = _first(args, kwargs)
        is_factor[next(i for i, t in enumerate(tensors) if t is summand)] = False
    elif func in describe.BUILDERS:  # a layer whose weights depend on the input
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        is_factor = [f and t is not bias for f, t in zip(is_factor, tensors, strict=True)]
    if sum(is_factor) < 2:
        return mixing(mode, operation, func, args, kwargs)
    is_held = [f and _is_held(mode, t, func) for f, t in zip(is_factor, tensors, strict=True)]
    gates_alone = is_held == is_factor
    if gates_alone:
        is_held = [False] * len(tensors)
    live = sum(is_factor) - sum(is_held)
    shares: list[float | None] = [
        surrogates.HELD if held else 1 / live if factor and live > 1 else None
        for factor, held in zip(is_factor, is_held, strict=True)
    ]
    operation.treatment = "gate held constant" if live == 1 else f"1/{live} to each factor"
    out = _shared(mode, operation, func, shares, args, kwargs)
    return gates.marked(out, gates.of_product(tensors)) if gates_alone else out


def _is_held(mode: Interception, factor: Tensor, func: Function) -> bool:
    """Return whether a factor is held constant: a gate, or attention weights under CP-LRP."""
    kind = gates.of(factor)
    if kind is gates.Gate.SOFTMAX:
        return mode.rule_set.attention == "cp" or canonical_name(func) in operations.ELEMENTWISE
    return kind is gates.Gate.FACTOR


def quotient(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a division: a divisor is held constant, as the statistics of a normalisation are."""
    if kwargs.get("rounding_mode"):
        operation.fallback = "rounding has no gradient"
        return func(*args, **kwargs)
    numerator = _first(args, kwargs)
    divisor = operations.argument(args, kwargs, 1, "other")
    if func.__name__.strip("_").startswith("r"):
        numerator, divisor = divisor, numerator
    if not isinstance(divisor, Tensor) or not mode.depends_on_input(divisor):
        return mixing(mode, operation, func, args, kwargs)
    if not isinstance(numerator, Tensor) or not mode.depends_on_input(numerator):
        operation.fallback = "a division by a value that depends on the input"
        return gates.marked(func(*args, **kwargs), gates.Gate.FACTOR)
    operation.treatment = "divisor held constant"
    shares = [surrogates.HELD if t is divisor else None for t in tensors_in(args, kwargs)]
    if numerator is divisor:
        shares[0] = None
    out = _shared(mode, operation, func, shares, args, kwargs)
    return gates.marked(out, gates.of(numerator))


def _shared(
    mode: Interception,
    operation: Operation,
    func: Function,
    shares: list[float | None],
    args: Any,
    kwargs: Any,
) -> Any:
    if not operations.writes(func, kwargs):
        return mode.mixing(operation, surrogates.product(func, shares), args, kwargs)
    surrogate = surrogates.product(operations.out_of_place(func), shares)
    # a copy, because the backward pass needs what is written over here
    out = mode.mixing(operation, surrogate, (args[0].clone(), *args[1:]), kwargs)
    target: Tensor = args[0]
    if not target._is_view():
        target.detach_()  # what it was is reached through ``out``, or not at all
    return target.copy_(out)


def normalisation(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a layer, group, instance or rms norm with its statistics held constant."""
    if any(mode.depends_on_input(t) for t in _others(args, kwargs)):
        operation.fallback = "its scale or its shift depend on the input"
        return func(*args, **kwargs)
    operation.treatment = "statistics held constant"
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("cudnn_enable")}
    return mode.mixing(operation, surrogates.NORMALISATIONS[func], args, kwargs)


def softmax(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a softmax, which hands relevance down by its gradient."""
    operation.treatment = "softmax by its gradient"
    return gates.marked(mode.mixing(operation, func, args, kwargs), gates.Gate.SOFTMAX)


def gate(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run a function whose values are gates, and which has no rule where they are not."""
    kind = gates.of_product([_first(args, kwargs)])
    return gates.marked(unknown(mode, operation, func, args, kwargs), kind)


# the tables --------------------------------------------------------------------------------------


def _first(args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def _rest(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "input"}


def _others(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among the arguments but the first."""
    return list(tensors_in(args[1:], _rest(kwargs)))


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
_BY_FUNCTION: dict[Function, Treatment] = {
    **dict.fromkeys(describe.BUILDERS, affine),
    **dict.fromkeys(surrogates.NORMALISATIONS, normalisation),
    **dict.fromkeys(_DROPOUTS, dropout),
    F.batch_norm: batch_norm,
    torch.batch_norm: native_batch_norm,
    F.pad: pad,
    F.grid_sample: sampling,
}
_BY_NAME: dict[str, Treatment] = {
    **dict.fromkeys(operations.MOVING | operations.SELECTING, moving),
    **dict.fromkeys(ties.POOLS, max_pool),
    **dict.fromkeys(operations.MIXING | operations.HOMOGENEOUS, mixing),
    **dict.fromkeys(operations.PRODUCTS, product),
    **dict.fromkeys(operations.QUOTIENTS, quotient),
    **dict.fromkeys(gates.FUNCTIONS, gate),
    **dict.fromkeys(activations.ACTIVATIONS, activation),
    **dict.fromkeys(activations.LINEAR_SIDES, rectifier),
    "softmax": softmax,
    "softmin": softmax,
}
