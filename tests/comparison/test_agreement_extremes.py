"""The agreement of maps that are not finite, zero, constant, huge or empty."""

import math

import pytest
import torch
from torch import Tensor

from captum_lrp_stab.comparison.agreement import agreement
from tests.helpers.random_maps import (
    CORRELATIONS,
    NUMBERS,
    SHARES,
    drawn,
    expected_numbers,
    maps,
    numbers,
    spoilt,
)

# NaN and Inf ------------------------------------------------------------------------------------


BAD = {
    "nan": [math.nan],
    "inf": [math.inf],
    "-inf": [-math.inf],
    "inf and -inf": [math.inf, -math.inf],
    "three": [math.nan, math.inf, math.nan],
}


every_bad = pytest.mark.parametrize("values", BAD.values(), ids=[*BAD])


@every_bad
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("sides", ["ours", "reference", "both"])
def test_a_value_that_is_not_finite_is_never_averaged_away(values, index, sides) -> None:
    good = maps([(4, 6), (4, 5)], 0)
    bad = spoilt(good, values, index)
    ours, reference = (bad if sides in (side, "both") else good for side in ("ours", "reference"))
    found = agreement(ours, reference)
    assert numbers(found) == [None] * len(NUMBERS)
    counts = len(values) * (sides != "reference"), len(values) * (sides != "ours")
    assert (found.nonfinite, found.reference_nonfinite) == counts
    totals = found.total, found.reference_total
    for total, count in zip(totals, counts, strict=True):
        finite = sum(float(m.sum()) for m in good)
        assert total is None if count else total == pytest.approx(finite)
    assert not found.is_finite and not found.within(math.inf)


def test_finite_maps_have_every_number() -> None:
    """The control of the test above."""
    good = maps([(4, 6), (4, 5)], 0)
    found = agreement(good, spoilt(good, [7.0], 0))
    assert None not in vars(found).values()
    assert found.is_finite and found.within(math.inf)
    assert (found.nonfinite, found.reference_nonfinite) == (0, 0)


def test_counts_differ_between_the_sides() -> None:
    good = maps([(2, 6)], 0)
    found = agreement(spoilt(good, [math.nan]), spoilt(good, [math.inf] * 4))
    assert (found.nonfinite, found.reference_nonfinite) == (1, 4)


# Zero, constant, huge, tiny, none ---------------------------------------------------------------


ZERO, ONE = torch.zeros(2, 5), torch.arange(10.0).reshape(2, 5)


def test_zero_maps_agree_and_have_no_direction() -> None:
    found = agreement([ZERO], [ZERO])
    assert (found.max_absolute, found.relative_l2) == (0.0, 0.0)
    assert numbers(found, CORRELATIONS) == [None] * 3
    assert found.within(0.0)


def test_a_zero_map_against_another() -> None:
    without_reference, without_ours = agreement([ONE], [ZERO]), agreement([ZERO], [ONE])
    assert without_reference.relative_l2 == math.inf
    assert without_ours.relative_l2 == 1.0
    for found in (without_reference, without_ours):
        assert found.max_absolute == 9.0
        assert numbers(found, CORRELATIONS) == [None] * 3
    assert not without_reference.within(1e300)


def test_one_sample_without_a_direction_leaves_the_batch_without() -> None:
    half = torch.stack([ONE[0], ZERO[0]])
    assert numbers(agreement([half], [half]), CORRELATIONS) == [None] * 3
    assert numbers(agreement([half[:1]], [half[:1]]), CORRELATIONS) == pytest.approx([1] * 3)


def constant_pairs(value: float, features: int) -> list[tuple[Tensor, Tensor]]:
    constant = torch.full((2, features), value, dtype=torch.float64)
    other = drawn(2, features)
    return [(constant, other), (other, constant), (constant, 2 * constant)]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 2.0**-600])
def test_constant_maps_have_no_correlation(value) -> None:
    for a, b in constant_pairs(value, 7):
        found = agreement([a], [b])
        assert (found.pearson, found.spearman) == (None, None)


def test_constant_maps_with_a_rounded_mean_have_no_correlation() -> None:
    for value in (0.1, 1 / 3, -0.7, 1e-200, 1e200):
        for a, b in (
            pair for features in (3, 6, 7, 100) for pair in constant_pairs(value, features)
        ):
            found = agreement([a], [b])
            assert (found.pearson, found.spearman) == (None, None)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-30, 1e30, 1e200, 1e300])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(scale) -> None:
    a, b = maps([(3, 8)], 0), maps([(3, 8)], 5)
    expected = expected_numbers(a, b)
    found = agreement(*([scale * m for m in side] for side in (a, b)))
    relative = ("relative_l2", *SHARES)
    assert numbers(found, relative) == pytest.approx([expected[n] for n in relative], rel=1e-9)
    for name in ("max_absolute", "total", "reference_total"):
        assert getattr(found, name) / scale == pytest.approx(expected[name], rel=1e-9)


def test_sides_of_different_size() -> None:
    (a,), (b,) = maps([(2, 8)], 0), maps([(2, 8)], 5)
    expected = expected_numbers([a], [b])
    found = agreement([1e100 * a], [1e-50 * b])
    norms = [
        (1e100 * m).norm().item() / (1e-50 * n).norm().item() for m, n in zip(a, b, strict=True)
    ]
    assert found.relative_l2 == pytest.approx(max(norms), rel=1e-9)
    assert numbers(found, CORRELATIONS) == pytest.approx([expected[n] for n in CORRELATIONS])


def test_a_total_that_overflows_is_none() -> None:
    huge = torch.full((1, 4), 1e308, dtype=torch.float64) * torch.tensor([1, 1, 1, 0.5])
    found = agreement([huge], [1e-8 * huge])
    assert found.total is None
    assert found.reference_total == pytest.approx(3.5e300)
    assert (found.nonfinite, found.cosine) == (0, pytest.approx(1))


def test_no_number_is_made_up_where_sums_overflow() -> None:
    """Values whose sum is beyond float64 correlate as they do when they are smaller."""
    a, b = drawn(1, 1000).abs(), drawn(1, 1000, seed=1).abs()
    found, smaller = agreement([1e306 * a], [1e306 * b]), agreement([a], [b])
    assert numbers(found, SHARES) == pytest.approx(numbers(smaller, SHARES), abs=1e-9)
    assert found.relative_l2 == pytest.approx(smaller.relative_l2)
    assert found.total is None


def test_scalars() -> None:
    found = agreement([torch.tensor(3.0)], [torch.tensor(2.0)])
    assert (found.max_absolute, found.cosine) == (1.0, 1.0)
    assert found.relative_l2 == pytest.approx(0.5, rel=1e-12)
    assert (found.total, found.reference_total) == (3.0, 2.0)
    assert (found.pearson, found.spearman) == (None, None)
    assert agreement([torch.tensor(-3.0)], [torch.tensor(2.0)]).cosine == -1.0


def test_inputs_without_a_common_batch_are_one_sample() -> None:
    ours, reference = (
        [drawn(2, 3, seed=seed), drawn(3, 4, seed=seed + 1), drawn(seed=seed + 2)]
        for seed in (0, 5)
    )
    whole = [[torch.cat([m.flatten() for m in side])[None]] for side in (ours, reference)]
    assert numbers(agreement(ours, reference)) == pytest.approx(numbers(agreement(*whole)))


def test_samples_without_features() -> None:
    empty = torch.zeros(3, 0)
    found = agreement([empty], [empty])
    assert (found.max_absolute, found.relative_l2, found.total) == (0.0, 0.0, 0.0)
    assert numbers(found, CORRELATIONS) == [None] * 3


def test_no_samples() -> None:
    empty = torch.zeros(0, 3, 4, 4)
    found = agreement([empty], [empty])
    assert (found.max_absolute, found.relative_l2, found.total) == (0.0, 0.0, 0.0)
    assert numbers(found, CORRELATIONS) == [None] * 3
