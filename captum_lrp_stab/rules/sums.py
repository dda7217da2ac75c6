"""Which sum an operation computes: a layer that has no weights but those written out with it.

``x + y``, ``x - 2 * y``, ``x / 3 + 1``, ``x.sum(1)``, ``x.mean(1)``: each element of the result
is a weighted sum of elements of what depends on the input, and of constants, which are like a bias.
``cat`` and ``stack`` are sums of one term. Such an operation has a rule where one is set on it by
name, or on the module that runs it; else it gets LRP-0.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.operations.table import names_of
from captum_lrp_stab.rules.affine import Sum

NAMES = names_of("joins") | frozenset(
    """
    add div divide mean mul multiply neg negative rmul rsub sub subtract sum true_divide truediv
    """.split()
)
"""Canonical names of the operations that can be sums."""


class Serving(IntEnum):
    """What the rule of a module serves: the layers it runs, else its sums, else what it joins."""

    NOTHING = 0
    JOINED = 1
    SUMS = 2
    LAYERS = 3


class Terms(NamedTuple):
    """Some terms of a sum."""

    x: Tensor  # stacked along dimension 0
    weight: Tensor  # broadcasts against x
    source: Tensor  # what they are copies of
    reduces: bool = False  # they are elements of one tensor


Bias = Tensor | float | None
"""The constants of a sum, together."""


def serving(call: TorchCall) -> Serving:
    """Return what kind of sum an operation is to a rule."""
    if call.name not in NAMES or call.kwargs.get("out") is not None:
        return Serving.NOTHING
    if any(t.is_complex() for t in call.tensors):
        return Serving.NOTHING
    if call.kind.product or call.kind.quotient:
        first, second = map(call.is_data, _operands(call))
        multiplies = call.kind.product
        if first == second or (second and not multiplies) or call.kwargs.get("rounding_mode"):
            return Serving.NOTHING
    return Serving.JOINED if call.kind.joins else Serving.SUMS


def of_call(call: TorchCall) -> tuple[list[Terms], Bias]:
    """Return the terms of a sum, and its constants."""
    name, is_data = call.name, call.is_data
    if name in ("mean", "sum"):
        return [_reduced(call)], None
    first, second = _operands(call)
    alpha = call.kwargs.get("alpha", 1)
    operands: list[tuple[Any, Any]]
    if call.kind.adds:
        signs = {"rsub": (-alpha, 1), "add": (1, alpha)}.get(name, (1, -alpha))
        operands = list(zip((first, second), signs, strict=True))
    elif name in ("neg", "negative"):
        operands = [(first, -1)]
    elif isinstance(first, Tensor) and is_data(first):
        operands = [(first, second if "mul" in name else 1 / second)]
    else:
        operands = [(second, first)]
    shape = _broadcast([t.shape for t in (first, second) if isinstance(t, Tensor)])
    terms: list[Terms] = []
    bias: Bias = None
    for value, factor in operands:
        if isinstance(value, Tensor) and is_data(value):
            if not isinstance(factor, Tensor):
                factor = torch.full((), factor, dtype=value.dtype, device=value.device)
            terms.append(Terms(_row(value, shape), _row(factor.detach(), shape), value))
        else:
            constant = (value.detach() if isinstance(value, Tensor) else value) * factor
            bias = constant if bias is None else bias + constant
    return terms, bias


def joined(whole: Tensor) -> Terms:
    """Return the one term that each element of a concatenation has."""
    weight = torch.ones((), dtype=whole.dtype, device=whole.device)
    return Terms(whole.unsqueeze(0), _row(weight, whole.shape), whole)


def scaled(op: Sum, x: Tensor, by: Terms) -> tuple[Terms, Bias]:
    """Return the terms of a sum that is a term of another, and its constants.

    Args:
        op: Its map.
        x: Its input.
        by: Itself as one term.
    """
    ones = (1,) * (by.x.dim() - x.dim())
    rows = x.reshape(len(x), *ones, *x.shape[1:])
    weight = op.weight.reshape(len(x), *ones, *op.weight.shape[1:]) * by.weight
    return Terms(rows, weight, x, op.reduces), None if op.bias is None else op.bias * by.weight[0]


def affine(terms: Sequence[Terms], bias: Bias) -> tuple[Sum, Tensor]:
    """Return the map of a sum and its input: all terms, stacked along dimension 0."""
    shape = _broadcast([t.x.shape[1:] for t in terms])
    x = torch.cat([t.x.expand(-1, *shape) for t in terms])
    trailing = _broadcast([t.weight.shape[1:] for t in terms])
    weights = [t.weight.expand(len(t.x), *trailing) for t in terms]
    weight = torch.cat([w.to(dtype=x.dtype, device=x.device) for w in weights])
    if bias is not None:
        bias = torch.as_tensor(bias, dtype=x.dtype, device=x.device)
    return Sum(weight, bias, any(t.reduces for t in terms)), x


def _broadcast(shapes: Sequence[torch.Size]) -> torch.Size:
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call, no-any-return]


def _operands(call: TorchCall) -> tuple[Any, Any]:
    return call.argument(0, "input"), call.argument(1, "other")


def _row(t: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor that broadcasts to ``shape`` as one row of such a shape."""
    return t.reshape(1, *(1,) * (len(shape) - t.dim()), *t.shape)


def _reduced(call: TorchCall) -> Terms:
    x = call.argument(0, "input")
    given = call.argument(1, "dim")
    given = call.kwargs.get("axis") if given is None else given
    dims = range(x.dim()) if given is None or given == () else given
    dims = sorted({d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)})
    kept = bool(call.argument(2, "keepdim"))
    rest = [d for d in range(x.dim()) if d not in dims]
    shape = [x.shape[d] if d in rest else 1 for d in range(x.dim()) if kept or d in rest]
    rows = x.permute(*dims, *rest).reshape(-1, *shape)
    weight = torch.ones((), dtype=x.dtype, device=x.device) / (
        len(rows) if call.name == "mean" else 1
    )
    return Terms(rows, _row(weight, shape), x, reduces=True)
