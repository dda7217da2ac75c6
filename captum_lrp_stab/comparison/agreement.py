"""How well two relevance maps agree, in numbers.

Every number is that of the sample that agrees least, so that one picture in a batch cannot hide
behind the others. Where either map has NaN or Inf no number of agreement exists: they are None, and
the counts say why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_stab.tensors.blocks import spaced
from captum_lrp_stab.tensors.complex_values import as_real

TOP = 0.01
"""The share of pixels whose overlap is counted."""

_WILD = 1e100
"""Squares of larger values may overflow, and of smaller ones than its inverse vanish."""


@dataclass(frozen=True)
class Agreement:
    """Two maps, compared in float64.

    ``relative_l2`` is :math:`|a - b| / |b|`, b being the reference: 0 where both are 0, infinite
    where only b is. ``cosine`` is None where a map is 0, ``pearson`` and ``spearman`` where one is
    constant. ``top_overlap`` is the share of the reference's strongest 1% of pixels (by absolute
    value, summed over channels) that are among ours; None where a map is 0.
    """

    max_absolute: float | None
    relative_l2: float | None
    cosine: float | None
    pearson: float | None
    spearman: float | None
    top_overlap: float | None
    total: float | None  # sum of our relevance, of all samples; None where it is not finite
    reference_total: float | None
    nonfinite: int  # values of ours that are NaN or Inf
    reference_nonfinite: int

    @property
    def is_finite(self) -> bool:
        """Whether neither map has NaN or Inf."""
        return not self.nonfinite and not self.reference_nonfinite

    def within(self, tolerance: float) -> bool:
        """Return whether the maps are finite and their relative difference is at most that."""
        return self.relative_l2 is not None and self.relative_l2 <= tolerance


def agreement(
    ours: Sequence[Tensor], reference: Sequence[Tensor], ranked: int | None = None
) -> Agreement:
    """Compare relevance maps.

    Args:
        ours: One tensor ``(N, ...)`` for each input of a model or a layer.
        reference: Tensors of the same shapes.
        ranked: How many values of a sample are ranked at most, evenly spaced; None for all. To rank
            millions takes as long as a gradient.

    Example:
        >>> a = agreement([torch.tensor([[1.0, 2.0, 4.0]])], [torch.tensor([[1.0, 2.0, 3.0]])])
        >>> (
        ...     round(a.relative_l2, 3),
        ...     round(a.spearman, 3),
        ...     a.max_absolute,
        ...     a.total,
        ...     a.reference_total,
        ... )
        (0.267, 1.0, 1.0, 7.0, 6.0)
    """
    ours, reference = _wide(ours), _wide(reference)
    bad, reference_bad = (sum(map(_nonfinite, side)) for side in (ours, reference))
    total, reference_total = (_finite(sum(float(t.sum()) for t in s)) for s in (ours, reference))
    counts = total, reference_total, bad, reference_bad
    if bad or reference_bad:
        return Agreement(None, None, None, None, None, None, *counts)
    samples = _samples(ours)
    a, b = _rows(ours, samples), _rows(reference, samples)
    pixels = _rows(_pixels(ours), samples), _rows(_pixels(reference), samples)
    return Agreement(
        _finite(float((a - b).abs().max())) if a.numel() else 0.0,
        max(map(_relative, a, b), default=0.0),
        _least(map(_cosine, a, b)),
        _least(map(_correlation, a, b)),
        _least(map(_correlation, *([_ranks(spaced(t, ranked)) for t in side] for side in (a, b)))),
        _least(map(_overlap, *pixels)),
        *counts,
    )


def relative_difference(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float | None:
    """Return ``relative_l2`` of :func:`agreement` alone."""
    ours, reference = _wide(ours), _wide(reference)
    if any(map(_nonfinite, (*ours, *reference))):
        return None
    samples = _samples(ours)
    return max(map(_relative, _rows(ours, samples), _rows(reference, samples)), default=0.0)


def tolerance(dtype: torch.dtype, depth: int) -> float:
    r"""Return the relative difference that two correct computations may have.

    It is :math:`u^{2/3} \sqrt{\max(d, 10) / 10}`: u is the unit roundoff of the dtype, d the number
    of layers with a rule. A rounding error of u in every layer adds up like a random walk; the
    other :math:`u^{-1/3}` (200 in float32) is for denominators that are small because what they sum
    up cancels. It is a convention, and can be given another value wherever it is used.

    Example:
        >>> [f"{tolerance(t, 16):.1e}" for t in (torch.float64, torch.float32, torch.bfloat16)]
        ['2.9e-11', '1.9e-05', '3.1e-02']
    """
    unit = torch.finfo(dtype).eps / 2
    return float(unit ** (2 / 3) * math.sqrt(max(depth, 10) / 10))


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors in float64, complex ones as pairs."""
    return [as_real(t.detach()).double() for t in tensors]


def _samples(tensors: Sequence[Tensor]) -> int:
    first = tensors[0]
    alike = all(t.dim() and first.dim() and len(t) == len(first) for t in tensors)
    return len(first) if alike else 1


def _rows(tensors: Sequence[Tensor], samples: int) -> Tensor:
    return torch.cat([t.reshape(samples, t.numel() // max(samples, 1)) for t in tensors], dim=1)


def _pixels(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum over the channels of pictures ``(N, C, H, W)``."""
    return [t.sum(1) if t.dim() == 4 else t for t in tensors]


def _nonfinite(t: Tensor) -> int:
    """Return how many values are NaN or Inf."""
    return 0 if bool(t.sum().isfinite()) else int((~t.isfinite()).sum())


def _is_wild(*sizes: float) -> bool:
    """Return whether squares of numbers of such sizes overflow or vanish."""
    return any(size and not 1 / _WILD < size < _WILD for size in sizes)


def _scaled(*tensors: Tensor) -> list[Tensor]:
    """Return tensors divided by the largest value among them."""
    largest = max(float(t.abs().max()) for t in tensors)
    return [t / largest for t in tensors] if largest else list(tensors)


def _relative(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    norm, difference = float(b.norm()), float((a - b).norm())
    if _is_wild(norm, difference) or not norm:
        a, b = _scaled(a, b)
        norm, difference = float(b.norm()), float((a - b).norm())
    return difference / norm if norm else math.inf if difference else 0.0


def _cosine(a: Tensor, b: Tensor) -> float | None:
    if not a.numel():
        return None
    norms = float(a.norm()), float(b.norm())
    if _is_wild(*norms) or not all(norms):
        (a,), (b,) = _scaled(a), _scaled(b)
        norms = float(a.norm()), float(b.norm())
    return max(-1.0, min(1.0, float(a @ b) / math.prod(norms))) if all(norms) else None


def _correlation(a: Tensor, b: Tensor) -> float | None:
    """Return Pearson's coefficient; of ranks it is Spearman's."""
    if not a.numel():
        return None
    bounds = [[float(bound) for bound in t.aminmax()] for t in (a, b)]
    if any(low == high for low, high in bounds):
        return None  # the mean is rounded: what is left of a constant would be a direction
    if _is_wild(*(max(-low, high) for low, high in bounds)):
        (a,), (b,) = _scaled(a), _scaled(b)
    return _cosine(a - a.mean(), b - b.mean())


def _ranks(values: Tensor) -> Tensor:
    """Return ranks; equal values share their mean rank."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = (counts.cumsum(0) - (counts - 1) / 2).double()[place]
    return ranks


def _overlap(a: Tensor, b: Tensor) -> float | None:
    if not a.numel() or not a.any() or not b.any():
        return None
    count = max(1, math.ceil(TOP * a.numel()))
    ours, reference = (t.abs().topk(count).indices for t in (a, b))
    is_top = torch.zeros_like(a, dtype=torch.bool).index_fill_(0, reference, True)
    return int(is_top[ours].sum()) / count


def _least(values: "map[float | None]") -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return min(known) if found and len(known) == len(found) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
