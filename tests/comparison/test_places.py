"""Where ``compare`` puts small faults, several faults and those it cannot see."""

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, compare, presets
from tests.helpers.faults import (
    FAULTS,
    NETWORKS,
    RULES,
    InGradientForm,
    InRelevanceForm,
    NegatedRelevance,
    Planting,
    assert_located,
    effective,
    images,
    last_use,
    made,
    planted,
    scaled_by,
)
from tests.helpers.networks import build

# Small faults, several, and other values --------------------------------------------------------


@pytest.mark.parametrize("by", [1e-3, 1e-5, 1e-7, 1e-9])
def test_a_small_fault_is_found(by: float) -> None:
    planting = in_turns("pools")
    for reference in planting.references():
        comparison = planting.compared(planting.with_faults({"3": scaled_by(by)}), reference)
        assert_located(comparison, "3")
        assert 1e-3 * by < comparison.overall.relative_l2 < 1e3 * by


@pytest.mark.parametrize("seed", range(8))
def test_of_two_faults_the_one_nearer_to_the_output_is_named(seed: int) -> None:
    planting = planted(seed)
    layers = NETWORKS[planting.network].layers
    # not two wrong signs, which would cancel out
    faults = [name for name in FAULTS if not name.startswith("sign")]
    places = [place for place in itertools.product(layers, faults) if place[0] != planting.layer]
    layer, fault = effective(places, random.Random(seed), planting)
    rules = planting.with_faults({planting.layer: FAULTS[planting.fault], layer: FAULTS[fault]})
    nearer = max(planting.layer, layer, key=layers.index)
    for reference in planting.references():
        comparison = planting.compared(rules, reference)
        assert_located(comparison, last_use(planting.network, nearer))


def in_turns(name: str) -> Planting:
    """A network with the epsilon and the gamma rule in turns, and no fault yet."""
    layers = NETWORKS[name].layers
    rules = [([layer], *RULES[1 + index % 2]) for index, layer in enumerate(layers)]
    return Planting(name, made(name, 1), images(1), rules)


@pytest.mark.parametrize("name", NETWORKS)
def test_other_weights_are_found_in_the_forward_pass(name: str) -> None:
    right = in_turns(name)
    for index, layer in enumerate(NETWORKS[name].layers):
        other = copy.deepcopy(right.model)
        matrices = [p for p in other.parameters() if p.dim() > 1]  # in order of execution
        with torch.no_grad():
            matrices[index].mul_(1.01)
        comparison = right.compared(right.rules, LRP(other, right.rules))
        assert_located(comparison, layer, "forward")
        assert "in the forward pass" in comparison.explanation


@pytest.mark.parametrize("parameter", ["weight", "bias", "running_mean", "running_var"])
def test_another_batch_norm_is_found_at_the_layer_it_is_merged_with(parameter: str) -> None:
    right = in_turns("batch norm")
    other = copy.deepcopy(right.model)
    with torch.no_grad():
        getattr(other[4], parameter).add_(0.1)
    comparison = right.compared(right.rules, LRP(other, right.rules))
    assert_located(comparison, "3", "forward")


# References that cannot be watched, or not everywhere -------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_fault_is_no_place_without_layers_to_see(seed: int) -> None:
    planting = planted(seed)

    def only_the_input(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return LRP(model, planting.rules).attribute(x, target)

    comparison = planting.compared(planting.broken, only_the_input)
    assert (comparison.verdict, comparison.first) == ("different", None)
    assert "its layers were not seen" in comparison.explanation
    assert comparison.reference == only_the_input.__name__
    assert planting.compared(planting.rules, only_the_input).verdict == "equal"


@pytest.mark.parametrize("name", ["pools", "batch norm", "dense", "functional"])
def test_a_reference_that_tells_the_relevance_of_some_layers(name: str) -> None:
    right, layers = in_turns(name), list(NETWORKS[name].layers)

    def some_layers(model: nn.Module, x: Tensor, target: int) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = LayerLRP(model, layers, right.rules).attribute(x, target)
        return LRP(model, right.rules).attribute(x, target), dict(zip(layers, outputs, strict=True))

    assert right.compared(right.rules, some_layers).verdict == "equal"
    for layer in layers:
        comparison = right.compared(right.with_faults({layer: NegatedRelevance}), some_layers)
        assert comparison.verdict == "different"
        assert (comparison.first.name, comparison.first.direction) == (layer, "backward")
        # what only hands on what it is handed cannot be told from the layer above it
        assert not {*comparison.first.candidates[1:]} & {*layers}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_rule_is_the_same_in_each_form(fault: str) -> None:
    """The control of the faults themselves: Captum's driver runs the same rules."""
    right = in_turns("dense")
    for layer in NETWORKS["dense"].layers:
        rules = right.with_faults({layer: FAULTS[fault]})
        assert right.compared(rules, "captum_driver").verdict == "equal"


@pytest.mark.parametrize("fault", [InGradientForm, InRelevanceForm])
@pytest.mark.parametrize("layer", NETWORKS["dense"].layers)
def test_a_fault_in_one_form_only_is_found(layer: str, fault: type) -> None:
    right = in_turns("dense")
    comparison = right.compared(right.with_faults({layer: fault}), "captum_driver")
    assert_located(comparison, layer)


class Branches(nn.Module):
    """Two layers, and functional calls between them and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(x)))


def test_what_gives_one_branch_the_right_relevance_has_received_it() -> None:
    """The addition is to blame for the other branch, not what lies unseen above it."""
    rules = presets.epsilon(0.1)

    def wrong_on_the_right(model: nn.Module, x: Tensor, target: int) -> Any:
        names = ["left", "right", "head"]
        outputs = LayerLRP(model, names, rules).attribute(x, target)
        layers = dict(zip(names, outputs, strict=True))
        return 2 * LRP(model, rules).attribute(x, target), layers | {"right": 2 * layers["right"]}

    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    comparison = compare(build(Branches), x, 1, rules, wrong_on_the_right)
    assert comparison.verdict == "different"
    assert comparison.first.candidates == ("add_0",)
