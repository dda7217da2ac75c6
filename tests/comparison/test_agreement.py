"""The numbers of agreement against numpy and scipy, and the laws they obey."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from captum_lrp_stab.comparison.agreement import agreement, relative_difference, tolerance
from tests.helpers.random_maps import (
    CORRELATIONS,
    NUMBERS,
    SHARES,
    assert_numbers,
    drawn,
    expected_numbers,
    maps,
    numbers,
    shapes,
    spoilt,
)

LAWS = settings(deadline=None, max_examples=30)


# Oracles ----------------------------------------------------------------------------------------


@shapes
def test_numbers_of_random_maps(shapes) -> None:
    ours, reference = maps(shapes, 0), maps(shapes, 10)
    related = [a + b for a, b in zip(ours, reference, strict=True)]
    assert_numbers(agreement(ours, reference), expected_numbers(ours, reference))
    assert_numbers(agreement(related, reference), expected_numbers(related, reference))
    assert agreement(related, reference).relative_l2 != agreement(ours, reference).relative_l2


@shapes
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_single_changed_value_is_seen(shapes, place) -> None:
    reference = maps(shapes, 0)
    ours = [m.clone() for m in reference]
    changed = ours[0 if place == "first" else -1].view(-1)
    changed[0 if place == "first" else -1] += 0.125
    found = agreement(ours, reference)
    assert found.max_absolute == pytest.approx(0.125, rel=1e-12)
    assert found.relative_l2 > 1e-4
    assert_numbers(found, expected_numbers(ours, reference))


@shapes
def test_the_relative_difference_alone(shapes) -> None:
    ours, reference = maps(shapes, 0), maps(shapes, 10)
    expected = expected_numbers(ours, reference)["relative_l2"]
    assert relative_difference(ours, reference) == pytest.approx(expected, rel=1e-12)
    assert relative_difference(ours, ours) == 0.0
    for sides in ((spoilt(ours, [math.nan]), reference), (ours, spoilt(reference, [math.inf]))):
        assert relative_difference(*sides) is None


@pytest.mark.parametrize("seed", range(5))
def test_ranks_of_ties_are_their_mean(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    ours, reference = (
        torch.randint(-2, 3, (3, 50), generator=generator).double() for _ in range(2)
    )
    pairs = zip(ours.numpy(), reference.numpy(), strict=True)
    expected = min(stats.spearmanr(a, b).statistic for a, b in pairs)
    assert agreement([ours], [reference]).spearman == pytest.approx(expected, rel=1e-12)
    # the control: ranks in which ties stand in the order they came
    ordinal = [torch.from_numpy(stats.rankdata(m, "ordinal", axis=1)) for m in (ours, reference)]
    assert abs(agreement([ordinal[0]], [ordinal[1]]).pearson - expected) > 1e-3


@pytest.mark.parametrize(("pixels", "count"), [(99, 1), (100, 1), (101, 2), (250, 3), (1000, 10)])
def test_the_strongest_hundredth_of_the_pixels(pixels, count) -> None:
    reference = drawn(1, pixels)
    order = reference.abs().argsort(descending=True)[0]
    ours = reference.clone()
    ours[0, order[0]] = 0.0  # no longer among the strongest
    found = agreement([ours], [reference])
    assert found.top_overlap == pytest.approx((count - 1) / count)
    weak = reference.clone()
    weak[0, order[count]] = 0.0  # it never was
    assert agreement([weak], [reference]).top_overlap == 1.0


def test_pixels_are_summed_over_the_channels_of_pictures() -> None:
    reference = 0.01 * drawn(1, 3, 10, 10)
    reference[0, :, 0, 0] = torch.tensor([5.0, -5.0, 0.0])  # strong values that cancel out
    reference[0, :, 4, 4] = torch.tensor([1.0, 1.0, 1.0])
    ours = reference.clone()
    ours[0, :, 0, 0] = 0.0
    assert agreement([ours], [reference]).top_overlap == 1.0
    other = reference.clone()
    other[0, :, 4, 4] = 0.0
    assert agreement([other], [reference]).top_overlap == 0.0
    as_sequence = (m.reshape(1, 3, 100) for m in (ours, reference))  # which has no channels
    assert agreement(*([m] for m in as_sequence)).top_overlap < 1.0


def test_strength_is_the_absolute_value() -> None:
    reference = drawn(1, 100)
    reference[0, 3] = -9.0
    ours = drawn(1, 100, seed=1)
    ours[0, 3] = 9.0
    assert agreement([ours], [reference]).top_overlap == 1.0
    ours[0, 4] = 10.0
    assert agreement([ours], [reference]).top_overlap == 0.0


# Laws -------------------------------------------------------------------------------------------


@st.composite
def grids(draw: Callable, samples: int | None = None, count: int = 1) -> tuple[Tensor, ...]:
    """Maps of eighths, no sample constant: all sums are exact, so that no law drowns in rounding.

    A common power of 2 makes them huge or tiny.
    """
    number = draw(st.integers(1, 4)) if samples is None else samples
    features = draw(st.integers(3, 12))
    size = number * features
    found = []
    for _ in range(count):
        values = draw(st.lists(st.integers(-99, 99), min_size=size, max_size=size))
        grid = torch.tensor(values, dtype=torch.float64).reshape(number, features) / 8
        assume(bool((grid.amax(1) > grid.amin(1)).all()))
        found.append(grid)
    scale = 2.0 ** draw(st.sampled_from([0, 0, -600, 600]))
    return tuple(scale * grid for grid in found)


@LAWS
@given(grids())
def test_a_map_agrees_with_itself(one) -> None:
    (m,) = one
    found = agreement([m], [m.clone()])
    assert numbers(found) == pytest.approx([0, 0, 1, 1, 1, 1], rel=1e-12, abs=0)
    assert found.within(0.0)
    other = m.clone()
    other[-1, 0] += 2 * m.abs().max()
    assert not agreement([other], [m]).within(0.0)


@LAWS
@given(grids(count=2), st.sampled_from([1e-30, 0.3, 3.0, 1e30]))
def test_a_factor_changes_no_share(two, factor) -> None:
    a, b = two
    found, scaled = agreement([a], [b]), agreement([factor * a], [b])
    assert numbers(scaled, CORRELATIONS) == pytest.approx(numbers(found, CORRELATIONS), abs=1e-9)
    assert scaled.top_overlap == found.top_overlap
    assert agreement([factor * a], [a]).relative_l2 == pytest.approx(abs(factor - 1), rel=1e-9)


@LAWS
@given(grids(samples=1, count=2))
def test_another_sign_turns_correlations_round(two) -> None:
    a, b = two
    found, turned = agreement([a], [b]), agreement([-a], [b])
    expected = [-value for value in numbers(found, CORRELATIONS)]
    assert numbers(turned, CORRELATIONS) == pytest.approx(expected, abs=1e-9)
    assert turned.top_overlap == found.top_overlap
    assert agreement([-a], [a]).cosine == pytest.approx(-1)


@LAWS
@given(grids(count=2))
def test_what_is_symmetric(two) -> None:
    a, b = two
    found, swapped = agreement([a], [b]), agreement([b], [a])
    names = ("max_absolute", *SHARES)
    assert numbers(swapped, names) == pytest.approx(numbers(found, names), rel=1e-12, abs=1e-12)
    assert (swapped.total, swapped.reference_total) == (found.reference_total, found.total)


def test_the_relative_difference_is_relative_to_the_reference() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    assert agreement([a], [b]).relative_l2 == pytest.approx(math.sqrt(18))
    assert agreement([b], [a]).relative_l2 == pytest.approx(math.sqrt(18) / 5)


@LAWS
@given(grids(count=2), st.randoms(use_true_random=False))
def test_the_order_of_samples_means_nothing(two, chance) -> None:
    a, b = two
    order = chance.sample(range(len(a)), len(a))
    found, moved = agreement([a], [b]), agreement([a[order]], [b[order]])
    assert numbers(moved) == pytest.approx(numbers(found), rel=1e-12, abs=1e-12)
    assert moved.total == found.total


@LAWS
@given(grids(count=2))
def test_the_worst_sample_decides(two) -> None:
    a, b = two
    each = [agreement([a[i : i + 1]], [b[i : i + 1]]) for i in range(len(a))]
    found = agreement([a], [b])
    for name in NUMBERS:
        values = [getattr(one, name) for one in each]
        worst = min(values) if name in SHARES else max(values)
        assert getattr(found, name) == pytest.approx(worst, rel=1e-12, abs=1e-12), name


@LAWS
@given(grids(count=2), st.integers(0, 3), st.booleans())
def test_a_sample_that_agrees_improves_nothing(two, index, in_front) -> None:
    a, b = two
    agreeing = b[index % len(b)][None]
    pairs = [(agreeing, a), (agreeing, b)] if in_front else [(a, agreeing), (b, agreeing)]
    found, longer = agreement([a], [b]), agreement(*([torch.cat(pair)] for pair in pairs))
    assert numbers(longer) == pytest.approx(numbers(found), rel=1e-12, abs=1e-12)


@LAWS
@given(grids(count=2), st.integers(0, 12))
def test_several_inputs_are_one_map(two, cut) -> None:
    a, b = two
    cut = min(cut, a.shape[1])
    parts = ([m[:, :cut], m[:, cut:]] for m in (a, b))
    assert numbers(agreement(*parts)) == pytest.approx(numbers(agreement([a], [b])), rel=1e-12)


@LAWS
@given(grids(samples=1, count=2))
def test_ranks_know_nothing_but_the_order(two) -> None:
    a, b = (m / m.abs().max() for m in two)
    found = agreement([a], [b])
    for increasing in (torch.exp, lambda m: m**3, lambda m: torch.where(m > 0, 9 * m, m)):
        assert agreement([increasing(a)], [b]).spearman == pytest.approx(found.spearman, abs=1e-12)


def test_ranks_know_the_order() -> None:
    a, b = drawn(1, 20), drawn(1, 20, seed=1)
    assert agreement([a.abs()], [b]).spearman != pytest.approx(agreement([a], [b]).spearman)


# Dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_is_compared_in_float64(dtype) -> None:
    reference = drawn(2, 300)
    ours = reference.to(dtype)
    found = agreement([ours], [reference])
    assert_numbers(found, expected_numbers([ours], [reference]))
    unit = torch.finfo(dtype).eps / 2
    assert unit / 10 < found.relative_l2 < unit
    rounded = agreement([ours], [reference.to(dtype)])  # the control: the same error on both sides
    assert rounded.relative_l2 == 0.0


def test_sums_of_half_precision_do_not_overflow() -> None:
    found = agreement([torch.full((1, 100), 6e4, dtype=torch.float16)], [torch.ones(1, 100)])
    assert found.total == 6e6
    assert found.relative_l2 == pytest.approx(6e4 - 1)


def test_maps_may_have_a_graph() -> None:
    ours = drawn(2, 3).requires_grad_()
    assert agreement([2 * ours], [ours]).relative_l2 == pytest.approx(1)
    assert ours.grad is None


# Tolerance --------------------------------------------------------------------------------------


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


UNITS = [2.0**-53, 2.0**-24, 2.0**-11, 2.0**-8]


@pytest.mark.parametrize(("dtype", "unit"), [*zip(DTYPES, UNITS, strict=True)], ids=str)
@pytest.mark.parametrize("depth", [0, 1, 10, 11, 40, 1000])
def test_tolerance(dtype, unit, depth) -> None:
    expected = unit ** (2 / 3) * math.sqrt(max(depth, 10) / 10)
    assert tolerance(dtype, depth) == pytest.approx(expected, rel=1e-12)
    assert isinstance(tolerance(dtype, depth), float)


def test_tolerance_of_depth_40_in_float32() -> None:
    assert tolerance(torch.float32, 40) == pytest.approx(2 * 2.0**-16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tolerance_grows_with_depth_from_10_layers_on(dtype) -> None:
    values = [tolerance(dtype, depth) for depth in range(200)]
    assert values[:11] == [values[0]] * 11
    assert all(a < b for a, b in pairwise(values[10:]))


@pytest.mark.parametrize("depth", [1, 100])
def test_tolerance_grows_with_the_unit_roundoff(depth) -> None:
    values = [tolerance(dtype, depth) for dtype in DTYPES]
    assert values == sorted(values) and len(set(values)) == len(values)
    assert all(torch.finfo(d).eps < v for d, v in zip(DTYPES, values, strict=True))


def test_within_includes_the_tolerance_itself() -> None:
    found = agreement([drawn(2, 3)], [drawn(2, 3, seed=1)])
    assert found.within(found.relative_l2)
    assert not found.within(math.nextafter(found.relative_l2, 0.0))
