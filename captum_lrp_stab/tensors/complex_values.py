r"""Complex tensors as pairs of real numbers, each of which has relevance of its own.

A complex value z with the coefficient c, the gradient as PyTorch defines it, has the relevance
:math:`\Re(z)\Re(c) + \Im(z)\Im(c) = \Re(z \bar c)`: gradient x input of ``torch.view_as_real(z)``,
summed over both parts. Where a backward pass carries relevance itself, that of the real part is the
real part of what it carries, and likewise the imaginary one. A linear layer with complex weights is
one on pairs, with the real weights :math:`\begin{pmatrix} \Re w & -\Im w \\ \Im w & \Re w
\end{pmatrix}`, so that every rule serves it.
"""

import torch
from torch import Tensor, nn


def as_real(t: Tensor) -> Tensor:
    """Return a complex tensor with its parts in a last dimension of 2; any other as it is."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def like(values: Tensor, t: Tensor) -> Tensor:
    """Return ``values`` as complex numbers, undoing :func:`as_real`, if ``t`` is complex."""
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
