"""The relevances that Captum's tests and documentation state, from a script for Captum.

Rules are set on the modules, Captum's own and ours. Where the meaning differs on purpose (an
addition that doubles relevance, dropout in train mode, a module used twice) the migration page says
so.
"""

from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, LayerLRP, PassRule


def filled(rows: int, columns: int, value: float) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    layer.weight.data.fill_(value)
    return layer


def chain(first: float | None = None) -> nn.Module:
    """Two linear layers, with weights 2 and 3."""
    layers = nn.Sequential(filled(3, 3, 2.0), nn.ReLU(), filled(1, 3, 3.0), nn.Dropout(0.01))
    if first is not None:
        layers[0].weight.data[0, 0] = first
    return layers.eval()


def picture() -> nn.Module:
    """A convolution, and a linear layer on what it gives."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU())
    model[0].weight.data.fill_(1.0)
    model[0].bias.data = torch.tensor([-50.0, -75.0])
    model[3].weight.data = torch.cat([torch.ones(4, 5), -torch.ones(4, 3)], 1)
    model[3].bias.data.zero_()
    return model


class Add(nn.Module):
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return x1 + x2


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.add = filled(2, 2, 5.0), Add()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.linear(x), x)


ROW = torch.tensor([[1.0, 2.0, 3.0]])
GRID = torch.arange(16.0).reshape(1, 1, 4, 4)
OF_GRID = torch.tensor([[[[0.0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11], [0, 0, 0, 0]]]])
Rules = dict[str, Any]
Case = tuple[Callable[[], nn.Module], Rules, Tensor, Any, Tensor]
EPSILON = {"0": captum_rules.EpsilonRule(), "2": captum_rules.EpsilonRule()}
PAIRS = torch.tensor([[[1.0, 2.0], [5.0, 6.0]]])

CASES: dict[str, Case] = {
    "default rules": (picture, {}, GRID, 0, OF_GRID),
    "epsilon": (chain, EPSILON, ROW, 0, torch.tensor([[18.0, 36.0, 54.0]])),
    "epsilon, ours": (
        chain,
        {"0": EpsilonRule(1e-9), "2": EpsilonRule(1e-9)},
        ROW,
        0,
        torch.tensor([[18.0, 36.0, 54.0]]),
    ),
    "a batch": (
        chain,
        EPSILON,
        torch.cat([ROW, 3 * ROW]),
        0,
        torch.tensor([[18.0, 36.0, 54.0], [54.0, 108.0, 162.0]]),
    ),
    "gamma": (
        lambda: chain(-2.0),
        {"0": captum_rules.GammaRule(gamma=1), "2": captum_rules.GammaRule()},
        ROW,
        0,
        torch.tensor([[28 / 3, 104 / 3, 52]]),
    ),
    "alpha-beta": (
        lambda: chain(-2.0),
        {"0": captum_rules.Alpha1_Beta0_Rule(), "2": captum_rules.Alpha1_Beta0_Rule()},
        ROW,
        0,
        torch.tensor([[12, 33.6, 50.4]]),
    ),
    "identity": (
        lambda: chain(-2.0),
        {"0": captum_rules.IdentityRule(), "2": captum_rules.EpsilonRule()},
        ROW,
        0,
        torch.tensor([[24.0, 36.0, 36.0]]),
    ),
    "identity, ours": (
        lambda: chain(-2.0),
        {"0": PassRule(), "2": EpsilonRule(1e-9)},
        ROW,
        0,
        torch.tensor([[24.0, 36.0, 36.0]]),
    ),
    "tanh": (
        lambda: nn.Sequential(filled(3, 3, 0.1), nn.Tanh(), filled(1, 3, 0.1)),
        {},
        ROW,
        0,
        torch.tensor([[0.0269, 0.0537, 0.0806]]),
    ),
    "max pool": (
        lambda: nn.Sequential(filled(2, 2, 2.0), nn.MaxPool1d(2)),
        {},
        PAIRS,
        (1, 0),
        torch.tensor([[[0.0, 0.0], [10.0, 12.0]]]),
    ),
    "max pool of a picture": (
        lambda: nn.Sequential(nn.MaxPool2d(2)),
        {},
        PAIRS[None],
        (0, 0, 0),
        torch.tensor([[[[0.0, 0.0], [0.0, 6.0]]]]),
    ),
    "a skip connection": (
        Skip,
        {"add": captum_rules.EpsilonRule()},
        torch.tensor([[2.0, 3.0]]),
        1,
        torch.tensor([[10.0, 18.0]]),
    ),
    "a skip connection, ours": (
        Skip,
        {"add": EpsilonRule()},
        torch.tensor([[2.0, 3.0]]),
        1,
        torch.tensor([[10.0, 18.0]]),
    ),
}


def prepared(name: str) -> tuple[nn.Module, Tensor, Any, Tensor]:
    make, rules, x, target, expected = CASES[name]
    model = make()
    for layer, rule in rules.items():
        model.get_submodule(layer).rule = rule
    return model, x, target, expected


@pytest.mark.parametrize("name", CASES)
def test_relevance_is_what_captum_documents(name: str) -> None:
    model, x, target, expected = prepared(name)
    for _ in range(2):
        relevance = LRP(model).attribute(x, target=target)
        torch.testing.assert_close(relevance, expected, rtol=1e-5, atol=1e-4)


STOCK = [name for name in CASES if "ours" not in name and name != "default rules"]  # has nn.Flatten


@pytest.mark.parametrize("name", STOCK)
def test_captum_gives_it_too(name: str) -> None:
    model, x, target, expected = prepared(name)
    relevance = captum.attr.LRP(model).attribute(x.clone(), target=target)
    torch.testing.assert_close(relevance.detach(), expected, rtol=1e-5, atol=1e-4)


LAYERS: dict[str, tuple[str, bool, Tensor]] = {
    "default rules": (
        "0",
        False,
        torch.tensor([[[[0.0, 4], [31, 40]], [[0, 0], [-6, -15]]]]),
    ),
    "epsilon": ("0", True, torch.tensor([[18.0, 36.0, 54.0]])),
    "tanh": ("0", False, torch.tensor([[0.0537, 0.0537, 0.0537]])),
    "gamma": ("0", False, torch.tensor([[24.0, 36.0, 36.0]])),
    "alpha-beta": ("0", False, torch.tensor([[24.0, 36.0, 36.0]])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_relevance_of_a_layer_is_what_captum_documents(name: str) -> None:
    model, x, target, _ = prepared(name)
    layer, at_input, expected = LAYERS[name]
    explainer = LayerLRP(model, model.get_submodule(layer))
    relevance = explainer.attribute(x, target, attribute_to_layer_input=at_input)
    torch.testing.assert_close(relevance, expected, rtol=1e-5, atol=1e-4)
