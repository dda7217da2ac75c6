"""``compare`` as a user calls it: verdicts, tolerances and the result."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

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
from captum_lrp_stab.comparison import Comparison
from captum_lrp_stab.comparison.agreement import tolerance
from tests.helpers.comparisons import (
    CHAINS,
    DIFFERENT,
    EXACT,
    HIGH,
    IMAGES,
    LINEAR,
    LOW,
    NAMED,
    OTHER,
    PAIR,
    PRESETS,
    TARGET,
    VECTORS,
    Functional,
    Joined,
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


# The result -------------------------------------------------------------------------------------


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read(text: str) -> Any:
    """JSON as the standard has it."""
    return json.loads(text, parse_constant=refuse)


def zeros(model: nn.Module, x: Tensor, target: int) -> Tensor:
    return torch.zeros_like(x)


def infinite(model: nn.Module, x: Tensor, target: int) -> Any:
    return torch.full_like(x, math.inf), {"0": torch.full((3, 8), math.nan)}


RESULTS: dict[str, Callable[[], Comparison]] = {
    **{
        name: lambda name=name: compare(build(dense), VECTORS, TARGET, presets.epsilon(0.01), name)
        for name in NAMED
    },
    "different": lambda: compare(build(dense), VECTORS, TARGET, OTHER, by_gradient),
    "nothing": lambda: compare(build(dense), VECTORS, TARGET, OTHER, zeros),
    "infinite": lambda: compare(build(dense), VECTORS, TARGET, OTHER, infinite),
    "functional": lambda: compare(build(Functional), VECTORS, TARGET, OTHER, "zennit"),
    "dead": lambda: compare(build(pictured), IMAGES, TARGET, presets.zero(), "zennit"),
    "float32": lambda: compare(
        build(dense, dtype=torch.float32), VECTORS.float(), TARGET, OTHER, "float64"
    ),
}


results = pytest.mark.parametrize("make", RESULTS.values(), ids=[*RESULTS])


@results
def test_json_is_json_and_complete(make) -> None:
    comparison = make()
    content = read(comparison.to_json())
    assert content == comparison.facts()
    assert content["verdict"] == comparison.verdict
    assert content["tolerance"] == comparison.tolerance
    assert content["scores"] == list(comparison.scores)
    assert [row["name"] for row in content["layers"]] == [r.name for r in comparison.layers]
    for row, layer in zip(content["layers"], comparison.layers, strict=True):
        assert (row["output"] is None) == (layer.output is None)
        if layer.output is not None:
            assert row["output"]["total"] == layer.output.total
            assert row["output"]["reference_nonfinite"] == layer.output.reference_nonfinite
    assert not {"relevances", "reference_relevances"} & content.keys()


def test_what_is_not_finite_is_null() -> None:
    nothing, infinite = (read(RESULTS[name]().to_json()) for name in ("nothing", "infinite"))
    assert nothing["overall"]["relative_l2"] is None  # infinite: relative to nothing
    assert infinite["overall"]["relative_l2"] is None
    assert infinite["overall"]["reference_nonfinite"] == 18
    assert infinite["verdict"] == "reference not finite"
    assert infinite["layers"][0]["output"]["reference_nonfinite"] == 24
    assert RESULTS["nothing"]().overall.relative_l2 == math.inf


def table_of(comparison: Comparison) -> list[list[str]]:
    """The cells of the printed table, which stands behind an empty line."""
    lines = str(comparison).splitlines()
    return [line.split() for line in lines[lines.index("") + 1 :]]


@results
def test_printing_shows_verdict_and_rows(make, capsys) -> None:
    comparison = make()
    print(comparison)
    printed = capsys.readouterr().out
    assert printed == f"{comparison}\n"
    assert printed.startswith(f"{comparison.verdict}: {comparison.explanation}\n")
    assert all(difference.meaning in printed for difference in comparison.differences)
    seen = [layer.name for layer in comparison.layers if layer.output or layer.input]
    assert [row[0] for row in table_of(comparison)] == ["layer", *seen, "input"]


@pytest.mark.parametrize("name", ["zennit", "modified_forward"])
def test_numbers_in_print_are_those_of_the_rows(name) -> None:
    """In a few digits."""
    comparison = RESULTS[name]()
    ends = [*(layer.output for layer in comparison.layers), comparison.overall]
    for cells, found in zip(table_of(comparison)[1:], ends, strict=True):
        numbers = [float(cell) for cell in cells[1:] if cell[-1].isdigit()]
        for wanted in (found.relative_l2, found.cosine, found.total, found.reference_total):
            assert any(number == pytest.approx(wanted, rel=0.02) for number in numbers)
    assert float(table_of(comparison)[1][-1]) == pytest.approx(
        comparison.layers[0].input.relative_l2, rel=0.02
    )


@pytest.mark.parametrize("reference", [*NAMED, "LRP", by_gradient])
def test_the_result_is_independent_of_what_happens_later(reference) -> None:
    model, x = build(dense), VECTORS.clone()
    other = LRP(model, presets.epsilon(0.3)) if reference == "LRP" else reference
    comparison = compare(model, x, TARGET, presets.epsilon(0.01), other)
    text, printed = comparison.to_json(), str(comparison)
    maps = [m.clone() for m in (*comparison.relevances, *comparison.reference_relevances)]
    with torch.no_grad():
        for tensor in (x, *model.parameters()):
            tensor.mul_(-3.0)
    assert (comparison.to_json(), str(comparison)) == (text, printed)
    found = (*comparison.relevances, *comparison.reference_relevances)
    assert all(map(torch.equal, found, maps))
    assert not any(m.requires_grad for m in found)
    assert compare(model, x, TARGET, presets.epsilon(0.01), other).to_json() != text


def test_the_result_is_independent_of_what_a_function_keeps() -> None:
    kept = torch.ones_like(VECTORS)
    comparison = compare(build(dense), VECTORS, TARGET, OTHER, lambda model, x, target: kept)
    kept.zero_()
    assert comparison.reference_relevances[0].sum() == VECTORS.numel()


@pytest.mark.parametrize("reference", [*NAMED, "LRP", by_gradient])
def test_two_calls_give_one_result(reference) -> None:
    model = build(pictured)
    other = LRP(model, OTHER) if reference == "LRP" else reference
    rules = presets.epsilon_gamma_box(LOW, HIGH)
    texts = {compare(model, IMAGES, TARGET, rules, other).to_json() for _ in range(2)}
    assert len(texts) == 1
    fresh = build(pictured)
    if reference != "LRP":
        assert compare(fresh, IMAGES, TARGET, rules, other).to_json() in texts


@pytest.mark.parametrize("reference", [*NAMED, by_gradient])
def test_progress_tells_each_run(reference) -> None:
    steps: list[str] = []
    rules = presets.epsilon(0.01)
    quiet = compare(build(dense), VECTORS, TARGET, rules, reference)
    told = compare(build(dense), VECTORS, TARGET, rules, reference, progress=steps.append)
    assert steps[:2] == ["captum-lrp-stab", quiet.reference]
    assert {step.partition(",")[0] for step in steps} == {"captum-lrp-stab", quiet.reference}
    assert told.to_json() == quiet.to_json()


def test_progress_tells_of_the_search_for_a_reason() -> None:
    found: dict[str, list[str]] = {"equal": [], "different": []}
    model = build(dense)
    for rules, name in ((presets.zero(), "equal"), (OTHER, "different")):
        compare(model, VECTORS, TARGET, rules, by_gradient, progress=found[name].append)
    assert len(found["equal"]) == 2
    assert len(found["different"]) > 2


def test_a_reference_runs_on_copies() -> None:
    model, seen = build(Joined), []
    given = (*PAIR, torch.tensor([1, 0, 1, 0, 1, 0]).double())

    def nosy(copied: nn.Module, inputs: Any, target: Any, more: tuple) -> Any:
        seen.append((copied, *inputs, *more))
        relevances = by_gradient(copied, inputs, target, more)
        with torch.no_grad():
            for tensor in (*copied.parameters(), *inputs, *more):
                tensor.zero_()
        return relevances

    before = [t.clone() for t in (*given, *model.parameters())]
    comparison = compare(
        model, PAIR, (1, 2), presets.zero(), nosy, additional_forward_args=given[2:]
    )
    assert_equal(comparison)
    assert not any(own is copied for own, copied in zip((model, *given), seen[0], strict=True))
    assert all(map(torch.equal, (*given, *model.parameters()), before))
