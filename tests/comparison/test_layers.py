"""The numbers that ``compare`` gives for each layer, against runs by hand.

A run by hand takes a network apart layer by layer: with this package's ``LayerLRP``, with zennit's
own rules on each module, with stock Captum's ``LayerLRP``, or with a forward pass written out.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerLRP as StockLayerLRP
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from zennit import rules as zennit

from captum_lrp_stab import LRP, GammaRule, attach_rules, compare, presets
from captum_lrp_stab.errors import InputError
from tests.helpers.comparisons import (
    DIFFERENT,
    HIGH,
    IMAGES,
    LOW,
    PRESETS,
    TARGET,
    VECTORS,
    Side,
    assert_different,
    assert_equal,
    assert_rows,
    by_captum,
    by_gradient,
    by_us,
    by_zennit,
    dense,
    pictured,
    same,
    zennit_map,
)
from tests.helpers.networks import build


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
