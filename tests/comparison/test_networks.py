"""``compare`` on networks that are no chain, and with all kinds of arguments."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zennit import rules as zennit

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, compare, presets
from tests.helpers.comparisons import (
    DIFFERENT,
    EXACT,
    IMAGES,
    LINEAR,
    NAMED,
    OTHER,
    PAIR,
    TARGET,
    VECTORS,
    Functional,
    Joined,
    assert_different,
    assert_equal,
    assert_rows,
    by_gradient,
    by_us,
    by_zennit,
    dense,
    pictured,
    zennit_map,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import TwoInputs, build
from tests.helpers.random_maps import drawn
from tests.helpers.zennit_version import leaving_eps

# Networks ---------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.first(x).relu()).relu()).relu())


class Unrolled(Twice):
    """The same with a layer of its own for the second use."""

    def __init__(self, like: Twice) -> None:
        super().__init__()
        self.load_state_dict(like.state_dict())
        self.again = copy.deepcopy(like.shared)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.shared(self.first(x).relu()).relu()).relu())


def test_each_use_of_a_layer_has_a_row() -> None:
    model = build(Twice)
    unrolled, names = Unrolled(model), ["first", "shared", "again", "head"]
    sides = [by_us(unrolled, VECTORS, presets.epsilon(e), names) for e in (0.01, 0.2)]
    reference = LRP(model, presets.epsilon(0.2))
    comparison = compare(model, VECTORS, TARGET, presets.epsilon(0.01), reference)
    assert_different(comparison)
    listed = [layer.name for layer in comparison.layers if "relu" not in layer.name]
    assert listed == ["first", "shared", "shared[1]", "head"]
    assert_rows(comparison, *sides, dict(zip(listed, names, strict=True)))
    swapped = dict(zip(listed, ["first", "again", "shared", "head"], strict=True))
    with pytest.raises(AssertionError):
        assert_rows(comparison, *sides, swapped)


class Branched(nn.Module):
    """Two layers that read one tensor, and a third that may weight what they give."""

    def __init__(self, weight: Callable[[Tensor], Any] = lambda z: 1.0) -> None:
        super().__init__()
        self.first, self.relu, self.head = nn.Linear(6, 5), nn.ReLU(), nn.Linear(8, 3)
        self.left, self.right, self.third = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 1)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.first(x))
        both = torch.cat([self.left(h), self.right(h)], dim=1)
        return self.head(both) * self.weight(self.third(h))


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "float64"])
def test_each_reader_of_a_tensor_hands_down_its_own_part(reference) -> None:
    model, names = build(Branched), ["left", "right", "relu"]
    ours = by_us(model, VECTORS, presets.epsilon(0.1), names)
    comparison = compare(model, VECTORS, TARGET, presets.epsilon(0.1), reference)
    assert_equal(comparison)
    rows = {layer.name: layer for layer in comparison.layers}
    for name in names[:2]:
        total = float(ours.handed[name].sum())
        found = rows[name].input
        assert (found.total, found.reference_total) == pytest.approx((total, total), rel=1e-9)
        assert found.total != pytest.approx(rows["relu"].output.total, rel=DIFFERENT)
    together = rows["left"].input.reference_total + rows["right"].input.reference_total
    assert together == pytest.approx(rows["relu"].output.reference_total, rel=1e-9)


@pytest.mark.parametrize(("weight", "is_data"), [(torch.sigmoid, False), (torch.relu, True)])
def test_what_relevance_does_not_reach_has_no_row(weight, is_data) -> None:
    """A gate is held constant; of a product of data each factor has its share."""
    model = build(lambda: Branched(weight))
    comparison = compare(model, VECTORS, TARGET, presets.epsilon(), "float64")
    assert_equal(comparison)
    names = [layer.name for layer in comparison.layers]
    assert {"left", "right", "head"} <= set(names)
    assert ("third" in names) == is_data


@pytest.mark.parametrize("reference", ["captum_driver", "float64", "LRP", by_gradient])
def test_reused_layers_are_equal(reference) -> None:
    model = build(Twice)
    other = LRP(Unrolled(model), presets.zero()) if reference == "LRP" else reference
    assert_equal(compare(model, VECTORS, TARGET, presets.zero(), other))
    other = LRP(Unrolled(model), [(["shared"], EpsilonRule, {"epsilon": 0.1})])
    assert_different(compare(model, VECTORS, TARGET, presets.zero(), other))


FUNCTIONAL = ["linear_0", "linear_1", "linear_2"]


def test_functional_layers_have_rows() -> None:
    model = build(Functional)
    sides = [by_us(model.chain, VECTORS, presets.epsilon(e), LINEAR) for e in (0.01, 0.2)]
    reference = LRP(model, presets.epsilon(0.2))
    comparison = compare(model, VECTORS, TARGET, presets.epsilon(0.01), reference)
    assert_different(comparison)
    assert_rows(comparison, *sides, dict(zip(FUNCTIONAL, LINEAR, strict=True)))


def test_what_a_reference_cannot_see_has_no_numbers() -> None:
    comparison = compare(build(Functional), VECTORS, TARGET, presets.epsilon(), "zennit")
    assert [layer.output for layer in comparison.layers] == [None] * len(comparison.layers)
    assert not any(name in str(comparison) for name in ("relu_0", "EpsilonRule"))
    assert_different(comparison)  # zennit does no LRP where there are no modules
    seen = compare(build(Functional), VECTORS, TARGET, presets.epsilon(), "float64")
    assert_equal(seen)
    assert all(layer.output and layer.input for layer in seen.layers)
    assert all(name in str(seen) for name in FUNCTIONAL)


@pytest.mark.parametrize("reference", NAMED)
def test_in_place_activations_change_nothing(reference) -> None:
    rules = presets.epsilon(0.3)
    written, plain = (
        compare(build(lambda i=inplace: pictured(i)), IMAGES, TARGET, rules, reference)
        for inplace in (True, False)
    )
    for one, other in zip(written.layers, plain.layers, strict=True):
        assert (one.name, one.rule) == (other.name, other.rule)
        assert one.value == (other.value and pytest.approx(other.value, rel=1e-9))
        for end, same_end in ((one.output, other.output), (one.input, other.input)):
            totals = [e and (e.total, e.reference_total) for e in (end, same_end)]
            assert totals[0] == (totals[1] and pytest.approx(totals[1], rel=1e-9))
    assert written.verdict == plain.verdict
    assert torch.equal(written.relevances[0], plain.relevances[0])


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def folded(model: nn.Sequential) -> nn.Sequential:
    """The same network with the batch norm in the weights of the layer before it."""
    one = copy.deepcopy(model)
    convolution, norm = one[0], one[1]
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    with torch.no_grad():
        convolution.weight.mul_(scale[:, None, None, None])
        convolution.bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    del one[1]
    return one


def normed_without_eps() -> nn.Sequential:
    model = build(normed)
    model[1].eps = 0.0  # which zennit leaves in a merged batch norm
    return model


GAMMAS = [(["0"], GammaRule, {"gamma": 0.5})]


def test_a_layer_merged_with_its_batch_norm_is_one_row() -> None:
    model = normed_without_eps()
    one = folded(model)
    ours = by_us(one, IMAGES, GAMMAS, ["0", "1", "3"])
    composite = zennit_map(_0=zennit.Gamma(0.5), _1=zennit.Pass(), _3=zennit.Epsilon(1e-6))
    theirs = by_zennit(copy.deepcopy(one), IMAGES, composite)
    comparison = compare(model, IMAGES, TARGET, GAMMAS, "zennit")
    assert_equal(comparison)
    assert [layer.name for layer in comparison.layers] == ["0", "2", "3", "4"]
    assert comparison.layers[0].kind == "Conv2d + 1"
    assert_rows(comparison, ours, theirs, {"0": "0", "2": "1", "4": "3"})


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "float64"])
def test_batch_norm_as_a_layer_of_its_own(reference) -> None:
    model, names = build(normed), ["0", "1", "4"]
    ours = by_us(model, IMAGES, GAMMAS, names, merge_batch_norm=False)
    comparison = compare(model, IMAGES, TARGET, GAMMAS, reference, merge_batch_norm=False)
    assert_equal(comparison)
    assert [layer.name for layer in comparison.layers] == ["0", "1", "2", "3", "4"]
    rows = {layer.name: layer.output for layer in comparison.layers}
    for name in names:
        assert rows[name].total == pytest.approx(float(ours.outputs[name].sum()), rel=1e-12)
        assert rows[name].reference_total == pytest.approx(rows[name].total, rel=1e-12)
    merged = compare(model, IMAGES, TARGET, GAMMAS, LRP(model, GAMMAS, merge_batch_norm=False))
    assert merged.verdict == "known difference"
    assert [d.name for d in merged.differences] == ["batch norm as a layer of its own"]


def test_batch_norm_is_treated_as_the_reference_treats_it() -> None:
    model = build(normed)
    for reference, merges in (("float64", True), ("captum_driver", False), ("captum", False)):
        comparison = compare(model, IMAGES, TARGET, GAMMAS, reference)
        assert ("1" not in [layer.name for layer in comparison.layers]) == merges
        expected = LRP(model, GAMMAS, merge_batch_norm=merges).attribute(IMAGES, target=TARGET)
        assert torch.equal(comparison.relevances[0], expected)


@leaving_eps
def test_the_eps_that_zennit_counts_twice_is_named() -> None:
    comparison = compare(build(normed), IMAGES, TARGET, GAMMAS, "zennit")
    assert comparison.verdict == "known difference"
    assert [d.name for d in comparison.differences] == ["eps of merged batch norms"]
    assert (comparison.first.name, comparison.first.direction) == ("0", "forward")
    assert comparison.layers[0].value == pytest.approx(math.sqrt(1 + 1e-5) - 1, rel=1e-3)


# Inputs, arguments and targets ------------------------------------------------------------------


KEPT = {
    "float": (0.0,),
    "tensor": (torch.tensor([1, 0, 1, 0, 1, 0]).double(),),
    "tensor of integers, which has no float64": (torch.tensor([1, 0, 1, 0, 1, 0]),),
    "no tuple": torch.tensor([1, 0, 1, 0, 1, 0]).double(),
}


SEVERAL = ["zennit", "captum_driver", "float64", "modified_forward", by_gradient]


@pytest.mark.parametrize("reference", SEVERAL)
def test_tuples_of_inputs(reference) -> None:
    model = build(Joined)
    rules = presets.zero()
    comparison = compare(model, PAIR, (1, 2), rules, reference)
    assert_equal(comparison)
    assert [r.shape for r in comparison.reference_relevances] == [x.shape for x in PAIR]
    expected = LRP(model, rules).attribute(PAIR, target=(1, 2))
    assert all(map(torch.equal, comparison.relevances, expected))
    total = sum(float(r.sum()) for r in expected)
    assert comparison.overall.total == pytest.approx(total, rel=1e-12)
    assert_different(compare(model, PAIR, (1, 2), OTHER, by_gradient))


@pytest.mark.parametrize("reference", SEVERAL)
@pytest.mark.parametrize("keep", KEPT.values(), ids=[*KEPT])
def test_further_arguments_reach_both_sides(keep, reference) -> None:
    model = build(Joined)
    comparison = compare(
        model, PAIR, (1, 2), presets.zero(), reference, additional_forward_args=keep
    )
    assert_equal(comparison)
    with torch.no_grad():
        scores = model(*PAIR, keep[0] if isinstance(keep, tuple) else keep)[:, 1, 2].tolist()
    assert comparison.scores == pytest.approx(scores)
    if comparison.reference_scores is not None:
        assert comparison.reference_scores == pytest.approx(scores)
    without = compare(model, PAIR, (1, 2), presets.zero(), reference)
    assert without.scores != pytest.approx(scores)


def test_further_arguments_that_a_function_ignores() -> None:
    def deaf(model: nn.Module, inputs: Any, target: Any, given: Any) -> Any:
        assert given == (0.0,)
        return by_gradient(model, inputs, target)

    comparison = compare(
        build(Joined), PAIR, (1, 2), presets.zero(), deaf, additional_forward_args=(0.0,)
    )
    assert_different(comparison)


def test_an_addition_that_zennit_doubles() -> None:
    comparison = compare(build(TwoInputs), PAIR, (1, 2), presets.epsilon(), "zennit")
    assert comparison.verdict == "known difference"
    (difference,) = comparison.differences
    assert (difference.name, difference.where) == ("doubled at a functional addition", "add_0")
    assert_equal(compare(build(TwoInputs), PAIR, (1, 2), presets.epsilon(), "float64"))


TARGETS: dict[str, tuple[Any, list[int]]] = {
    "int": (2, [2, 2, 2]),
    "list": ([2, 2, 2], [2, 2, 2]),
    "tensor": (torch.tensor([2, 2, 2]), [2, 2, 2]),
    "list, each its own": ([0, 3, 1], [0, 3, 1]),
    "tensor, each its own": (torch.tensor([0, 3, 1]), [0, 3, 1]),
}


DEEP_TARGETS: dict[str, tuple[Any, list[tuple[int, int]]]] = {
    "tuple": ((1, 2), [(1, 2)] * 3),
    "list of tuples": ([(1, 2)] * 3, [(1, 2)] * 3),
    "list of tuples, each its own": ([(0, 3), (1, 0), (1, 3)], [(0, 3), (1, 0), (1, 3)]),
}


CASES = [
    *((dense, VECTORS, given, each) for given, each in TARGETS.values()),
    *((Joined, PAIR, given, each) for given, each in DEEP_TARGETS.values()),
]


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", by_gradient])
@pytest.mark.parametrize(("make", "inputs", "target", "each"), CASES, ids=[*TARGETS, *DEEP_TARGETS])
def test_every_form_of_target(make, inputs, target, each, reference) -> None:
    model = build(make)
    comparison = compare(model, inputs, target, presets.zero(), reference)
    assert_equal(comparison)
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    output = model(*several).detach()
    scores = [float(sample[index]) for sample, index in zip(output, each, strict=True)]
    assert comparison.scores == pytest.approx(scores, rel=1e-12)
    expected = by_gradient(model, inputs, each)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for actual, wanted in zip(comparison.reference_relevances, expected, strict=True):
        assert relative_error(actual, wanted) <= EXACT


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "float64"])
def test_forms_of_one_target_give_one_result(reference) -> None:
    model = build(dense)
    texts = [
        compare(model, VECTORS, target, presets.epsilon(), reference).to_json()
        for target in (2, [2, 2, 2], torch.tensor([2, 2, 2]), torch.tensor(2), 1)
    ]
    assert texts[:4] == texts[:1] * 4
    assert texts[4] != texts[0]


def test_one_score_per_sample_needs_no_target() -> None:
    model = nn.Sequential(*build(dense), nn.Linear(4, 1, dtype=torch.float64))
    for reference in SEVERAL[:4]:
        assert_equal(compare(model, VECTORS, None, presets.zero(), reference))


def test_the_worst_sample_of_a_batch_decides() -> None:
    def wrong_in_one(model: nn.Module, x: Tensor, target: int) -> Tensor:
        relevance = by_gradient(model, x, target)
        relevance[1] *= 1.01
        return relevance

    x = drawn(40, 6, seed=5)
    comparison = compare(build(dense), x, TARGET, presets.zero(), wrong_in_one)
    assert comparison.overall.relative_l2 == pytest.approx(0.01 / 1.01)
    assert comparison.verdict == "different"
