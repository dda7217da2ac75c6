r"""Homogeneous functions: :math:`f(a x) = a^n f(x)` for a > 0, of all their inputs together.

By Euler's theorem gradient x input is n times the value, so that the gradient over n conserves
relevance. It is LRP-0 for a norm (n = 1), and gives each of the n factors of ``prod`` a share of
1/n, as a product of two gives each a half; a variance is quadratic, a product of two.

Source: Achtibat et al. 2024, prop. 3.3, for products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation, Treatment
from captum_lrp_stab.dispatch.products import with_surrogate
from captum_lrp_stab.dispatch.without_rule import mixing, unknown
from captum_lrp_stab.operations import gates, linearized
from captum_lrp_stab.operations.calls import TorchCall

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Form

_ORDER = {"cdist": 2, "dist": 2, "norm": 1, "pairwise_distance": 2, "vector_norm": 1}
"""The position of a norm's order among its arguments. A norm of order 0 counts values."""


def homogeneous(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a homogeneous function: its gradient over its degree conserves relevance."""
    known = call.gates.factor(call.x)  # a product or a norm of gates is a gate
    degree = _degree(call)
    if isinstance(degree, int) and degree < 1:
        return gates.marked(unknown(form, operation, call), known)
    if isinstance(degree, int) and degree == 1:
        return gates.marked(mixing(form, operation, call), known)
    operation.treatment = Treatment.SHARED
    operation.factors = degree if isinstance(degree, int) else "n"

    def over_degree(plain: Callable[..., Any]) -> Callable[..., Any]:
        return linearized.homogeneous(plain, degree)

    return gates.marked(with_surrogate(form, operation, call, over_degree), known)


def _degree(call: TorchCall) -> int | Tensor:
    """Return the degree of a call, for ``cumprod`` of each element of its result."""
    name, x = call.name, call.x
    if name in ("cov", "mse_loss", "var"):
        return 2
    if name == "det":
        return x.shape[-1]
    if name == "matrix_power":
        return int(call.argument(1, "n"))
    if name in ("cumprod", "prod"):
        dim = call.argument(1, "dim")
        dim = call.kwargs.get("axis") if dim is None else dim
        if not isinstance(dim, int) or not x.dim():
            return x.numel()
        if name == "prod":
            return x.shape[dim]
        numbers = torch.arange(1, x.shape[dim] + 1, dtype=x.dtype, device=x.device)
        return numbers.reshape(-1, *(1,) * (x.dim() - 1 - dim % x.dim()))
    place = _ORDER.get(name)
    key = "ord" if name == "vector_norm" else "p"
    order = None if place is None else call.argument(place, key)
    return 0 if order == 0 else 1
