r"""Non-linear operations as functions with the same value, whose plain gradient is an LRP rule.

In gradient form calling such a function is all there is to do; in relevance form its
vector-Jacobian product stands in for the layer's: :math:`R_{in} = x \odot J^T (R / s(z))`.

- Product of data: each of its n factors gets 1/n (Achtibat et al. 2024, prop. 3.3); a factor that
  is held constant gets nothing and leaves all to the others (Arras et al. 2017).
- Normalisation: linear, with its statistics held constant (Ali et al. 2022, sec. 4.2).
- Attention, gated linear unit: written out, so that each operation in it gets its own rule.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.tensors import nested
from captum_lrp_stab.tensors.step import Step

HELD = 0.0
"""The share of a factor that is held constant."""


def _sharing(t: Tensor, share: float | Tensor) -> Tensor:
    """Return ``t``, which gets a share of the relevance that is propagated to it."""
    alias = t.view_as(t)
    if alias.requires_grad:
        alias.register_hook(lambda c: c * share)  # type: ignore[no-untyped-call]
    return alias


def product(
    func: Callable[..., Any], shares: Sequence[float | None]
) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """Return ``func`` with a share for each of its tensor arguments.

    Args:
        func: A function that is linear in each factor.
        shares: For each tensor among the arguments, in order: ``HELD``, the part of the relevance
            it gets, or None for a tensor that is no factor.
    """

    def shared(*args: Any, **kwargs: Any) -> Any:
        remaining = iter(shares)

        def change(t: Tensor) -> Tensor:
            share = next(remaining)
            if share is None:
                return t
            return t.detach() if share == HELD else _sharing(t, share)

        return func(*nested.mapped(change, args), **nested.mapped(change, kwargs))

    return shared


def homogeneous(func: Callable[..., Any], degree: int | Tensor) -> Callable[..., Tensor]:
    """Return ``func`` with its gradient over its degree, such as a product of so many elements."""

    def over_degree(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = func(*args, **kwargs)
        return _sharing(out, 1 / degree)

    return over_degree


# normalisation -----------------------------------------------------------------------------------


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *ignored: Any,
) -> Tensor:
    """Return ``F.layer_norm`` of the arguments."""
    z = F.layer_norm(input.detach(), normalized_shape, weight, bias, eps)
    rows = (*input.shape[: input.dim() - len(normalized_shape)], math.prod(normalized_shape))
    return _normalised(input, z, rows, weight, eps)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Return ``F.rms_norm`` of the arguments."""
    z = F.rms_norm(input.detach(), normalized_shape, weight, eps)
    rows = (*input.shape[: input.dim() - len(normalized_shape)], math.prod(normalized_shape))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _normalised(input, z, rows, weight, eps, centred=False)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *ignored: Any,
) -> Tensor:
    """Return ``F.group_norm`` of the arguments."""
    z = F.group_norm(input.detach(), num_groups, weight, bias, eps)
    rows = (len(input), num_groups, input[:1].numel() // num_groups)
    weight = None if weight is None else _per_channel(weight, input)
    return _normalised(input, z, rows, weight, eps)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``F.instance_norm`` of the arguments; with running statistics it is a batch norm."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    z = F.instance_norm(input.detach(), weight=weight, bias=bias, eps=eps)
    rows = (*input.shape[:2], math.prod(input.shape[2:]))
    weight = None if weight is None else _per_channel(weight, input)
    return _normalised(input, z, rows, weight, eps)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return ``F.batch_norm`` of the arguments in eval mode, where it is linear.

    Torch's own backward pass on a CPU gives wrong numbers for a batch of one where the gradient has
    other strides than the input, as behind a transposition.
    """
    assert running_mean is not None and running_var is not None
    factor = _per_channel(batch_norm_scale(running_var, weight, eps), input)
    dtype = input.dtype  # not input itself, which the model may write over: see autograd_nodes
    z = F.batch_norm(input.detach(), running_mean, running_var, weight, bias, eps=eps)
    return Step.apply(lambda c: ((c * factor).to(dtype),), z.detach(), input)  # type: ignore[no-any-return]


def batch_norm_scale(running_var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return the factor of each channel in a batch norm in eval mode."""
    with torch.no_grad():
        scale = torch.rsqrt(running_var + eps)
        return scale if weight is None else scale * weight


def batch_norm_by_data(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    **ignored: Any,
) -> Tensor:
    """Return the same in single operations, where scale or shift depend on the input."""
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    return input * _per_channel(scale, input) + _per_channel(shift, input)


def _per_channel(weight: Tensor, x: Tensor) -> Tensor:
    return weight.reshape(1, -1, *(1,) * (x.dim() - 2))


def _normalised(
    x: Tensor,
    z: Tensor,
    rows: tuple[int, ...],
    weight: Tensor | None,
    eps: float,
    centred: bool = True,
) -> Tensor:
    """Return ``z``, connected to ``x`` by the normalisation with its scale held constant.

    Args:
        x: The input.
        z: The normalised input.
        rows: The shape in which the last dimension of x is normalised.
        weight: Multiplies the result, broadcasting to x's shape.
        eps: Added to the mean square.
        centred: Whether the mean is subtracted.
    """
    wide = x.detach().reshape(rows).to(torch.promote_types(x.dtype, torch.float32))
    spread = wide - wide.mean(-1, keepdim=True) if centred else wide
    scale = torch.rsqrt(spread.square().mean(-1, keepdim=True) + eps)
    factor = None if weight is None else weight.detach()
    shape, dtype = (
        x.shape,
        x.dtype,
    )  # not x itself, which the model may write over: see autograd_nodes

    def backward(c: Tensor) -> tuple[Tensor]:
        c = c if factor is None else c * factor
        c = c.reshape(rows) * scale
        c = c - c.mean(-1, keepdim=True) if centred else c
        return (c.reshape(shape).to(dtype),)

    return Step.apply(backward, z.detach(), x)  # type: ignore[no-any-return]


NORMALISATIONS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    F.group_norm: group_norm,
    torch.group_norm: group_norm,
    F.instance_norm: instance_norm,
}
"""From a torch function to the one with the gradient that is its rule."""
