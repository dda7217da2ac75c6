"""The numbers of agreement against numpy and scipy, and the laws they obey."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from captum_lrp_stab.comparison.agreement import (
    Agreement,
    agreement,
    relative_difference,
    tolerance,
)

NUMBERS = ("max_absolute", "relative_l2", "cosine", "pearson", "spearman", "top_overlap")
SHARES = NUMBERS[2:]
CORRELATIONS = ("cosine", "pearson", "spearman")
LAWS = settings(deadline=None, max_examples=60)


# Oracles ----------------------------------------------------------------------------------------


def rows_of(maps: Sequence[Tensor]) -> np.ndarray:
    """One row for each sample, with the features of every input."""
    arrays = [m.detach().double().numpy() for m in maps]
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


def pixels_of(maps: Sequence[Tensor]) -> np.ndarray:
    return rows_of([m.double().sum(1) if m.dim() == 4 else m for m in maps])


def top_overlap(a: np.ndarray, b: np.ndarray) -> float:
    count = max(1, math.ceil(len(a) / 100))
    strongest = (set(np.argsort(-np.abs(v))[:count].tolist()) for v in (a, b))
    return len(set.intersection(*strongest)) / count


def expected_numbers(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> dict[str, float]:
    """The numbers of the sample that agrees least, for maps that have a direction."""
    pairs = list(zip(rows_of(ours), rows_of(reference), strict=True))
    pixels = list(zip(pixels_of(ours), pixels_of(reference), strict=True))
    norm = np.linalg.norm
    return {
        "max_absolute": max(np.abs(a - b).max() for a, b in pairs),
        "relative_l2": max(norm(a - b) / norm(b) for a, b in pairs),
        "cosine": min(a @ b / (norm(a) * norm(b)) for a, b in pairs),
        "pearson": min(stats.pearsonr(a, b).statistic for a, b in pairs),
        "spearman": min(stats.spearmanr(a, b).statistic for a, b in pairs),
        "top_overlap": min(top_overlap(a, b) for a, b in pixels),
        "total": sum(a.sum() for a, _ in pairs),
        "reference_total": sum(b.sum() for _, b in pairs),
    }


def numbers(found: Agreement, names: Sequence[str] = NUMBERS) -> list[float | None]:
    return [getattr(found, name) for name in names]


def assert_numbers(found: Agreement, expected: dict[str, float], rel: float = 1e-10) -> None:
    """Rounding alone may differ: totals of values that cancel out get an absolute error as well."""
    actual = {name: getattr(found, name) for name in expected}
    assert actual == pytest.approx(expected, rel=rel, abs=1e-12)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "vectors": [(3, 7)],
    "one sample": [(1, 300)],
    "sequences": [(2, 40, 6)],
    "pictures": [(2, 3, 15, 17)],
    "videos": [(2, 2, 3, 5, 6)],
    "several inputs": [(3, 5), (3, 4, 30), (3, 2, 9, 8)],
    "one value per sample, of two inputs": [(4,), (4, 3)],
}
shapes = pytest.mark.parametrize("shapes", SHAPES.values(), ids=[*SHAPES])


def maps(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    return [drawn(*shape, seed=seed + index) for index, shape in enumerate(shapes)]


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


# NaN and Inf ------------------------------------------------------------------------------------

BAD = {
    "nan": [math.nan],
    "inf": [math.inf],
    "-inf": [-math.inf],
    "inf and -inf": [math.inf, -math.inf],
    "three": [math.nan, math.inf, math.nan],
}
every_bad = pytest.mark.parametrize("values", BAD.values(), ids=[*BAD])


def spoilt(maps: Sequence[Tensor], values: Sequence[float], index: int = -1) -> list[Tensor]:
    """Maps with values in the last sample of one input."""
    copies = [m.clone() for m in maps]
    copies[index][-1].view(-1)[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return copies


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


# Zero, constant, huge, tiny, none -----------------------------------------------------------------

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
