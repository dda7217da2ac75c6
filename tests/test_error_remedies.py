"""What an error tells one to do is what helps in the case at hand."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    LayerFilter,
    LayerLRP,
    attach_rules,
    compare,
    diagnose,
    plan,
    presets,
)
from captum_lrp_stab.errors import InputTypeError, ModelTypeError, RuleMapError

X = torch.tensor([[0.5, 1.0, 0.25]])
IDS = torch.tensor([[1, 0, 2]])


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


# The model

TAKES_A_MODEL: dict[str, Callable[[Any], Any]] = {
    "LRP": LRP,
    "LayerLRP": lambda m: LayerLRP(m, "0"),
    "plan": lambda m: plan(m, X),
    "compare": lambda m: compare(m, X, 0, None, "float64"),
    "diagnose": lambda m: diagnose(m, X, 0),
    "attach_rules": lambda m: attach_rules(m, []),
    "LayerFilter": LayerFilter,
    "preset": lambda m: presets.epsilon()(m),
    "preset with inputs": lambda m: presets.epsilon()(m, X),
    "preset of the first layer": lambda m: presets.epsilon_plus_flat()(m),
}
NO_MODELS: dict[str, tuple[Any, str]] = {
    "function": (lambda x: x, "a function: put it in a Module whose forward"),
    "method": (net().forward, "a method: put it in a Module whose forward"),
    "partial": (functools.partial(net()), "a partial: put it in a Module whose forward"),
    "class": (nn.Linear, "the class Linear: give an instance of it"),
    "state dict": (net().state_dict(), "a OrderedDict: give a module"),
    "None": (None, "a NoneType: give a module"),
}


@pytest.mark.parametrize("use", TAKES_A_MODEL)
@pytest.mark.parametrize("name", NO_MODELS)
def test_a_model_that_is_none(name: str, use: str) -> None:
    model, words = NO_MODELS[name]
    with pytest.raises(ModelTypeError, match=f"torch.nn.Module; the model is {words}"):
        TAKES_A_MODEL[use](model)


def test_a_function_in_a_module() -> None:
    """The remedy works."""
    model = net()

    class Function(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x)

    expected = LRP(model).attribute(X, target=0)
    assert torch.equal(LRP(Function()).attribute(X, target=0), expected)


# Rules

NOT_CALLED = r"the rules are the function presets\.{0}, .* call it, presets\.{0}\("
TAKES_RULES: dict[str, Callable[[Any], Any]] = {
    "LRP": lambda rules: LRP(net(), rules),
    "LayerLRP": lambda rules: LayerLRP(net(), "0", rules),
    "plan": lambda rules: plan(net(), X, rules),
    "compare": lambda rules: compare(net(), X, 0, rules, "float64"),
    "diagnose": lambda rules: diagnose(net(), X, 0, rules),
    "attach_rules": lambda rules: attach_rules(net(), rules),
}


@pytest.mark.parametrize("use", TAKES_RULES)
@pytest.mark.parametrize("name", ["zero", "epsilon", "epsilon_plus_flat", "lrp_tutorial"])
def test_a_function_that_makes_a_preset(name: str, use: str) -> None:
    with pytest.raises(RuleMapError, match=NOT_CALLED.format(name)):
        TAKES_RULES[use](getattr(presets, name))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (EpsilonRule, "name_map is the class EpsilonRule; give a list of"),
        (EpsilonRule(), "name_map is a EpsilonRule; give a list of"),
        ({"0": EpsilonRule()}, "name_map is a dict; give a list of"),
    ],
    ids=["class", "rule", "dict"],
)
@pytest.mark.parametrize("use", TAKES_RULES)
def test_a_rule_in_place_of_a_name_map(rules: Any, words: str, use: str) -> None:
    with pytest.raises(RuleMapError, match=words):
        TAKES_RULES[use](rules)


@pytest.mark.parametrize(
    ("preset", "printed"),
    [
        (presets.epsilon(0.1), r"epsilon\(epsilon=0\.1\)"),
        (presets.epsilon_plus_flat(), r"epsilon_plus_flat\("),
        (lambda model: [], "<function <lambda>"),
    ],
    ids=["epsilon", "flat", "function"],
)
def test_attach_rules_takes_what_a_preset_makes(preset: Any, printed: str) -> None:
    with pytest.raises(RuleMapError, match=f"name_map is .*{printed}.*; call it with the model"):
        attach_rules(net(), preset)
    model = net()
    with attach_rules(model, preset(model)) as attached:
        assert attached.rules


# Inputs

BESIDE = "input {} has dtype .*as additional_forward_args, which follow the inputs"
INPUTS: dict[str, tuple[Any, str]] = {
    "picture": (X.to(torch.uint8), r"torch\.uint8; .*: convert a picture .*x\.float\(\) / 255"),
    "mask": (X > 0.5, r"torch\.bool; .*: convert it with x\.float\(\)"),
    "complex": (X + 1j, r"torch\.complex64; .*: give torch\.view_as_real\(x\)"),
    "ids": (IDS, r"torch\.int64; .*: of token ids, give the embeddings .*; convert numbers"),
    "bytes": (IDS.to(torch.int8), r"torch\.int8; .*give the embeddings"),
    "floats and ids": ((X, IDS), BESIDE.format(1) + " and get no relevance$"),
    "floats and a mask": ((X, X > 0.5), BESIDE.format(1) + " and get no relevance$"),
    "floats and a picture": ((X, X.to(torch.uint8)), BESIDE.format(1)),
    "ids and floats": ((IDS, X), BESIDE.format(0) + ".*; wrap the model so that it comes last"),
    "ids twice": ((IDS, IDS), "input 0 has dtype .*give the embeddings"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_without_fractions(name: str) -> None:
    inputs, words = INPUTS[name]
    uses: list[Callable[[], Any]] = [
        lambda: LRP(net()).attribute(inputs, target=0),
        lambda: plan(net(), inputs),
        lambda: compare(net(), inputs, 0, None, "float64"),
        lambda: diagnose(net(), inputs, 0),
    ]
    for use in uses:
        with pytest.raises(InputTypeError, match=words) as info:
            use()
        assert ("embeddings" in str(info.value)) == ("embeddings" in words)


def test_ids_as_further_arguments() -> None:
    """The remedy works."""

    class Selected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.net(x.gather(1, ids))

    relevance = LRP(Selected()).attribute(X, target=0, additional_forward_args=(IDS,))
    expected = LRP(net()).attribute(X.gather(1, IDS), target=0)
    assert torch.equal(relevance.gather(1, IDS), expected)
