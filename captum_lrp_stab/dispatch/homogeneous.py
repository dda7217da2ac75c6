r"""Homogeneous functions: :math:`f(a x) = a^n f(x)` for a > 0, of all their inputs together.

By Euler gradient x input is n times the value, so that the gradient over n conserves relevance. It
is LRP-0 for a norm (n = 1), and gives each factor of a product its share (``prod``, n factors), as
each of two is given half; a variance is quadratic, a product of two.

Source: Achtibat et al. 2024, prop. 3.3, for products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.products import with_surrogate
from captum_lrp_stab.dispatch.without_rule import mixing, unknown
from captum_lrp_stab.operations import gates, linearized, table
from captum_lrp_stab.operations.calls import argument, first
from captum_lrp_stab.operations.table import canonical_name

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.mode import Interception


Function = Callable[..., Any]


def homogeneous(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a homogeneous function: its gradient over its degree conserves relevance."""
    x, operands = first(args, kwargs), operation.operands
    # of values that are gates a product is one, and so is a norm
    kind = operands.gate(x) if operands.is_factor(x) else None
    degree = _degree(canonical_name(func), args, kwargs)
    if isinstance(degree, int) and degree < 1:
        return gates.marked(unknown(mode, operation, func, args, kwargs), kind)
    if isinstance(degree, int) and degree == 1:
        return gates.marked(mixing(mode, operation, func, args, kwargs), kind)
    count = degree if isinstance(degree, int) else "n"
    operation.treatment = f"1/{count} to each factor"

    def over_degree(plain: Function) -> Function:
        return linearized.homogeneous(plain, degree)

    out = with_surrogate(mode, operation, func, over_degree, args, kwargs)
    return gates.marked(out, kind)


def _degree(name: str, args: Any, kwargs: Any) -> int | Tensor:
    """Return the degree of a call, for ``cumprod`` of each element of its result."""
    x = first(args, kwargs)
    if name in ("cov", "mse_loss", "var"):
        return 2
    if name == "det":
        return x.shape[-1]
    if name == "matrix_power":
        return int(argument(args, kwargs, 1, "n"))
    if name in ("cumprod", "prod"):
        dim = argument(args, kwargs, 1, "dim")
        dim = kwargs.get("axis") if dim is None else dim
        if not isinstance(dim, int) or not x.dim():
            return x.numel()
        if name == "prod":
            return x.shape[dim]
        numbers = torch.arange(1, x.shape[dim] + 1, dtype=x.dtype, device=x.device)
        return numbers.reshape(-1, *(1,) * (x.dim() - 1 - dim % x.dim()))
    place = table.NORMS.get(name)
    key = "ord" if name == "vector_norm" else "p"
    order = None if place is None else argument(args, kwargs, place, key)
    return 0 if order == 0 else 1  # of order 0 it counts
