r"""Element-wise activations g with g(0) = 0, and their factors g(z) / z.

In gradient form relevance passes such an activation unchanged when the coefficient is multiplied
by g(z) / z, because :math:`R = g(z) c = z (c\, g(z)/z)`. At z = 0 the factor is the slope there.
Activations that are linear on each side of 0 (ReLU, leaky ReLU, PReLU) need nothing: their
derivative is g(z) / z already.

Source: Bach et al. 2015 (identity rule); Achtibat et al. 2024, sec. 3.2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SLOPES: dict[Callable[..., Any], float] = {
    F.gelu: 0.5,
    F.silu: 0.5,
    F.hardswish: 0.5,
    F.mish: 0.6,  # tanh(ln 2)
    F.tanhshrink: 0.0,
    F.softshrink: 0.0,
    F.relu6: 0.0,
    F.hardtanh: 1.0,
    F.hardtanh_: 1.0,
    F.softsign: 1.0,
    F.elu: 1.0,
    F.elu_: 1.0,
    F.celu: 1.0,
    torch.celu: 1.0,
    torch.celu_: 1.0,
    F.selu: 1.0507009873554805,
    torch.selu: 1.0507009873554805,
    torch.selu_: 1.0507009873554805,
    F.hardshrink: 0.0,
    torch.hardshrink: 0.0,
    Tensor.hardshrink: 0.0,
    F.tanh: 1.0,
    torch.tanh: 1.0,
    torch.tanh_: 1.0,
    Tensor.tanh: 1.0,
    Tensor.tanh_: 1.0,
    torch.clamp: 1.0,
    torch.clamp_: 1.0,
    torch.clip: 1.0,
    Tensor.clamp: 1.0,
    Tensor.clamp_: 1.0,
    Tensor.clip: 1.0,
    Tensor.clip_: 1.0,
}
"""Slope at 0 of every function served, in all its spellings."""

CLAMPS = {
    F.hardtanh,
    F.hardtanh_,
    torch.clamp,
    torch.clamp_,
    torch.clip,
    Tensor.clamp,
    Tensor.clamp_,
    Tensor.clip,
    Tensor.clip_,
}
RECTIFIERS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
LINEAR_SIDES = RECTIFIERS | {
    F.leaky_relu,
    F.leaky_relu_,
    F.prelu,
    torch.prelu,
    Tensor.prelu,
    F.rrelu,
    F.rrelu_,
    torch.rrelu,
    torch.rrelu_,
}
"""Activations whose derivative is the factor already."""

INPLACE = {f for f in SLOPES | dict.fromkeys(LINEAR_SIDES) if f.__name__.endswith("_")}


def factor(z: Tensor, y: Tensor, slope: float) -> Tensor:
    """Return ``y / z`` with ``slope`` where ``z`` is 0, shaped like ``z``."""
    return torch.where(z == 0, torch.full_like(z, slope), y / z)


def is_inplace(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the call writes to its first argument."""
    if func in INPLACE:
        return True
    if kwargs.get("inplace"):
        return True
    # positional inplace is the last parameter: F.relu6(x, True), F.hardtanh(x, 0.0, 6.0, True)
    return len(args) > 1 and args[-1] is True


def slope_at_zero(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> float | None:
    """Return the slope of the call's function at 0, or None if the function is not 0 there."""
    if func not in CLAMPS:
        return SLOPES[func]
    hardtanh = func in (F.hardtanh, F.hardtanh_)
    names = ("min_val", "max_val") if hardtanh else ("min", "max")
    bounds: list[Any] = [-1.0, 1.0] if hardtanh else [None, None]
    for position, name in enumerate(names):
        if len(args) > position + 1:
            bounds[position] = args[position + 1]
        bounds[position] = kwargs.get(name, bounds[position])
    if any(isinstance(bound, Tensor) for bound in bounds):
        return None
    low = float("-inf") if bounds[0] is None else bounds[0]
    high = float("inf") if bounds[1] is None else bounds[1]
    if not low <= 0 <= high:
        return None
    return 1.0 if low < 0 < high else 0.0
