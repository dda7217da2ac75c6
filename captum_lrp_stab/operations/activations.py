r"""Element-wise activations g with g(0) = 0, and their factors g(z) / z.

In gradient form relevance passes such an activation unchanged when the coefficient is multiplied
by g(z) / z, because :math:`R = g(z) c = z (c\, g(z)/z)`. At z = 0 the factor is the slope there.
Activations that are linear on each side of 0 (ReLU, leaky ReLU, PReLU) need nothing: their
derivative is g(z) / z already.

Source: Bach et al. 2015 (identity rule); Achtibat et al. 2024, sec. 3.2.
"""

import math
import numbers
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.tensors.blocks import blocks, is_dense, like

SLOPES: dict[str, float] = {
    "gelu": 0.5,
    "silu": 0.5,
    "hardswish": 0.5,
    "mish": 0.6,  # tanh(ln 2)
    "tanhshrink": 0.0,
    "softshrink": 0.0,
    "hardshrink": 0.0,
    "relu6": 0.0,
    "softsign": 1.0,
    "elu": 1.0,
    "celu": 1.0,
    "selu": 1.0507009873554805,
    "tanh": 1.0,
    "sin": 1.0,
    "asinh": 1.0,
    "arcsinh": 1.0,
    "sinh": 1.0,
    "atan": 1.0,
    "arctan": 1.0,
    "expm1": 1.0,
    "log1p": 1.0,
    "erf": 2 / math.sqrt(math.pi),
    "tan": 1.0,
    "arcsin": 1.0,
    "asin": 1.0,
    "arctanh": 1.0,
    "atanh": 1.0,
    "erfinv": math.sqrt(math.pi) / 2,
    "square": 0.0,
    "sqrt": math.inf,
}
"""Slope at 0 of every function that is an activation whatever its arguments are."""

RECTIFIERS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_THRESHOLD = ("threshold", "value")


def scaled(c: Tensor, z: Tensor, y: Tensor, slope: float) -> Tensor:
    """Return ``c y / z`` with ``c slope`` where ``z`` is 0, shaped like ``z``.

    Where the slope is infinite, as that of a root, it is 0 there: so is ``y``, and its relevance.
    Of complex numbers the factor is conjugated, as in every gradient.
    """
    if math.isinf(slope):  # and a factor near 0 may be, which times a coefficient of 0 is 0
        return c * (y / z).masked_fill((z == 0) | (c == 0), 0).conj()
    if not is_dense(z) or {c.dtype, y.dtype} != {z.dtype} or z.is_complex():
        return c * torch.where(z == 0, torch.full_like(z, slope), y / z).conj()
    out = torch.empty_like(z)
    for c_, z_, y_, o in blocks(like(c, z), z, like(y, z), out):
        zero = torch.eq(z_, 0, out=torch.empty_like(z_))  # 1 where z is 0
        torch.add(y_, zero, alpha=slope, out=o)
        o.div_(zero.add_(z_)).mul_(c_)
    return out


def slope_at_zero(call: TorchCall) -> float | None:
    """Return the slope of the call's function at 0, or None if the function is not 0 there.

    Exponents and bounds may be tensors, all elements of which must allow for it.
    """
    name = call.name
    if name in SLOPES:
        return SLOPES[name]
    if call.kind.power:
        low, high = _range(call.argument(1, "exponent"))
        if not low > 0:
            return None
        return math.inf if low < 1 else float(high == 1)
    if call.kind.chooses:
        threshold, value = (call.argument(i, n) for i, n in enumerate(_THRESHOLD, 1))
        return 1.0 if threshold < 0 else 0.0 if value == 0 else None
    bounds = bounds_of(call)
    if bounds is None:
        return None
    low, high = _range(bounds[0])[1], _range(bounds[1])[0]
    return float(low < 0 < high) if low <= 0 <= high else None


def _range(value: Any) -> tuple[float, float]:
    """Return the least and the largest of a number, or of a tensor of constants; NaN for others."""
    if isinstance(value, Tensor) and value.numel() and not value.is_complex():
        low, high = torch.aminmax(value.detach())
        return float(low), float(high)
    known = float(value) if isinstance(value, numbers.Real) else math.nan
    return known, known


def is_monotone(call: TorchCall) -> bool:
    """Return whether a rectifier is known not to change the order of its inputs."""
    if call.name == "leaky_relu":
        slope = call.argument(1, "negative_slope")
        return slope is None or slope >= 0
    return call.func in RECTIFIERS


def keeps_sign(call: TorchCall) -> bool:
    """Return whether an activation's values are known to be 0 or to have their argument's sign."""
    upside_down = call.name == "elu" and (call.argument(1, "alpha") or 1) < 0
    return call.kind.keeps_sign and not upside_down


def is_inverse(call: TorchCall) -> bool:
    """Return whether the call is a negative power: 1 over something, a factor and no signal."""
    return call.kind.power and _range(call.argument(1, "exponent"))[1] < 0


def cuts_off(call: TorchCall) -> bool:
    """Return whether a call's values are 0 wherever its argument is negative."""
    bounds = bounds_of(call)
    return bounds is not None and _range(bounds[0]) == (0, 0)


def bounds_of(call: TorchCall) -> tuple[Any, Any] | None:
    """Return the lower and upper bound of a clamp or its kin, None for any other function."""
    name = call.name
    if name == "relu6":
        return 0.0, 6.0
    if name == "clamp_min":
        return call.argument(1, "min"), math.inf
    if name == "clamp_max":
        return -math.inf, call.argument(1, "max")
    if name == "hardtanh":
        low, high = call.argument(1, "min_val"), call.argument(2, "max_val")
        return (-1.0 if low is None else low), (1.0 if high is None else high)
    if call.kind.clamps:
        low, high = call.argument(1, "min"), call.argument(2, "max")
        return (-math.inf if low is None else low), (math.inf if high is None else high)
    return None
