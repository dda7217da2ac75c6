"""Layers with complex weights as layers of pairs of real numbers."""

from dataclasses import replace

import torch
from torch import Tensor

from captum_lrp_stab.rules.affine import Affine, Contraction, Convolution
from captum_lrp_stab.tensors.complex_values import as_real


def on_pairs(op: Affine) -> Affine:
    """Return the real map on pairs that equals a complex map on numbers.

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
    """Return the complex tensor that :func:`split` has turned into ``t``."""
    if isinstance(op, Contraction):
        return torch.view_as_complex(t.contiguous())
    place = t.dim() + _features(op)
    pairs = t.reshape(*t.shape[:place], -1, 2, *t.shape[place + 1 :]).movedim(place + 1, -1)
    return torch.complex(pairs[..., 0], pairs[..., 1])


def _features(op: Affine) -> int:
    """Return the dimension of the features, counted from the end."""
    return -1 - op.dims if isinstance(op, Convolution) else -1
