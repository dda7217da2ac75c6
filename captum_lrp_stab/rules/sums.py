"""Which sum an operation computes: a layer that has no weights but those written out with it.

``x + y``, ``x - 2 * y``, ``x / 3 + 1``, ``x.sum(1)``, ``x.mean(1)``: each element of the result
is a weighted sum of elements of what depends on the input, and of constants, which are like a bias.
``cat`` and ``stack`` are sums of one term. Such an operation has a rule where one is set on it by
name, or on the module that runs it; else it gets LRP-0.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab.operations.calls import argument
from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.rules.affine import Sum
from captum_lrp_stab.tensors.nested import tensors_in

IsData = Callable[[Tensor], bool]

_ADDING = frozenset("add sub subtract rsub".split())
_SCALING = frozenset("mul multiply rmul div divide true_divide truediv".split())
_NEGATING = frozenset("neg negative".split())
_REDUCING = frozenset("mean sum".split())
_JOINING = frozenset(
    "cat column_stack concat concatenate dstack hstack row_stack stack vstack".split()
)
NAMES = _ADDING | _SCALING | _NEGATING | _REDUCING | _JOINING
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


def serving(func: Callable[..., Any], args: Any, kwargs: Any, is_data: IsData) -> Serving:
    """Return as what an operation would be served."""
    name = canonical_name(func)
    if name not in NAMES or kwargs.get("out") is not None:
        return Serving.NOTHING
    tensors = tensors_in(args, kwargs)
    if any(t.is_complex() for t in tensors):
        return Serving.NOTHING
    if name in _SCALING:
        first, second = (isinstance(v, Tensor) and is_data(v) for v in _operands(args, kwargs))
        if first == second or (second and "mul" not in name) or kwargs.get("rounding_mode"):
            return Serving.NOTHING
    return Serving.JOINED if name in _JOINING else Serving.SUMS


def of_call(
    func: Callable[..., Any], args: Any, kwargs: Any, is_data: IsData
) -> tuple[list[Terms], Bias]:
    """Return the terms of a sum, and its constants."""
    name = canonical_name(func)
    if name in _REDUCING:
        return [_reduced(name, args, kwargs)], None
    first, second = _operands(args, kwargs)
    alpha = kwargs.get("alpha", 1)
    operands: list[tuple[Any, Any]]
    if name in _ADDING:
        signs = {"rsub": (-alpha, 1), "add": (1, alpha)}.get(name, (1, -alpha))
        operands = list(zip((first, second), signs, strict=True))
    elif name in _NEGATING:
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


def _operands(args: Any, kwargs: Any) -> tuple[Any, Any]:
    return argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "other")


def _row(t: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor that broadcasts to ``shape`` as one row of such a shape."""
    return t.reshape(1, *(1,) * (len(shape) - t.dim()), *t.shape)


def _reduced(name: str, args: Any, kwargs: Any) -> Terms:
    x = argument(args, kwargs, 0, "input")
    given = argument(args, kwargs, 1, "dim")
    given = kwargs.get("axis") if given is None else given
    dims = range(x.dim()) if given is None or given == () else given
    dims = sorted({d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)})
    kept = bool(argument(args, kwargs, 2, "keepdim"))
    rest = [d for d in range(x.dim()) if d not in dims]
    shape = [x.shape[d] if d in rest else 1 for d in range(x.dim()) if kept or d in rest]
    rows = x.permute(*dims, *rest).reshape(-1, *shape)
    weight = torch.ones((), dtype=x.dtype, device=x.device) / (len(rows) if name == "mean" else 1)
    return Terms(rows, _row(weight, shape), x, reduces=True)
