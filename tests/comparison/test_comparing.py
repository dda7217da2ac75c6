"""``compare`` as a user calls it: verdicts, tolerances and the result."""

import copy

import pytest
import torch
from torch import Tensor, nn
from zennit import composites as zennit_composites

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    compare,
    presets,
)
from captum_lrp_stab.comparison.agreement import tolerance
from tests.helpers.comparisons import (
    CHAINS,
    DIFFERENT,
    EXACT,
    HIGH,
    IMAGES,
    LINEAR,
    LOW,
    OTHER,
    PRESETS,
    TARGET,
    VECTORS,
    assert_different,
    assert_equal,
    by_gradient,
    dense,
    pictured,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import Residual, build

# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "reference"),
    [
        *(("pictured", reference) for reference in ("zennit", "captum_driver", "float64")),
        *(("dense", reference) for reference in ("zennit", "LRP")),
    ],
)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_equal(name, chain, reference) -> None:
    make, x = CHAINS[chain]
    model = build(make)
    other = LRP(model, PRESETS[name](model)) if reference == "LRP" else reference
    comparison = compare(model, x, TARGET, PRESETS[name], other)
    has_zeros = (name, chain) == ("zero", "pictured")  # an average of dead neurons
    if has_zeros and reference in ("zennit", "captum_driver"):
        assert comparison.verdict == "reference not finite"  # 0/0 in relevance form
    else:
        assert_equal(comparison)
    assert comparison.reference == reference
    relevance = LRP(model, PRESETS[name]).attribute(x, target=TARGET)
    assert torch.equal(comparison.relevances[0], relevance)


@pytest.mark.parametrize("reference", ["float64", "LRP"])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_equal_on_a_residual_network(name, reference) -> None:
    """Additions, a concatenation, functional pooling, batch norm, and layers used twice."""
    model = build(Residual)
    other = LRP(copy.deepcopy(model), PRESETS[name]) if reference == "LRP" else reference
    comparison = compare(model, IMAGES, TARGET, PRESETS[name], other)
    assert_equal(comparison)
    assert {"add_0", "cat_0", "shared", "shared[1]"} <= {row.name for row in comparison.layers}
    assert all(row.output.relative_l2 <= EXACT for row in comparison.layers)
    others = LRP(model, OTHER).attribute(IMAGES, target=TARGET)
    assert relative_error(comparison.reference_relevances[0], others) > DIFFERENT


@pytest.mark.parametrize("name", PRESETS)
def test_other_rules_are_not_equal(name) -> None:
    model = build(pictured)
    comparison = compare(model, IMAGES, TARGET, PRESETS[name], LRP(model, OTHER))
    assert_different(comparison)
    assert comparison.first.direction == "backward"


OWN = {  # rules Captum has one of, and whether it changes weights
    "epsilon": ([(LINEAR, EpsilonRule, {"epsilon": 0.01})], False),
    "zero": ([(LINEAR, ZeroRule, {})], False),
    "z_plus": ([(["0", "2"], ZPlusRule, {"stabilizer": 0.0})], True),
    "gamma": ([(["0", "2"], GammaRule, {"gamma": 0.3, "bias": "captum"})], True),
    "others": ([(["0"], ZBoxRule, {"low": LOW, "high": HIGH}), (["2"], AlphaBetaRule, {})], False),
}


@pytest.mark.parametrize(("rules", "changes_weights"), OWN.values(), ids=[*OWN])
def test_captums_own_rules_are_equal_where_all_is_positive(rules, changes_weights) -> None:
    model, positive = build(dense), build(dense)
    for parameter in positive.parameters():
        parameter.data.abs_()
    assert_equal(compare(positive, VECTORS.abs(), TARGET, rules, "captum"))
    comparison = compare(model, VECTORS, TARGET, rules, "captum")
    if changes_weights:
        assert comparison.verdict == "known difference"
        assert comparison.overall.relative_l2 > DIFFERENT
    else:
        assert_equal(comparison)


def test_modified_forward_is_equal_without_stabilizers() -> None:
    model = build(dense)
    assert_equal(compare(model, VECTORS, TARGET, presets.zero(), "modified_forward"))
    changed = compare(model, VECTORS, TARGET, presets.epsilon(0.01), "modified_forward")
    assert changed.verdict == "known difference"
    assert [difference.name for difference in changed.differences] == ["modified forward pass"]
    assert (changed.first.name, changed.first.direction) == ("0", "forward")


COMPOSITES = {
    "epsilon_plus": (presets.epsilon_plus(), zennit_composites.EpsilonPlus),
    "epsilon_plus_flat": (presets.epsilon_plus_flat(), zennit_composites.EpsilonPlusFlat),
    "epsilon_alpha2_beta1": (
        presets.epsilon_alpha2_beta1(),
        zennit_composites.EpsilonAlpha2Beta1,
    ),
    "epsilon_gamma_box": (
        presets.epsilon_gamma_box(LOW, HIGH),
        lambda: zennit_composites.EpsilonGammaBox(low=LOW, high=HIGH),
    ),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_zennits_composites_are_the_presets_of_their_names(name) -> None:
    model = build(pictured)
    for other, (_, make) in COMPOSITES.items():
        comparison = compare(model, IMAGES, TARGET, COMPOSITES[name][0], make())
        if other == name:
            assert_equal(comparison)
        else:
            assert_different(comparison)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_function_of_ones_own(chain) -> None:
    make, x = CHAINS[chain]
    comparison = compare(build(make), x, TARGET, presets.zero(), by_gradient)
    assert_equal(comparison)
    assert comparison.reference == "by_gradient"
    assert comparison.reference_scores is None
    assert_different(compare(build(make), x, TARGET, OTHER, by_gradient))


def test_a_reference_that_is_normalised_is_told_apart() -> None:
    def normalised(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return by_gradient(model, x, target) / model(x)[:, target, None].detach()

    comparison = compare(build(dense), VECTORS, TARGET, presets.zero(), normalised)
    assert comparison.verdict == "known difference"
    assert [difference.name for difference in comparison.differences] == ["normalised output"]


# Tolerance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_usual_tolerance_is_that_of_dtype_and_depth(dtype) -> None:
    deep = nn.Sequential(*(m for _ in range(40) for m in (nn.Linear(6, 6), nn.Tanh())))
    for make, depth in ((dense, 3), (lambda: deep, 40)):
        model = build(make, dtype=dtype)
        comparison = compare(model, VECTORS.to(dtype), TARGET, presets.epsilon(), "float64")
        assert comparison.tolerance == tolerance(dtype, depth)
        assert comparison.dtype == str(dtype).removeprefix("torch.")


def test_the_coarsest_dtype_counts() -> None:
    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu().double())

    model = build(Converts, dtype=torch.float32)
    model.last.double()
    comparison = compare(model, VECTORS.float(), TARGET, presets.epsilon(0.01), "zennit")
    assert comparison.dtype == "float32"
    assert_equal(comparison, within=1e-6)


@pytest.mark.parametrize("reference", ["zennit", "captum", "captum_driver", "float64"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, reference) -> None:
    model, x = build(dense, dtype=dtype), VECTORS.to(dtype)
    comparison = compare(model, x, TARGET, presets.epsilon(0.01), reference)
    assert comparison.dtype == str(dtype).removeprefix("torch.")
    assert comparison.verdict in ("equal", "rounding")
    assert comparison.overall.relative_l2 <= 0.05
    other = compare(model, x, TARGET, presets.epsilon(0.01), LRP(model, OTHER))
    assert_different(other)
    assert other.overall.relative_l2 > 0.1


def test_a_tolerance_of_ones_own() -> None:
    model = build(dense)
    for rules, largest in ((presets.epsilon(1e-5), 1e-2), (presets.epsilon(1e-3), 1.0)):
        other = LRP(model, presets.zero())
        comparison = compare(model, VECTORS, TARGET, rules, other, tolerance=largest)
        size = comparison.overall.relative_l2
        assert comparison.verdict == "equal" and comparison.tolerance == largest
        smaller = compare(model, VECTORS, TARGET, rules, other, tolerance=size / 2)
        assert smaller.verdict == "different"


def test_rounding_is_told_from_a_difference() -> None:
    model = build(dense, dtype=torch.float32)
    x = VECTORS.float()
    for reference in ("zennit", "captum_driver", "float64"):
        comparison = compare(model, x, TARGET, presets.epsilon(), reference, tolerance=1e-13)
        assert comparison.verdict == "rounding", comparison.explanation
        assert comparison.first is not None
    other = LRP(model, presets.epsilon(1e-5))  # as small a difference, but one
    comparison = compare(model, x, TARGET, presets.epsilon(), other, tolerance=1e-13)
    assert comparison.verdict == "different"
