"""The result of a comparison: JSON, text, and that it is independent of what happens later."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    compare,
    presets,
)
from captum_lrp_stab.comparison import Comparison
from tests.helpers.comparisons import (
    HIGH,
    IMAGES,
    LOW,
    NAMED,
    OTHER,
    PAIR,
    TARGET,
    VECTORS,
    Functional,
    Joined,
    assert_equal,
    by_gradient,
    dense,
    pictured,
)
from tests.helpers.networks import build


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
