r"""Complex tensors as pairs of real numbers, each of which has relevance of its own.

A complex value z with the coefficient c, the gradient as PyTorch defines it, has the relevance
:math:`\Re(z)\Re(c) + \Im(z)\Im(c) = \Re(z \bar c)`: gradient x input of ``torch.view_as_real(z)``,
summed over both parts. Where a backward pass carries relevance itself, that of the real part is the
real part of what it carries, and likewise the imaginary one. A linear layer with complex weights is
one on pairs, with the real weights :math:`\begin{pmatrix} \Re w & -\Im w \\ \Im w & \Re w
\end{pmatrix}`, so that every rule serves it.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from captum_lrp_stab.affine import Affine, Contraction, Convolution


def as_real(t: Tensor) -> Tensor:
    """Return a complex tensor with its parts in a last dimension of 2; any other as it is."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def like(values: Tensor, t: Tensor) -> Tensor:
    """Return what :func:`as_real` makes ``values`` of, if ``t`` is complex; else ``values``."""
    return torch.complex(values[..., 0], values[..., 1]) if t.is_complex() else values


def total(relevance: Tensor) -> Tensor:
    """Return the relevance of each number: the sum over the parts of a complex one."""
    return relevance.real + relevance.imag if relevance.is_complex() else relevance


def real_dtype(t: Tensor) -> torch.dtype:
    """Return the dtype of a tensor's relevance: that of its parts, if it is complex."""
    return t.real.dtype if t.is_complex() else t.dtype


def convert(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a floating-point tensor in another dtype, a complex one with parts of that dtype."""
    if t.is_complex():
        return t.to(torch.promote_types(dtype, torch.complex64))
    return t.to(dtype) if t.is_floating_point() else t


def has_complex_weights(module: nn.Module) -> bool:
    """Return whether a module has parameters of its own that are complex."""
    return any(p.is_complex() for p in module.parameters(recurse=False))


def on_pairs(op: Affine) -> Affine:
    """Return the map with real weights that does to pairs what a complex one does to numbers.

    Its features are those of :func:`split`.
    """
    re, im = op.weight.real, op.weight.imag
    if isinstance(op, Contraction):
        weight = torch.stack([torch.stack([re, im], -1), torch.stack([-im, re], -1)], -2)
        bias = None if op.bias is None else as_real(op.bias)
        x, z = (max(*op.x_dims, *op.weight_dims, *op.z_dims) + n for n in (1, 2))
        dims = (*op.x_dims, x), (*op.weight_dims, x, z), (*op.z_dims, z)
        return Contraction(weight, bias, *dims)
    to_re, to_im = torch.stack([re, -im], 2), torch.stack([im, re], 2)
    if isinstance(op, Convolution) and op.transposed:  # weight is (in, out / groups, ...)
        to_re, to_im = torch.stack([re, im], 2), torch.stack([-im, re], 2)
    weight = torch.stack([to_re, to_im], 1).flatten(2, 3).flatten(0, 1)
    bias = None if op.bias is None else as_real(op.bias).flatten()
    return replace(op, weight=weight, bias=bias)


def split(t: Tensor, op: Affine) -> Tensor:
    """Return an input or output of a complex layer with each feature as two, its parts."""
    if isinstance(op, Contraction):
        return as_real(t)
    place = t.dim() + _features(op)
    return as_real(t).movedim(-1, place + 1).flatten(place, place + 1)


def join(t: Tensor, op: Affine) -> Tensor:
    """Return what :func:`split` has made ``t`` of."""
    if isinstance(op, Contraction):
        return torch.view_as_complex(t.contiguous())
    place = t.dim() + _features(op)
    pairs = t.reshape(*t.shape[:place], -1, 2, *t.shape[place + 1 :]).movedim(place + 1, -1)
    return torch.complex(pairs[..., 0], pairs[..., 1])


def number_at(
    index: tuple[int, ...], pairs: tuple[int, ...], numbers: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the index of the number that an element of its pair belongs to.

    Args:
        index: Of the element.
        pairs: The shape of a tensor of pairs, of :func:`as_real` or :func:`split`.
        numbers: The shape of the complex one.

    Example:
        >>> number_at((0, 3, 1), (2, 4, 2), (2, 4)), number_at((0, 7), (2, 8), (2, 4))
        ((0, 3), (0, 3))
    """
    if len(pairs) > len(numbers):
        return index[: len(numbers)]
    doubled = [pair != number for pair, number in zip(pairs, numbers, strict=True)]
    return tuple(i // 2 if twice else i for i, twice in zip(index, doubled, strict=False))


def _features(op: Affine) -> int:
    """Return the dimension of the features, counted from the end."""
    return -1 - op.dims if isinstance(op, Convolution) else -1
