"""From tensors to numbers: flows, histograms, single elements.

Sums lose less than the rounding of their terms, so that a ledger closes to that.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from captum_lrp_stab.ledger.records import EDGES, Flow, Histogram
from captum_lrp_stab.tensors.blocks import spaced

Index = tuple[int, ...]

_BINS = 1700  # of a twentieth of a power of ten: 6% to either side
_BLOCK = 2**10
_MOST = 2**13  # elements in a histogram


def flow_of(relevance: Tensor) -> Flow:
    """Return the sum, L1 norm and largest absolute value of what is finite, and what is not."""
    if not relevance.numel():
        return Flow()
    sizes = relevance.abs()
    l1 = total_of(sizes)
    if math.isfinite(l1):
        return Flow(total_of(relevance), l1, float(sizes.max()))
    finite = relevance[relevance.isfinite()].double()
    return replace(flow_of(finite), nonfinite=relevance.numel() - finite.numel())


def is_finite(t: Tensor) -> bool:
    """Return whether all elements are finite."""
    return bool(t.sum().isfinite()) or bool(t.isfinite().all())


def histogram_of(positive: Tensor) -> Histogram:
    """Return how often each power of ten occurs; zeros, NaN and Inf are left out.

    Of a large tensor every n-th element is taken.
    """
    exponents = spaced(positive, _MOST).log10()
    low, high = EDGES
    counts = torch.histc(exponents.float(), bins=_BINS, min=low, max=high)  # passes over NaN, Inf
    return Histogram(tuple(counts.long().tolist()))


def total_of(values: Tensor) -> float:
    """Return the sum: of blocks in the dtype of the values, of the blocks in float64.

    A sum in float64 throughout takes 20 times as long, and no term is known to that many digits.
    """
    flat = values.flatten()
    whole = flat.numel() // _BLOCK * _BLOCK
    blocks = flat[:whole].view(-1, _BLOCK).sum(1).double().sum()
    return float(blocks + flat[whole:].sum(dtype=torch.float64))


def nonfinite(t: Tensor) -> tuple[int, Index] | None:
    """Return how many elements are NaN or infinite, and the index of the first; None for none."""
    if is_finite(t):
        return None
    bad = ~t.isfinite()
    index = first_index(bad)
    assert index is not None
    return int(bad.sum()), index


def first_index(mask: Tensor) -> Index | None:
    """Return the index of the first true element, None if there is none."""
    found = mask.flatten().nonzero()
    if not len(found):
        return None
    return tuple(int(i) for i in torch.unravel_index(found[0, 0], mask.shape))


def index_of_largest(values: Tensor) -> Index | None:
    """Return the index of the largest element, NaN being larger than any; None of no elements."""
    if not values.numel():
        return None
    largest = values.max()  # argmax itself takes several times as long
    return first_index(values.isnan() if bool(largest.isnan()) else values == largest)
