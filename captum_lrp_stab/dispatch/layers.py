"""Layers with a rule: linear layers, convolutions, average pools and batch norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import current_site, is_mergeable
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.products import product
from captum_lrp_stab.dispatch.without_rule import mixing, moving
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import gates, linearized
from captum_lrp_stab.operations.calls import first, others
from captum_lrp_stab.rules import affine_builders, complex_layers
from captum_lrp_stab.rules.affine import Affine, Convolution, Pad, Scale
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.tensors import marks

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.mode import Interception


Function = Callable[..., Any]


@dataclass(eq=False)
class Padded:
    """What a tensor is a padding of."""

    x: Tensor
    version: int  # of x
    pad: Pad
    operations: tuple[Operation, ...]


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


def affine(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run a linear layer, a convolution or an average pool under its rule."""
    x = first(args, kwargs)
    operands = operation.operands
    if not operands.has(x) or any(map(operands.has, others(args, kwargs))):
        return product(mode, operation, func, args, kwargs)
    padded = _padded(x)
    rules = mode.rules_of(operation, func, x if padded is None else padded.x)
    if not rules:
        return mixing(mode, operation, func, args, kwargs)
    op = affine_builders.of_call(func, args, kwargs)
    # what a padding adds has relevance under these rules, and is no part of the layer's input
    direct = not all(rule.proportional for rule in rules)
    if padded is not None and direct and isinstance(op, Convolution) and op.can_pad(padded.pad):
        x, op = padded.x, replace(op, pad=padded.pad)
        for absorbed in padded.operations:
            operation.ordinals |= absorbed.ordinals
            absorbed.is_absorbed = True
    kind = operands.inherited(func, args, kwargs)
    return gates.marked(served(mode, operation, op, rules, x, lambda: func(*args, **kwargs)), kind)


def _padded(x: Tensor) -> Padded | None:
    """Return what a tensor is a padding of, None if it is none, or that has been written over."""
    padded: Padded | None = marks.get(x, "padded")
    return None if padded is None or padded.x._version != padded.version else padded


def served(
    mode: Interception,
    operation: Operation,
    op: Affine,
    rules: tuple[Rule, ...],
    x: Tensor,
    call: Callable[[], Tensor],
) -> Tensor:
    """Return the output of a layer; one of complex numbers is a layer of their parts."""
    if not op.weight.is_complex():
        return mode.serve(mode.site(operation, op, rules, x), call)
    pairs = complex_layers.split(x, op)
    marks.carry(x, pairs, without=("nonnegative", "order", "padded", "site"))
    site = mode.site(operation, complex_layers.on_pairs(op), rules, pairs)
    out = mode.serve(site, lambda: complex_layers.split(call(), op))
    return complex_layers.join(out, op)


def batch_norm(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a batch norm as one layer with the linear layer before it, or under its own rule.

    Raises:
        ModelError: It normalises by the statistics of the batch.
    """
    x, name = first(args, kwargs), operation.name
    bound = dict(zip(_BATCH_NORM_ARGUMENTS, args, strict=False)) | kwargs
    if bound.get("training"):
        raise ModelError(
            f"batch norm '{name}' normalises by the statistics of the batch, so that one "
            "sample's relevance would depend on the others; call model.eval(), or give it "
            "running statistics"
        )
    if any(map(operation.operands.has, others(args, kwargs))):
        operation.fallback = "its scale or its shift depend on the input"
        return linearized.batch_norm_by_data(**bound)
    site = current_site(x)
    if site is not None and site.turn is not mode.turn:
        site = None  # of an earlier pass
    cut = marks.get(x, "cut")
    if mode.rule_set.merge_batch_norm and cut is not None:
        raise ModelError(
            f"checkpoint: batch norm '{name}' and the layer before it are one layer, and segment "
            f"'{cut}' has one of them alone; name the module around both, or set "
            "merge_batch_norm=False"
        )
    if mode.rule_set.merge_batch_norm and site is not None and is_mergeable(site, x):
        scale = affine_builders.of_call(func, args, kwargs)
        assert isinstance(scale, Scale)
        site.operation.is_merged = True
        operation.name, operation.kind = site.operation.name, site.operation.kind
        operation.layer, operation.owner = site.operation.layer, site.operation.owner
        operation.batch_norm = name
        operation.ordinals |= site.operation.ordinals
        one = mode.site(operation, site.affine, site.rules, site.x, scale)
        site.z = None  # another reader of the layer without its batch norm is rare
        return mode.on_merge(one, lambda: func(*args, **kwargs))
    rules = mode.rules_of(operation, func, x)
    if not rules:
        return mixing(mode, operation, linearized.batch_norm, args, kwargs)
    op = affine_builders.of_call(func, args, kwargs)
    site = mode.site(operation, op, rules, x)
    return mode.serve(site, lambda: func(*args, **kwargs))


def native_batch_norm(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run ``torch.batch_norm``, which has its arguments in another order."""
    names = "input weight bias running_mean running_var training momentum eps cudnn_enabled"
    bound = dict(zip(names.split(), args, strict=False)) | kwargs
    bound.pop("cudnn_enabled", None)
    return batch_norm(mode, operation, F.batch_norm, (), bound)


def pad(mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any) -> Any:
    """Run a padding, which a convolution that follows takes as its own."""
    x, out = first(args, kwargs), moving(mode, operation, func, args, kwargs)
    bound = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
    padding = bound.get("mode", "constant")
    if padding != "constant" or not bound.get("value"):
        own, before = Pad(tuple(bound["pad"]), padding), _padded(x)
        both = None if before is None else before.pad.then(own)
        if before is None or both is None:
            padded = Padded(x, x._version, own, (operation,))
        else:
            padded = replace(before, pad=both, operations=(*before.operations, operation))
        marks.put(out, "padded", mode.connected(padded))
    else:
        operation.treatment = "moved, beside a constant"
    return out
