"""From tensors to numbers: flows, histograms, single elements.

Sums are in float64, whatever the dtype, so that a ledger closes to rounding of its terms.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from captum_lrp_stab.diagnosis.records import EDGES, Flow, Histogram

_BINS = 1700  # of a twentieth of a power of ten: 6% to either side
_MOST = 2**13  # elements in a histogram


def flow_of(relevance: Tensor) -> Flow:
    """Return the sum, L1 norm and largest absolute value of what is finite, and what is not."""
    if not relevance.numel():
        return Flow()
    l1 = float(torch.linalg.vector_norm(relevance, 1, dtype=torch.float64))
    if math.isfinite(l1):
        largest = float(torch.linalg.vector_norm(relevance, math.inf))
        return Flow(total_of(relevance), l1, largest)
    finite = relevance[relevance.isfinite()].double()
    return replace(flow_of(finite), nonfinite=relevance.numel() - finite.numel())


def is_finite(t: Tensor) -> bool:
    """Return whether all elements are finite."""
    return math.isfinite(total_of(t)) or bool(t.isfinite().all())


def histogram_of(positive: Tensor) -> Histogram:
    """Return how often each power of ten occurs; zeros, NaN and Inf are left out.

    Of a large tensor every n-th element is taken.
    """
    flat = positive.flatten()
    step = math.ceil(flat.numel() / _MOST) or 1
    while math.gcd(step, flat.numel()) > 1 and step > 1:  # or it would see the same columns only
        step += 1
    exponents = flat[::step].log10()
    low, high = EDGES
    counts = torch.histc(exponents[exponents.isfinite()].float(), bins=_BINS, min=low, max=high)
    return Histogram(tuple(counts.long().tolist()))


def total_of(values: Tensor) -> float:
    """Return the sum in float64."""
    return float(values.sum(dtype=torch.float64))


def first_index(mask: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first true element, None if there is none."""
    flat = mask.flatten()
    if not bool(flat.any()):
        return None
    return _unravelled(int(flat.to(torch.uint8).argmax()), mask)


def index_of_largest(values: Tensor) -> tuple[int, ...] | None:
    """Return the index of the largest element, NaN being larger than any; None of no elements."""
    return _unravelled(int(values.argmax()), values) if values.numel() else None


def _unravelled(position: int, t: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(position), t.shape))
