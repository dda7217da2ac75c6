"""``compare`` as a user calls it: verdicts, and the numbers of each layer against runs by hand.

A run by hand takes a network apart layer by layer: with this package's ``LayerLRP``, with zennit's
own rules on each module, with stock Captum's ``LayerLRP``, or with a forward pass written out.
"""

import copy
import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention import TOKENS, Attention, E
from captum.attr import LayerLRP as StockLayerLRP
from captum.attr._utils import lrp_rules as captum_rules
from layers import relative_error
from networks import Residual, TwoInputs, build
from test_agreement import assert_numbers, drawn, expected_numbers
from torch import Tensor, nn
from zennit import composites as zennit_composites
from zennit import rules as zennit

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    LayerLRP,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    attach_rules,
    compare,
    presets,
    stabilizers,
)
from captum_lrp_stab.comparison import Comparison
from captum_lrp_stab.comparison.agreement import tolerance
from captum_lrp_stab.errors import InputError

TARGET = 1
EXACT = 1e-12  # the usual tolerance in float64 is 2.3e-11
DIFFERENT = 1e-3
LOW, HIGH = -4.0, 4.0
IMAGES = drawn(2, 3, 8, 8, seed=3).clamp(LOW, HIGH)
VECTORS = drawn(3, 6).clamp(LOW, HIGH)
NAMED = ("zennit", "captum", "captum_driver", "float64", "modified_forward")


def pictured(inplace: bool = False) -> nn.Module:
    """A chain of modules that zennit and stock Captum serve."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(inplace),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))


LINEAR = ["0", "2", "4"]  # of the dense chain
CHAINS = {"pictured": (pictured, IMAGES), "dense": (dense, VECTORS)}
PRESETS = {
    "zero": presets.zero(),
    "epsilon": presets.epsilon(0.01),
    "epsilon_plus": presets.epsilon_plus(),
    "epsilon_plus_flat": presets.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": presets.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": presets.epsilon_gamma_box(LOW, HIGH),
    "lrp_tutorial": presets.lrp_tutorial(LOW, HIGH),
}
OTHER = presets.epsilon(0.5)  # what no other preset agrees with


def assert_equal(comparison: Comparison, within: float = EXACT) -> None:
    assert comparison.verdict == "equal", comparison.explanation
    assert comparison.overall.relative_l2 <= within
    assert comparison.first is None and comparison.differences == ()


def assert_different(comparison: Comparison) -> None:
    assert comparison.verdict == "different", comparison.explanation
    assert comparison.overall.relative_l2 > DIFFERENT


# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "float64", "LRP"])
@pytest.mark.parametrize("chain", CHAINS)
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


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", PRESETS)
def test_other_rules_are_not_equal(name, chain) -> None:
    make, x = CHAINS[chain]
    model = build(make)
    comparison = compare(model, x, TARGET, PRESETS[name], LRP(model, OTHER))
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


def by_gradient(model: nn.Module, inputs: Any, target: Any, more: tuple = ()) -> Any:
    """Gradient x input: what LRP-0 is on ReLU networks."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    leaves = tuple(x.clone().requires_grad_() for x in several)
    output = model(*leaves, *(more if isinstance(more, tuple) else (more,)))
    gradients = torch.autograd.grad(selected(output, target).sum(), leaves)
    relevances = tuple((g * x).detach() for g, x in zip(gradients, leaves, strict=True))
    return relevances if isinstance(inputs, tuple) else relevances[0]


def selected(output: Tensor, target: Any) -> Tensor:
    """The score of each sample, for any form of a target."""
    forms = {int: lambda: [target] * len(output), tuple: lambda: [target] * len(output)}
    each = forms.get(type(target), lambda: target)()
    each = [int(t) if isinstance(t, Tensor) else t for t in each]
    return torch.stack([sample[index] for sample, index in zip(output, each, strict=True)])


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


# Layers by hand -----------------------------------------------------------------------------------


@dataclass
class Side:
    """What one implementation gives: relevance of the input, of each output, and handed down."""

    relevance: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)
    handed: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


def by_us(model: nn.Module, x: Tensor, rules: Any, names: Sequence[str], **options: Any) -> Side:
    outputs, handed = (
        LayerLRP(model, [*names], rules, **options).attribute(
            x, target=TARGET, attribute_to_layer_input=at_input
        )
        for at_input in (False, True)
    )
    relevance = LRP(model, rules, **options).attribute(x, target=TARGET)
    values = dict(zip(names, values_of(model, x, names), strict=True))
    named = (dict(zip(names, found, strict=True)) for found in (outputs, handed))
    return Side(relevance, *named, values)


@torch.no_grad()
def values_of(model: nn.Module, x: Tensor, names: Sequence[str]) -> list[Tensor]:
    """The output of each layer of a chain."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: found.update({name: out.clone()})
        )
        for name in names
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def by_zennit(model: nn.Sequential, x: Tensor, composite: Any) -> Side:
    """Step through a chain; the gradients of what lies between the modules are relevance."""
    between = [x.clone().requires_grad_()]
    with composite.context(model):
        for module in model:
            between.append(module(between[-1]))
        score = between[-1][:, TARGET]
        relevances = torch.autograd.grad(score, between, score.detach())
    names = [name for name, _ in model.named_children()]
    return Side(
        relevances[0],
        dict(zip(names, relevances[1:], strict=True)),
        dict(zip(names, relevances[:-1], strict=True)),
        dict(zip(names, [v.detach() for v in between[1:]], strict=True)),
    )


def zennit_map(**rules: Any) -> Any:
    """A composite of zennit, by name of layer; a digit is written as ``_0``."""
    chosen = [([name.removeprefix("_")], rule) for name, rule in rules.items()]
    return zennit_composites.NameMapComposite(chosen)


def on_pictures(first: Any, convolution: Any, connected: Any, pool: Any = None) -> Any:
    relu = zennit.Pass()
    pool = zennit.Epsilon(1e-6) if pool is None else pool
    return zennit_map(_0=first, _1=relu, _3=convolution, _4=relu, _5=pool, _7=connected)


BY_HAND: dict[str, Callable[[], Any]] = {
    "epsilon": lambda: on_pictures(*(zennit.Epsilon(0.01) for _ in range(4))),
    "epsilon_plus": lambda: on_pictures(zennit.ZPlus(), zennit.ZPlus(), zennit.Epsilon(1e-6)),
    "epsilon_plus_flat": lambda: on_pictures(zennit.Flat(), zennit.ZPlus(), zennit.Epsilon(1e-6)),
    "epsilon_alpha2_beta1": lambda: on_pictures(
        zennit.AlphaBeta(2, 1), zennit.AlphaBeta(2, 1), zennit.Epsilon(1e-6)
    ),
    "epsilon_alpha2_beta1_flat": lambda: on_pictures(
        zennit.Flat(), zennit.AlphaBeta(2, 1), zennit.Epsilon(1e-6)
    ),
    "epsilon_gamma_box": lambda: on_pictures(
        zennit.ZBox(LOW, HIGH), zennit.Gamma(0.25), zennit.Epsilon(1e-6)
    ),
    "lrp_tutorial": lambda: on_pictures(
        zennit.ZBox(LOW, HIGH), zennit.Gamma(0.0), zennit.Epsilon(0.25), zennit.Epsilon(0.25)
    ),
}
EVERY = [str(index) for index in range(8)]  # of the pictured chain


def assert_row(found: Any, ours: Tensor | None, theirs: Tensor | None, exact: float) -> None:
    """An agreement, or None where a side is not seen."""
    if ours is None or theirs is None:
        assert found is None
        return
    expected = expected_numbers([ours], [theirs])
    if relative_error(ours, theirs) <= EXACT:  # rounding: there is nothing more to be told
        assert found.relative_l2 <= 2 * EXACT
        expected = {name: expected[name] for name in ("total", "reference_total", "cosine")}
    assert_numbers(found, expected, exact)


def assert_rows(
    comparison: Comparison,
    ours: Side,
    theirs: Side,
    names: dict[str, str],
    handed: Collection[str] | None = None,
    exact: float = 1e-9,
) -> None:
    """Every row named, and the input, have the numbers of two runs by hand.

    ``names`` maps the name of a row to that of the layer by hand; ``handed`` are those of whose
    inputs something is known, all by default.
    """
    rows = {layer.name: layer for layer in comparison.layers}
    for row, name in names.items():
        assert_row(rows[row].output, ours.outputs[name], theirs.outputs.get(name), exact)
        if handed is None or name in handed:
            assert_row(rows[row].input, ours.handed[name], theirs.handed.get(name), exact)
        if name in theirs.values:
            pairs = zip(ours.values[name], theirs.values[name], strict=True)
            value = max(float((a - b).norm() / b.norm()) for a, b in pairs)
            assert rows[row].value == pytest.approx(value, rel=exact, abs=EXACT)
        else:
            assert rows[row].value is None
    assert_row(comparison.overall, ours.relevance, theirs.relevance, exact)


def same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


@pytest.mark.parametrize("name", BY_HAND)
def test_rows_against_zennit(name) -> None:
    model = build(pictured)
    ours = by_us(model, IMAGES, PRESETS[name], EVERY)
    theirs = by_zennit(copy.deepcopy(model), IMAGES, BY_HAND[name]())
    comparison = compare(model, IMAGES, TARGET, PRESETS[name], "zennit")
    assert [layer.name for layer in comparison.layers] == EVERY
    assert_rows(comparison, ours, theirs, same(EVERY))


@pytest.mark.parametrize("theirs", [name for name in BY_HAND if name != "epsilon"])
def test_rows_against_a_composite_with_other_rules(theirs) -> None:
    model = build(pictured)
    ours = by_us(model, IMAGES, PRESETS["epsilon"], EVERY)
    other = by_zennit(copy.deepcopy(model), IMAGES, BY_HAND[theirs]())
    comparison = compare(model, IMAGES, TARGET, PRESETS["epsilon"], BY_HAND[theirs]())
    assert_different(comparison)
    assert_rows(comparison, ours, other, same(EVERY))


def test_rows_against_other_rules_of_ours() -> None:
    model = build(pictured)
    sides = [by_us(model, IMAGES, PRESETS[name], EVERY) for name in ("epsilon", "epsilon_plus")]
    reference = LRP(model, PRESETS["epsilon_plus"])
    comparison = compare(model, IMAGES, TARGET, PRESETS["epsilon"], reference)
    assert_different(comparison)
    assert_rows(comparison, *sides, same(EVERY))
    assert (comparison.first.name, comparison.first.direction) == ("7", "backward")


def test_rows_against_float64() -> None:
    model, exact = build(pictured, dtype=torch.float32), build(pictured)
    exact.load_state_dict(model.state_dict())
    x = IMAGES.float()
    ours = by_us(model, x, PRESETS["epsilon_plus"], EVERY)
    theirs = by_us(exact, x.double(), PRESETS["epsilon_plus"], EVERY)
    comparison = compare(model, x, TARGET, PRESETS["epsilon_plus"], "float64")
    assert_equal(comparison, within=1e-5)
    assert comparison.overall.relative_l2 > 1e-9
    assert comparison.dtype == "float32"
    assert_rows(comparison, ours, theirs, same(EVERY))
    assert comparison.reference_relevances[0].dtype == torch.float64


def by_captum(model: nn.Sequential, x: Tensor, rules: Callable[[], dict[str, Any]]) -> Side:
    """Stock ``LayerLRP``, with rules of its own."""

    def relevance(name: str, at_input: bool = False) -> Tensor:
        fresh = copy.deepcopy(model)
        for layer, module in fresh.named_children():
            if isinstance(module, nn.Flatten):
                module.rule = Moves()
            if layer in rules():
                module.rule = rules()[layer]
        explainer = StockLayerLRP(fresh, fresh.get_submodule(name))
        return explainer.attribute(x, TARGET, attribute_to_layer_input=at_input)

    outputs = {name: relevance(name) for name in rules()}
    # modules without a rule tell nothing: what is handed to the next one is their relevance
    outputs |= {
        before: relevance(after, at_input=True)
        for before, after in pairwise(name for name, _ in model.named_children())
        if before not in rules() and after in rules()
    }
    return Side(relevance("0", at_input=True), outputs)


class Moves(captum_rules.PropagationRule):
    """Plain autograd, for a module that only moves values, which stock Captum refuses."""

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None: ...

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...


def captum_gamma() -> captum_rules.PropagationRule:
    rule = captum_rules.GammaRule(0.25)
    rule.STABILITY_FACTOR = 1e-6
    return rule


CAPTUM: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
    "epsilon": (
        presets.epsilon(0.01),
        lambda: (
            {n: captum_rules.EpsilonRule(0.01) for n in "0357"} | {"2": captum_rules.EpsilonRule()}
        ),
    ),
    "gamma": (
        [(["0", "3"], GammaRule, {"gamma": 0.25})],
        lambda: (
            {n: captum_gamma() for n in "03"}
            | {"2": captum_rules.EpsilonRule(), "7": captum_rules.EpsilonRule(1e-6)}
        ),
    ),
}


@pytest.mark.parametrize(("rules", "own"), CAPTUM.values(), ids=[*CAPTUM])
def test_rows_against_captum(rules, own) -> None:
    model = build(pictured)
    ours, theirs = by_us(model, IMAGES, rules, EVERY), by_captum(model, IMAGES, own)
    comparison = compare(model, IMAGES, TARGET, rules, "captum")
    assert {"1", "6"} <= theirs.outputs.keys()
    assert_rows(comparison, ours, theirs, same(list(theirs.outputs)), handed=own())


def test_rows_against_captum_with_our_rules() -> None:
    model = build(pictured)
    rules = presets.epsilon_alpha2_beta1()
    names = ["0", "3", "5", "7"]
    ours, theirs = by_us(model, IMAGES, rules, names), Side(torch.empty(0))
    for at_input, found in ((False, theirs.outputs), (True, theirs.handed)):
        for name in names:
            with attach_rules(model, rules(model)):
                found[name] = StockLayerLRP(model, model.get_submodule(name)).attribute(
                    IMAGES, TARGET, attribute_to_layer_input=at_input
                )
    theirs.relevance = theirs.handed["0"]
    comparison = compare(model, IMAGES, TARGET, rules, "captum_driver")
    assert_equal(comparison)
    assert_rows(comparison, ours, theirs, same(names))


def rewritten(model: nn.Sequential, x: Tensor, epsilon: float) -> Side:
    """Montavon's form: z (z / s(z)) with the factor held constant, and gradient x value."""
    between, names = [x.clone().requires_grad_()], [name for name, _ in model.named_children()]
    for module in model:
        z = module(between[-1])
        if isinstance(module, nn.Linear):
            z = z * (z / (z + epsilon * z.sign())).detach()
        between.append(z)
    gradients = torch.autograd.grad(between[-1][:, TARGET].sum(), between)
    relevances = [(g * v).detach() for g, v in zip(gradients, between, strict=True)]
    return Side(
        relevances[0],
        dict(zip(names, relevances[1:], strict=True)),
        dict(zip(names, relevances[:-1], strict=True)),
        dict(zip(names, [v.detach() for v in between[1:]], strict=True)),
    )


def test_rows_against_the_modified_forward_pass() -> None:
    model, names = build(dense), ["0", "1", "2", "3", "4"]
    ours = by_us(model, VECTORS, presets.epsilon(0.3), names)
    theirs = rewritten(model, VECTORS, 0.3)
    comparison = compare(model, VECTORS, TARGET, presets.epsilon(0.3), "modified_forward")
    assert comparison.overall.relative_l2 > DIFFERENT
    assert all(layer.value > DIFFERENT for layer in comparison.layers)
    assert_rows(comparison, ours, theirs, same(names))
    scores = theirs.values["4"][:, TARGET].tolist()
    assert comparison.reference_scores == pytest.approx(scores, rel=1e-12)
    assert comparison.scores == pytest.approx(model(VECTORS)[:, TARGET].tolist(), rel=1e-12)


def test_rows_against_a_function_that_tells_of_layers() -> None:
    """It is asked for outputs alone; a layer it says nothing about is not compared."""
    told = ["0", "3", "7"]

    def plus(model: nn.Module, x: Tensor, target: int) -> tuple[Tensor, dict[str, Tensor]]:
        side = by_zennit(model, x, BY_HAND["epsilon_plus"]())
        return side.relevance, {name: side.outputs[name] for name in told}

    model = build(pictured)
    theirs = by_zennit(copy.deepcopy(model), IMAGES, BY_HAND["epsilon_plus"]())
    theirs.outputs = {name: theirs.outputs[name] for name in told}
    theirs.handed, theirs.values = {}, {}
    comparison = compare(model, IMAGES, TARGET, PRESETS["epsilon"], plus)
    assert_different(comparison)
    assert_rows(comparison, by_us(model, IMAGES, PRESETS["epsilon"], EVERY), theirs, same(EVERY))


def test_layers_of_another_shape_or_name_are_refused() -> None:
    def told(layers: dict[str, Tensor]) -> Any:
        def function(model: nn.Module, x: Tensor, target: int) -> Any:
            return by_gradient(model, x, target), layers

        return compare(build(dense), VECTORS, TARGET, presets.zero(), function)

    assert told({"2": torch.ones(3, 7)}).layers[2].output.reference_total == 21.0
    with pytest.raises(InputError, match=r"layer '0' of shape \(3, 5\)"):
        told({"0": torch.ones(3, 5)})
    with pytest.raises(InputError, match="layer 'conv1x', but the pass ran no such layer"):
        told({"conv1x": torch.ones(3, 5)})


# Networks -----------------------------------------------------------------------------------------


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


class Functional(nn.Module):
    """The dense chain without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = dense()

    def forward(self, x: Tensor) -> Tensor:
        for index in LINEAR:
            layer = self.chain.get_submodule(index)
            x = F.linear(x, layer.weight, layer.bias)
            x = x if index == "4" else F.relu(x)
        return x


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


def test_the_eps_that_zennit_counts_twice_is_named() -> None:
    comparison = compare(build(normed), IMAGES, TARGET, GAMMAS, "zennit")
    assert comparison.verdict == "known difference"
    assert [d.name for d in comparison.differences] == ["eps of merged batch norms"]
    assert (comparison.first.name, comparison.first.direction) == ("0", "forward")
    assert comparison.layers[0].value == pytest.approx(math.sqrt(1 + 1e-5) - 1, rel=1e-3)


# Inputs, arguments and targets -----------------------------------------------------------------


class Joined(nn.Module):
    """Two inputs, an argument without relevance, and an output of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.relu, self.head = nn.ReLU(), nn.Linear(12, 8)

    def forward(self, a: Tensor, b: Tensor, keep: Any = 1.0) -> Tensor:
        hidden = torch.cat([self.left(a), self.right(b) * keep], dim=1)
        return self.head(self.relu(hidden)).unflatten(1, (2, 4))


PAIR = drawn(3, 4, seed=1), drawn(3, 3, seed=2)
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


@pytest.mark.parametrize("reference", SEVERAL)
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


# Rules on the modules ---------------------------------------------------------------------------


def with_rules(**rules: Any) -> nn.Module:
    model = build(dense)
    for name, rule in rules.items():
        model.get_submodule(name.removeprefix("_")).rule = rule
    return model


OURS = {"_0": ("0", GammaRule, {"gamma": 0.4}), "_4": ("4", EpsilonRule, {"epsilon": 0.1})}
NAME_MAP = [([name], rule, given) for name, rule, given in OURS.values()]


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "float64"])
def test_rules_set_on_the_modules(reference) -> None:
    model = with_rules(**{key: rule(**given) for key, (_, rule, given) in OURS.items()})
    rules = [model[0].rule, model[4].rule]
    comparison = compare(model, VECTORS, TARGET, None, reference)
    assert_equal(comparison)
    assert [model[0].rule, model[4].rule] == rules
    by_map = compare(build(dense), VECTORS, TARGET, NAME_MAP, reference)
    assert comparison.to_json() == by_map.to_json()
    assert comparison.to_json() != compare(build(dense), VECTORS, TARGET, None, reference).to_json()


def captums() -> dict[str, captum_rules.PropagationRule]:
    return {
        "0": captum_rules.GammaRule(0.3),
        "2": captum_rules.Alpha1_Beta0_Rule(),
        "4": captum_rules.EpsilonRule(0.05),
    }


@pytest.mark.parametrize("reference", ["captum", "captum_driver", "float64"])
def test_captums_rules_set_on_the_modules(reference) -> None:
    model = with_rules(**{f"_{name}": rule for name, rule in captums().items()})
    comparison = compare(model, VECTORS, TARGET, None, reference)
    assert_equal(comparison)
    expected = by_captum(build(dense), VECTORS, captums).relevance
    assert relative_error(comparison.reference_relevances[0], expected) <= EXACT
    assert comparison.layers[0].rule == "captum.GammaRule()"
    assert_different(compare(model, VECTORS, TARGET, None, LRP(build(dense))))


def test_rules_of_a_list_stand_before_those_on_the_modules() -> None:
    model = with_rules(_0=GammaRule(0.4))
    rules = presets.epsilon(0.1)
    expected = compare(build(dense), VECTORS, TARGET, rules, "captum_driver")
    found = compare(model, VECTORS, TARGET, rules, "captum_driver")
    assert_equal(found)
    assert found.to_json() == expected.to_json()


def test_a_rule_on_a_module_that_a_list_leaves_out_has_no_effect() -> None:
    rules = [(["0", "3", "7"], EpsilonRule, {"epsilon": 0.01})]
    model = build(pictured)
    model[5].rule = captum_rules.EpsilonRule(0.5)
    for reference in ("captum", "captum_driver", "zennit"):
        expected = compare(build(pictured), IMAGES, TARGET, rules, reference)
        assert compare(model, IMAGES, TARGET, rules, reference).to_json() == expected.to_json()
    set_on_it = compare(model, IMAGES, TARGET, None, "captum_driver")
    without = compare(build(pictured), IMAGES, TARGET, None, "captum_driver")
    assert set_on_it.to_json() != without.to_json()


def test_known_differences_of_rules_set_on_the_modules() -> None:
    by_map = compare(build(dense), VECTORS, TARGET, NAME_MAP[:1], "captum")
    on_modules = compare(with_rules(_0=GammaRule(0.4)), VECTORS, TARGET, None, "captum")
    assert by_map.verdict == "known difference"
    assert on_modules.differences == by_map.differences


# Stabilizers ------------------------------------------------------------------------------------


def signs(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z)


def rms(z: Tensor, dims: Any = 1) -> Tensor:
    return z.square().mean(dims, keepdim=True).sqrt()


def doubled_and_moved(z: Tensor) -> Tensor:
    return 2 * z + 0.1


STABILIZERS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "float": (0.2, lambda z: z + 0.2 * signs(z)),
    "signed": (stabilizers.Signed(0.1), lambda z: z + 0.1 * signs(z)),
    "signed-relative": (
        stabilizers.Signed(0.1, relative=True),
        lambda z: z + 0.1 * signs(z) * rms(z),
    ),
    "quadratic-mean": (stabilizers.RootMeanSquare(0.1), lambda z: z + 0.1 * rms(z) + 1e-9),
    "quadratic-mean of the batch": (
        stabilizers.RootMeanSquare(0.1, per_sample=False),
        lambda z: z + 0.1 * rms(z, (0, 1)) + 1e-9,
    ),
    "additive": (stabilizers.Additive(0.3), lambda z: z + 0.3),
    "clip": (stabilizers.Clip(0.5), lambda z: signs(z) * z.abs().clamp(min=0.5)),
    "function": (doubled_and_moved, doubled_and_moved),
}
every_stabilizer = pytest.mark.parametrize("s", STABILIZERS)
MIXED = [(["0"], GammaRule, {}), (["2"], AlphaBetaRule, {}), (["4"], EpsilonRule, {"epsilon": 0.1})]


def stabilized(s: Callable[[Tensor], Tensor]) -> Any:
    """MIXED with a stabilizer, written for zennit by hand."""
    return zennit_map(
        _0=zennit.Gamma(0.25, stabilizer=s),
        _1=zennit.Pass(),
        _2=zennit.AlphaBeta(2, 1, stabilizer=s),
        _3=zennit.Pass(),
        _4=zennit.Epsilon(lambda z: s(z + 0.1 * signs(z))),
    )


@every_stabilizer
def test_the_stabilizer_takes_the_place_of_every_rules_own(s) -> None:
    model, names = build(dense), ["0", "1", "2", "3", "4"]
    given, formula = STABILIZERS[s]
    explicit = [
        (names, rule, parameters | {"stabilizer": given}) for names, rule, parameters in MIXED
    ]
    comparison = compare(model, VECTORS, TARGET, MIXED, "zennit", stabilizer=given)
    assert_equal(comparison)
    theirs = by_zennit(copy.deepcopy(model), VECTORS, stabilized(formula))
    assert_rows(comparison, by_us(model, VECTORS, explicit, names), theirs, same(names))
    without = compare(model, VECTORS, TARGET, MIXED, "zennit")
    for now, before in (
        (comparison.relevances, without.relevances),
        (comparison.reference_relevances, without.reference_relevances),
    ):
        assert relative_error(now[0], before[0]) > DIFFERENT


FIRST: dict[str, tuple[Any, dict[str, Any], Callable[[Any], Any]]] = {
    "zero": (ZeroRule, {}, zennit.Epsilon),
    "z_plus": (ZPlusRule, {}, lambda s: zennit.ZPlus(stabilizer=s)),
    "gamma": (GammaRule, {"gamma": 0.7}, lambda s: zennit.Gamma(0.7, stabilizer=s)),
    "w_square": (WSquareRule, {}, lambda s: zennit.WSquare(stabilizer=s)),
    "flat": (FlatRule, {}, lambda s: zennit.Flat(stabilizer=s)),
    "z_box": (
        ZBoxRule,
        {"low": LOW, "high": HIGH},
        lambda s: zennit.ZBox(LOW, HIGH, stabilizer=s),
    ),
    "alpha3-beta2": (
        AlphaBetaRule,
        {"alpha": 3.0, "beta": 2.0},
        lambda s: zennit.AlphaBeta(3, 2, stabilizer=s),
    ),
}


@pytest.mark.parametrize("s", ["float", "quadratic-mean", "clip"])
@pytest.mark.parametrize(("rule", "given", "hook"), FIRST.values(), ids=[*FIRST])
def test_every_rule_has_the_stabilizer_in_zennit(rule, given, hook, s) -> None:
    """In the first layer; those above have none of their own, and get the default with it."""
    stabilizer, formula = STABILIZERS[s]
    above = [zennit.Epsilon(lambda z: formula(z + 1e-6 * signs(z))) for _ in range(2)]
    composite = zennit_map(_0=hook(formula), _1=zennit.Pass(), _2=above[0], _4=above[1])
    theirs = by_zennit(build(dense), VECTORS, composite)
    rules = [(["0"], rule, given)]
    comparison = compare(build(dense), VECTORS, TARGET, rules, "zennit", stabilizer=stabilizer)
    assert_equal(comparison)
    assert relative_error(comparison.reference_relevances[0], theirs.relevance) <= EXACT
    without = compare(build(dense), VECTORS, TARGET, rules, "zennit")
    assert relative_error(without.reference_relevances[0], theirs.relevance) > DIFFERENT


@pytest.mark.parametrize("reference", ["captum", "captum_driver", "float64", "LRP"])
@pytest.mark.parametrize(
    ("chain", "s"),
    [*(("dense", s) for s in STABILIZERS), ("pictured", "float"), ("pictured", "quadratic-mean")],
)
def test_stabilizers_are_equal_on_both_sides(s, reference, chain) -> None:
    make, x = CHAINS[chain]
    model = build(make)
    rules = presets.epsilon_alpha2_beta1()
    given = STABILIZERS[s][0]
    other = LRP(model, rules) if reference == "LRP" else reference
    comparison = compare(model, x, TARGET, rules, other, stabilizer=given)
    explicit = [
        (names, rule, parameters | {"stabilizer": given})
        for names, rule, parameters in rules(model)
    ]
    if (reference, chain) == ("captum", "pictured"):  # it divides at max pools as well
        assert comparison.overall.relative_l2 <= 1e-6
    else:
        assert_equal(comparison)
    other = LRP(model, explicit) if reference == "LRP" else reference
    expected = compare(model, x, TARGET, explicit, other)
    for pair in (
        (comparison.relevances, expected.relevances),
        (comparison.reference_relevances, expected.reference_relevances),
    ):
        assert torch.equal(pair[0][0], pair[1][0])
    assert comparison.tolerance == expected.tolerance


def test_rows_tell_the_stabilizer_in_use() -> None:
    rules = MIXED[:1]  # the other layers have none of their own
    comparison = compare(build(dense), VECTORS, TARGET, rules, "float64", stabilizer=0.2)
    shown = [layer.rule for layer in comparison.layers if layer.rule != "passed"]
    assert all("stabilizer=Signed(epsilon=0.2" in rule for rule in shown) and len(shown) == 3
    without = compare(build(dense), VECTORS, TARGET, rules, "float64")
    assert not any("epsilon=0.2" in layer.rule for layer in without.layers)


def test_the_stabilizer_of_a_rounding_error_needs_this_package_on_both_sides() -> None:
    aware = stabilizers.RoundingAware()
    for reference in ("captum_driver", "float64"):
        assert_equal(
            compare(build(dense), VECTORS, TARGET, presets.epsilon(), reference, stabilizer=aware)
        )


def test_the_stabilizer_takes_the_place_of_captums_rules_own() -> None:
    model = with_rules(_0=captum_rules.GammaRule(0.3))
    given = with_rules(_0=captum_rules.GammaRule(0.3))
    given[0].rule.STABILITY_FACTOR = 0.2
    rules = [(["2", "4"], EpsilonRule, {"epsilon": 1e-6, "stabilizer": 0.2})]
    for name, rule, parameters in ((n, r, p) for names, r, p in rules for n in names):
        given.get_submodule(name).rule = rule(**parameters)
    comparison = compare(model, VECTORS, TARGET, None, "float64", stabilizer=0.2)
    expected = LRP(given).attribute(VECTORS, target=TARGET)
    assert relative_error(comparison.relevances[0], expected) <= EXACT


# Attention --------------------------------------------------------------------------------------


def test_attention_is_treated_alike_on_both_sides() -> None:
    model = build(Attention, dtype=torch.float32)
    x = drawn(2, TOKENS, E, seed=1).float()
    found = {}
    for rule in ("attnlrp", "cp"):
        comparison = compare(model, x, TARGET, presets.zero(), "float64", attention=rule)
        assert comparison.verdict in ("equal", "rounding")
        assert comparison.overall.relative_l2 < 1e-4
        expected = LRP(model, presets.zero(), attention=rule).attribute(x, target=TARGET)
        assert torch.equal(comparison.relevances[0], expected)
        exact = LRP(copy.deepcopy(model).double(), presets.zero(), attention=rule)
        expected = exact.attribute(x.double(), target=TARGET)
        assert relative_error(comparison.reference_relevances[0], expected) <= EXACT
        found[rule] = comparison
    assert relative_error(found["cp"].relevances[0], found["attnlrp"].relevances[0]) > DIFFERENT


def test_another_treatment_of_attention_is_found_at_the_attention() -> None:
    model, x = build(Attention), drawn(2, TOKENS, E, seed=1)
    rules = presets.zero()
    other = LRP(model, rules, attention="attnlrp")
    comparison = compare(model, x, TARGET, rules, other, attention="cp")
    assert_different(comparison)
    assert comparison.first.direction == "backward"
    assert comparison.first.name.startswith("matmul")
    assert_equal(
        compare(model, x, TARGET, rules, LRP(model, rules, attention="cp"), attention="cp")
    )


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
    assert set(steps) == {"captum-lrp-stab", quiet.reference}
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
