"""The treatments: from a torch function to a rule, a factor or shares.

A treatment is a function of the pass, the record of an operation and its call; it returns the
result of the call, connected to its inputs so that the backward pass carries relevance. To give an
operation another treatment, put its name into the table of ``operations.table``; a treatment of a
new kind is a function in one of the modules imported here, and a row of ``_BY_FUNCTION``,
``_BY_NAME`` or ``_BY_TRAIT`` below.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F

from captum_lrp_stab.dispatch import layers, max_pools, products, without_rule
from captum_lrp_stab.dispatch.contractions import contraction, shift
from captum_lrp_stab.dispatch.form import Form
from captum_lrp_stab.dispatch.homogeneous import homogeneous
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.sums import ruled_sum
from captum_lrp_stab.operations import activations, decompositions, linearized
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.operations.table import cached, kind_of
from captum_lrp_stab.rules import affine_builders
from captum_lrp_stab.rules.sums import Serving

Function = Callable[..., Any]
Treat = Callable[[Form, Operation, TorchCall], Any]

MOVING: tuple[Treat, ...] = (
    without_rule.moving,
    without_rule.max_pool,
    without_rule.dropout,
    layers.pad,
)
"""Treatments of operations that move values, and relevance with them."""


def of(func: Function, served: Serving = Serving.NOTHING) -> Treat | None:
    """Return the treatment of a torch function, or None if nothing is known about it.

    Args:
        func: The function.
        served: A layer; or what it is to a rule that is set on it, or on the module that runs it.
    """
    if served is not Serving.NOTHING:
        if served is not Serving.LAYERS:
            return ruled_sum
        if func not in affine_builders.BUILDERS:
            return contraction
    return _of_function(func)[0]


WrittenOut = Callable[..., Any] | None


@cached
def written_out(func: Function) -> tuple[WrittenOut, WrittenOut]:
    """Return a function in single operations, and its opened body; None for what is not known.

    The body of a Python function is opened if nothing else is known of the function.
    """
    known = decompositions.written_out(func)
    is_known = known is not None or _of_function(func)[0] is not None
    return known, None if is_known else decompositions.opened(func)


@cached
def _of_function(func: Function) -> tuple[Treat | None]:
    kind = kind_of(func)
    known = _BY_FUNCTION.get(func) or _BY_NAME.get(kind.name)
    by_trait = (treat for trait, treat in _BY_TRAIT.items() if getattr(kind, trait))
    return (known or next(by_trait, None),)


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
_BY_FUNCTION: dict[Function, Treat] = {
    **dict.fromkeys(affine_builders.BUILDERS, layers.affine),
    **dict.fromkeys(linearized.NORMALISATIONS, products.normalisation),
    **dict.fromkeys(_DROPOUTS, without_rule.dropout),
    F.batch_norm: layers.batch_norm,
    torch.batch_norm: layers.native_batch_norm,
    F.pad: layers.pad,
}
_BY_NAME: dict[str, Treat] = {
    **dict.fromkeys(max_pools.POOLS, without_rule.max_pool),
    **dict.fromkeys(("add", "sub", "subtract"), shift),
}
_BY_TRAIT: dict[str, Treat] = {
    "moves": without_rule.moving,
    "selects": without_rule.moving,
    "mixes": without_rule.mixing,
    "homogeneous": homogeneous,
    "product": products.product,
    "quotient": products.quotient,
    "linear_in_one": without_rule.linear_in_one,
    "reduces": without_rule.reducing,
    "activation": without_rule.activation,
    "clamps": without_rule.activation,
    "chooses": without_rule.activation,
    "power": without_rule.activation,
    "rectifies": without_rule.rectifier,
    "gate": without_rule.gate,
    "softmax": products.softmax,
}
"""From a trait of an operation in the table to its treatment."""
_SAME_ARGUMENTS = (F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.glu, F.pad, torch.Tensor.relu_)
_BY_OPERATOR: dict[str, Function] = {
    func.__name__.lstrip("_"): func
    for func in (*_BY_FUNCTION, *decompositions.WRITTEN_OUT, *activations.RECTIFIERS)
    if isinstance(func, BuiltinFunctionType) or func in _SAME_ARGUMENTS
}
"""From an operator of aten to torch's function, where the treatment is not found by name."""


@cached
def of_operator(func: Function) -> Function:
    """Return torch's own function if ``func`` is its operator, as exported models call them.

    Example:
        >>> of_operator(torch.ops.aten.conv2d.default) is torch.conv2d
        True
    """
    if not isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return func
    library, _, name = str(func).partition(".")  # as in aten.conv2d.default
    return _BY_OPERATOR.get(name.partition(".")[0].lstrip("_"), func) if library == "aten" else func
