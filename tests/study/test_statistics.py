"""Numbers of a relevance map, and what becomes of NaN in them."""

import math

import numpy as np
import pytest
import torch

from captum_lrp_stab.study.statistics import finite_part, place, statistics

NAN, INF = math.nan, math.inf


def test_statistics_of_finite_values() -> None:
    s = statistics(torch.tensor([[-3.0, 0.0], [1.0, 4.0]]))
    assert (s.minimum, s.maximum, s.total) == (-3.0, 4.0, 2.0)
    assert s.standard_deviation == pytest.approx(np.std([-3, 0, 1, 4]))
    assert s.peak_over_median == 2.0  # 4 over the median of 0, 1, 3, 4
    assert (s.negative, s.zero, s.positive, s.nan, s.infinite) == (1, 1, 2, 0, 0)


def test_statistics_with_nan_are_none_and_its_finite_part_stands_apart() -> None:
    values = torch.tensor([1.0, NAN, -2.0, INF, 0.0])
    s, part = statistics(values), finite_part(values)
    assert (s.minimum, s.maximum, s.standard_deviation, s.total) == (None,) * 4
    assert (s.negative, s.zero, s.positive, s.nan, s.infinite) == (1, 1, 1, 1, 1)
    assert part is not None
    assert (part.minimum, part.maximum, part.total, part.nan) == (-2.0, 1.0, -1.0, 0)


def test_finite_part_of_finite_values_is_none() -> None:
    assert finite_part(torch.zeros(3)) is None


def test_wild_outliers_do_not_overflow() -> None:
    s = statistics(torch.tensor([1e300, -1e300, 0.0], dtype=torch.float64))
    assert s.standard_deviation == pytest.approx(1e300 * math.sqrt(2 / 3))


def test_zeros_and_nothing() -> None:
    s = statistics(torch.zeros(5))
    assert (s.minimum, s.standard_deviation, s.peak_over_median, s.zero) == (0.0, 0.0, None, 5)
    assert statistics(torch.zeros(0)).maximum is None


def test_place_skips_what_is_not_finite() -> None:
    relevance = torch.tensor([[[NAN, 1.0]], [[5.0, INF]], [[-7.0, -INF]]])
    picture = torch.arange(6).reshape(3, 1, 2)
    inputs, gradient = picture / 10.0, picture * 2.0
    largest = place(relevance, True, picture, inputs, gradient)
    smallest = place(relevance, False, picture, inputs, gradient)
    assert largest is not None and smallest is not None
    assert (largest.channel, largest.row, largest.column, largest.relevance) == (1, 0, 0, 5.0)
    assert largest.pixel == (0, 2, 4)
    assert (largest.input, largest.gradient) == (pytest.approx(0.2), 4.0)
    assert (smallest.channel, smallest.relevance) == (2, -7.0)
    assert place(torch.full((3, 1, 2), NAN), True, picture, inputs, gradient) is None
