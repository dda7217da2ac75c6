"""Verdicts of ``compare`` on rounding, NaN and faults beside them."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, ZBoxRule, ZeroRule, compare
from captum_lrp_stab.stabilizers import Additive, Identity
from tests.helpers.faults import faulty, normed, pooled, scaled_by
from tests.helpers.known_cases import (
    APART,
    CONVOLUTIONS,
    DEFAULTS,
    DOUBLED,
    GAMMA,
    IMAGES,
    STACK,
    TARGET,
    Skip,
    X,
    assert_known,
    by_hand,
    exact_norms,
    merged_in_zennit,
    right,
    rules,
    stack,
)
from tests.helpers.networks import build, resnet10

# Rounding, and what is not finite ---------------------------------------------------------------


def cancelling(by: float, dtype: torch.dtype) -> nn.Module:
    """A batch norm takes away the large number that the convolution adds."""
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        ),
        dtype=torch.float64,
    )
    with torch.no_grad():
        model[0].bias.add_(by)
        model[1].running_mean.add_(by)
    return exact_norms(model).to(dtype)


CANCELLING = rules(("0", "4"), EpsilonRule, epsilon=0.01)


@pytest.mark.parametrize("reference", ["zennit", "float64"])
def test_what_float64_takes_away_is_rounding(reference: str) -> None:
    x = IMAGES.float()
    comparison = compare(cancelling(1e3, torch.float32), x, TARGET, CANCELLING, reference)
    assert comparison.verdict == "rounding", str(comparison)
    assert comparison.differences == ()
    assert (comparison.first.name, comparison.first.direction) == ("0", "forward")
    assert "rounding" in comparison.explanation and "float64" in comparison.explanation
    assert comparison.overall.relative_l2 > comparison.tolerance
    small = compare(cancelling(0.0, torch.float32), x, TARGET, CANCELLING, reference)
    assert small.verdict == "equal"
    exact = compare(cancelling(1e3, torch.float64), IMAGES, TARGET, CANCELLING, reference)
    assert exact.verdict == "equal"


def test_rounding_hides_neither_a_fault_nor_a_known_difference() -> None:
    model, x = cancelling(1e3, torch.float32), IMAGES.float()
    right = LRP(model, CANCELLING)
    broken = faulty(CANCELLING, {"4": scaled_by(0.5)})
    assert compare(model, x, TARGET, broken, right).verdict == "different"
    gamma = rules(("0", "4"), GammaRule, bias="captum")
    comparison = compare(model, x, TARGET, gamma, "zennit")
    assert_known(comparison, (GAMMA,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_against_float64(dtype: torch.dtype) -> None:
    x, at_pools = IMAGES.to(dtype), rules(CONVOLUTIONS, EpsilonRule, epsilon=0.1)
    comparison = compare(build(pooled, 1, dtype), x, TARGET, at_pools, "float64")
    assert comparison.verdict == "equal", str(comparison)
    assert comparison.dtype == str(dtype).removeprefix("torch.")
    assert comparison.reference_relevances[0].dtype == torch.float64
    assert 1e-4 < comparison.overall.relative_l2 < 0.05
    worse = compare(cancelling(30.0, dtype), x, TARGET, CANCELLING, "float64")
    assert worse.verdict == "rounding", str(worse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_fault_is_found_in_half_precision(dtype: torch.dtype) -> None:
    model, x = cancelling(0.0, dtype), IMAGES.to(dtype)
    broken = faulty(CANCELLING, {"0": scaled_by(0.5)})
    comparison = compare(model, x, TARGET, broken, LRP(model, CANCELLING))
    assert (comparison.verdict, comparison.first.name) == ("different", "0")


def with_dead_neurons() -> tuple[nn.Module, Tensor]:
    """A layer without bias, and a first sample of zeros: all its sums are exactly 0."""
    model = build(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), 1)
    return model, X * (torch.arange(len(X)) > 0)[:, None]


UNSTABLE = rules(("0", "2"), EpsilonRule, epsilon=0.0, stabilizer=Identity())


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "modified_forward"])
def test_a_reference_that_is_not_finite(reference: str) -> None:
    model, x = with_dead_neurons()
    comparison = compare(model, x, TARGET, UNSTABLE, reference)
    assert comparison.verdict == "reference not finite"
    overall = comparison.overall
    numbers = [overall.max_absolute, overall.relative_l2, overall.cosine, overall.pearson]
    assert [*numbers, overall.spearman, overall.top_overlap] == [None] * 6
    assert (overall.nonfinite, overall.reference_nonfinite) == (0, 6)
    assert overall.total is not None and overall.reference_total is None
    assert f"{reference} has 6 values that are NaN or Inf" in comparison.explanation
    assert comparison.first.name == "0"
    assert json.loads(comparison.to_json())["overall"]["reference_nonfinite"] == 6
    stable = rules(("0", "2"), EpsilonRule, epsilon=1e-12)
    assert compare(model, x, TARGET, stable, reference).verdict == "equal"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_of_a_function_that_is_not_finite(value: float) -> None:
    model, given = build(stack, 1), rules(STACK, EpsilonRule, epsilon=0.1)

    def one(model: nn.Module, x: Tensor, target: int) -> Tensor:
        relevance = right(model, x, target)
        relevance[2, 3] = value
        return relevance

    comparison = compare(model, X, TARGET, given, one)
    assert comparison.verdict == "reference not finite"
    assert (comparison.overall.nonfinite, comparison.overall.reference_nonfinite) == (0, 1)


class Infinite:
    """What the layer propagates is not finite, in gradient form only."""

    def coefficient(self, op, x, z, c):
        return super().coefficient(op, x, z, c) / 0


def test_nan_on_our_side_only_is_a_difference() -> None:
    model, given = build(stack, 1), rules(STACK, EpsilonRule, epsilon=0.1)
    broken = faulty(given, {"2": Infinite})
    for reference in (LRP(model, given), "captum_driver"):
        comparison = compare(model, X, TARGET, broken, reference)
        assert comparison.verdict == "different"
        assert (comparison.first.name, comparison.first.direction) == ("2", "backward")
        assert comparison.overall.relative_l2 is None
        assert comparison.overall.nonfinite > 0 == comparison.overall.reference_nonfinite
    both = compare(model, X, TARGET, broken, LRP(model, broken, nonfinite="ignore"))
    assert both.verdict == "reference not finite"
    assert both.overall.nonfinite == both.overall.reference_nonfinite


# What a user meets ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_resnet_without_any_rules_under_captum(dtype: torch.dtype) -> None:
    """Captum's epsilon at the average pool comes before the first addition."""
    model = build(resnet10, 0, dtype)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_known(compare(model, x, TARGET, None, "captum"), (DEFAULTS, DOUBLED))


def test_batch_norms_merged_on_our_side_only() -> None:
    """Captum cannot merge them; whoever asks for it anyway is told what that changes."""
    model, given = build(normed, 1), rules(("0", "1", "3", "4", "7"), EpsilonRule)
    assert_known(compare(model, IMAGES, TARGET, given, "captum"), ())
    merged = compare(model, IMAGES, TARGET, given, "captum", merge_batch_norm=True)
    assert_known(merged, (APART,))


@pytest.mark.parametrize("reference", ["captum", "captum_driver"])
def test_captums_own_module_for_additions(reference: str) -> None:
    """What Captum's documentation asks for; it divides by z + 1e-9 sign z there."""
    model, given = build(lambda: Skip(Addition_Module()), 1), rules(("a", "b", "c"), EpsilonRule)
    comparison = compare(model, X, TARGET, given, reference)
    assert_known(comparison, (DEFAULTS,) if reference == "captum" else ())


def test_a_fault_is_found_in_spite_of_merged_batch_norms() -> None:
    """The 5e-6 that zennit changes in the forward pass is not what tells the two apart."""
    case = merged_in_zennit()
    for model in (case.model, exact_norms(case.model)):
        comparison = replace(case, model=model).broken().compared()
        assert (comparison.verdict, comparison.first.name) == ("different", case.layer)


def test_an_lrp_in_another_dtype_is_converted() -> None:
    wide, narrow, given = build(stack, 1), build(stack, 1).float(), rules(STACK, GammaRule)
    for model, x, other in ((narrow, X.float(), wide), (wide, X, narrow)):
        comparison = compare(model, x, TARGET, given, LRP(other, given))
        assert comparison.reference_relevances[0].dtype == x.dtype
        assert comparison.overall.relative_l2 < 1e-5


def test_a_stabilizer_for_both_sides_reaches_the_lrp_too() -> None:
    model = build(stack, 1)
    ours, theirs = (rules(STACK, GammaRule, stabilizer=s) for s in (1e-6, 0.3))
    assert compare(model, X, TARGET, ours, LRP(model, theirs)).verdict == "different"
    assert compare(model, X, TARGET, ours, LRP(model, theirs), stabilizer=0.5).verdict == "equal"


def test_inputs_on_the_edge_of_the_box_bring_no_warning() -> None:
    """Black and white pixels are; a warning would be an error here."""
    model, x = build(pooled, 1), IMAGES.clamp(-1, 1)
    box = (["0"], ZBoxRule, {"low": -1.0, "high": 1.0})
    ours = [box, *rules(CONVOLUTIONS[1:], GammaRule)]
    theirs = [box, *rules(CONVOLUTIONS[1:], GammaRule, bias="captum")]
    assert_known(compare(model, x, TARGET, ours, LRP(model, theirs)), (GAMMA,))


def test_rounding_that_float64_does_not_quite_take_away() -> None:
    """It shrinks with the unit roundoff, but is amplified past the usual tolerance there too."""
    model, x = cancelling(1e5, torch.float32), IMAGES.float()
    comparison = compare(model, x, TARGET, CANCELLING, "zennit")
    assert comparison.verdict == "rounding", str(comparison)


def test_a_rule_that_differs_in_one_layer_only_is_located() -> None:
    model, ours = build(stack, 1), rules(STACK, GammaRule)
    theirs = [*rules(("0", "4"), GammaRule), *rules(("2",), GammaRule, bias="captum")]
    comparison = compare(model, X, TARGET, ours, LRP(model, theirs))
    assert comparison.first.name == "2"


def test_rounding_next_to_a_pole_is_shown_by_moved_inputs() -> None:
    """There float64 too is off by more than the usual tolerance."""
    model = build(stack, 1)
    score = float(model(X)[1, 2].detach())
    assert score < 0  # so that the stabilizer has a pole next to it
    near = -score * (1 + 1e-8)
    given = rules(STACK, ZeroRule, stabilizer=Additive(near))

    def rounded_otherwise(sums: Tensor, bias: Tensor) -> Tensor:
        return torch.nextafter(sums + bias, torch.zeros_like(sums)) + near

    other = partial(by_hand, rounded_otherwise)
    comparison = compare(model, X, 2, given, other)
    assert comparison.verdict == "rounding", str(comparison)
    assert "the inputs moved by a unit roundoff" in comparison.explanation
    assert compare(model, X, 2, given, other, tolerance=1e-12).verdict == "different"
