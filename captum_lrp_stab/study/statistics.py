"""Statistics of a relevance map, and the places of its extremes.

Maps have the shape ``(C, H, W)`` per value, or ``(H, W)`` summed over channels. A number that would
involve NaN or Inf is None; what the finite values alone say is a record of its own, and never
stands in for the whole.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Counts and moments of a map; see the module's docstring for None."""

    minimum: float | None
    maximum: float | None
    standard_deviation: float | None  # of the population: divided by n
    total: float | None
    peak_over_median: float | None  # largest over median absolute value: bright patches
    negative: int
    zero: int
    positive: int
    nan: int
    infinite: int


def statistics(values: Tensor) -> Statistics:
    """Return the statistics of all elements of a tensor, computed in float64.

    Example:
        >>> s = statistics(torch.tensor([-1.0, 0.0, 3.0]))
        >>> s.minimum, s.maximum, s.total, s.negative, s.zero, s.positive
        (-1.0, 3.0, 2.0, 1, 1, 1)
    """
    flat = values.detach().to(torch.float64).flatten()
    nan, infinite = int(flat.isnan().sum()), int(flat.isinf().sum())
    finite = flat[flat.isfinite()]
    minimum = maximum = deviation = total = peak = None
    if len(finite) and not nan and not infinite:
        minimum, maximum = float(finite.min()), float(finite.max())
        largest = max(abs(minimum), abs(maximum))
        scaled = finite / (largest or 1.0)  # squares of wild outliers overflow
        deviation = _finite_or_none(largest * float(scaled.std(correction=0)))
        total = _finite_or_none(largest * float(scaled.sum()))
        median = float(np.median(finite.abs().numpy()))
        peak = _finite_or_none(largest / median) if median else None
    return Statistics(
        minimum,
        maximum,
        deviation,
        total,
        peak,
        negative=int((finite < 0).sum()),
        zero=int((finite == 0).sum()),
        positive=int((finite > 0).sum()),
        nan=nan,
        infinite=infinite,
    )


def finite_part(values: Tensor) -> Statistics | None:
    """Return the statistics of the finite elements alone; None if there are no others."""
    finite = values[values.isfinite()]
    return None if finite.numel() == values.numel() else statistics(finite)


@dataclass(frozen=True)
class Place:
    """One value of a relevance map, and what the picture and the model are there."""

    channel: int
    row: int
    column: int
    relevance: float
    pixel: tuple[int, ...]  # the picture's 8-bit colour
    input: float  # the model's input: that channel of the pixel, normalised
    gradient: float | None  # of the score with respect to this input


def place(
    relevance: Tensor, largest: bool, picture: Tensor, inputs: Tensor, gradient: Tensor
) -> Place | None:
    """Return where the largest or smallest finite relevance sits, None if none is finite.

    Args:
        relevance: Shape ``(C, H, W)``; likewise the other tensors.
        largest: The largest, or else the smallest; of several equal ones, the first.
        picture: 8-bit integers.
        inputs: The model's input.
        gradient: The plain gradient of the score.
    """
    finite = relevance.isfinite()
    if not bool(finite.any()):
        return None
    never = -math.inf if largest else math.inf
    candidates = torch.where(finite, relevance.to(torch.float64), never).flatten()
    index = int(candidates.argmax() if largest else candidates.argmin())
    channel, row, column = (int(i) for i in torch.unravel_index(torch.tensor(index), inputs.shape))
    return Place(
        channel,
        row,
        column,
        float(relevance[channel, row, column]),
        tuple(int(v) for v in picture[:, row, column]),
        float(inputs[channel, row, column]),
        _finite_or_none(float(gradient[channel, row, column])),
    )


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
