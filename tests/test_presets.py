"""The presets: zennit's composites layer by layer, the study's map, and runs on a real network."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zennit.composites
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, vgg16, vgg16_bn

from captum_lrp_stab import LRP, presets
from captum_lrp_stab.assignment.name_map import build_rules
from captum_lrp_stab.errors import RuleMapError
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.rules.input_layer import FlatRule, ZBoxRule
from captum_lrp_stab.rules.standard import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    ZeroRule,
    ZPlusRule,
)
from tests.helpers.networks import gradient_x_input

LOW, HIGH = -2.2, 2.7
PRESETS: dict[str, Callable[..., Preset]] = {
    "zero": presets.zero,
    "epsilon": presets.epsilon,
    "epsilon_plus": presets.epsilon_plus,
    "epsilon_plus_flat": presets.epsilon_plus_flat,
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1,
    "epsilon_alpha2_beta1_flat": presets.epsilon_alpha2_beta1_flat,
    "epsilon_gamma_box": presets.epsilon_gamma_box,
    "lrp_tutorial": presets.lrp_tutorial,
}
BOUNDED = {"epsilon_gamma_box", "lrp_tutorial"}


def make(name: str, **parameters: Any) -> Preset:
    box = {"low": LOW, "high": HIGH} if name in BOUNDED else {}
    return PRESETS[name](**box, **parameters)


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose1d(4, 4, 3), nn.Tanh(), nn.AvgPool1d(2)),
        nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.Dropout(),
        nn.Linear(4, 2),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


MODELS = {
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
    "small": small,
    "dense": dense,
}


def on_meta(model: str) -> nn.Module:
    """A model of names and types alone, made in no time."""
    with torch.device("meta"):
        return MODELS[model]()


def rules_of(name_map: presets.NameMap) -> dict[str, str]:
    return {name: repr(rule(**p)) for names, rule, p in name_map for name in names}


# zennit: what its composites pass to which of its rules, in ours

COMPOSITES = {
    "epsilon_plus": "EpsilonPlus",
    "epsilon_plus_flat": "EpsilonPlusFlat",
    "epsilon_alpha2_beta1": "EpsilonAlpha2Beta1",
    "epsilon_alpha2_beta1_flat": "EpsilonAlpha2Beta1Flat",
    "epsilon_gamma_box": "EpsilonGammaBox",
}
FROM_ZENNIT: dict[str, Callable[[SimpleNamespace], PropagationRule | None]] = {
    "Pass": lambda z: None,  # activations need no rule here, batch norm is merged
    "Norm": lambda z: EpsilonRule(epsilon=z.stabilizer),
    "Epsilon": lambda z: EpsilonRule(epsilon=z.epsilon),
    "ZPlus": lambda z: ZPlusRule(stabilizer=z.stabilizer),
    "Gamma": lambda z: GammaRule(gamma=z.gamma, stabilizer=z.stabilizer),
    "AlphaBeta": lambda z: AlphaBetaRule(z.alpha, z.beta, stabilizer=z.stabilizer),
    "Flat": lambda z: FlatRule(stabilizer=z.stabilizer),
    "ZBox": lambda z: ZBoxRule(z.low, z.high, stabilizer=z.stabilizer),
}


@pytest.fixture
def assigned_by_zennit(monkeypatch) -> Callable[..., dict[str, str]]:
    """From a composite and a model to our counterpart of the rule each module gets."""
    for name, translate in FROM_ZENNIT.items():
        monkeypatch.setattr(
            zennit.composites, name, lambda _t=translate, **given: (_t(SimpleNamespace(**given)),)
        )

    def assigned(composite: str, model: nn.Module, **parameters: Any) -> dict[str, str]:
        mapping = getattr(zennit.composites, composite)(**parameters).module_map
        context: dict[str, Any] = {}
        found = {name: mapping(context, name, m) for name, m in model.named_modules()}
        return {name: repr(hook[0]) for name, hook in found.items() if hook and hook[0]}

    return assigned


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", COMPOSITES)
def test_preset_assigns_what_zennits_composite_does(name, model_name, assigned_by_zennit) -> None:
    model = on_meta(model_name)
    for parameters in ({}, {"epsilon": 0.5}):
        box = {"low": LOW, "high": HIGH} if name in BOUNDED else {}
        expected = assigned_by_zennit(COMPOSITES[name], model, **box, **parameters)
        assert rules_of(make(name, **parameters)(model)) == expected
        assert len(expected) >= 2


def test_gamma_of_the_preset_is_zennits(assigned_by_zennit) -> None:
    model, options = on_meta("vgg16"), {"low": LOW, "high": HIGH, "gamma": 0.7}
    expected = assigned_by_zennit("EpsilonGammaBox", model, **options)
    assert rules_of(presets.epsilon_gamma_box(**options)(model)) == expected


# The presets of our own


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize(
    ("name", "parameters", "rule"),
    [
        ("zero", {}, ZeroRule()),
        ("epsilon", {}, EpsilonRule(1e-6)),
        ("epsilon", {"epsilon": 0.5}, EpsilonRule(0.5)),
    ],
    ids=["zero", "epsilon", "epsilon-0.5"],
)
def test_one_rule_everywhere(name, parameters, rule, model_name) -> None:
    model = on_meta(model_name)
    layers = presets.types.Linear + presets.types.AvgPool
    expected = {n: repr(rule) for n, m in model.named_modules() if isinstance(m, layers)}
    assert rules_of(make(name, **parameters)(model)) == expected


def test_tutorial_on_vgg16_is_the_studys_map() -> None:
    assert make("lrp_tutorial")(on_meta("vgg16")) == [
        (["features.0"], ZBoxRule, {"low": LOW, "high": HIGH}),
        ([f"features.{i}" for i in (2, 5, 7, 10, 12, 14)], GammaRule, {"gamma": 0.0}),
        ([f"features.{i}" for i in (17, 19, 21, 24, 26, 28)], EpsilonRule, {"epsilon": 0.25}),
        (["avgpool", *(f"classifier.{i}" for i in (0, 3, 6))], ZeroRule, {}),
    ]


def test_tutorial_takes_its_parameters_and_goes_by_depth() -> None:
    tutorial = presets.lrp_tutorial(LOW, HIGH, gamma=0.5, epsilon=0.1)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    assert tutorial(model) == [
        (["0"], ZBoxRule, {"low": LOW, "high": HIGH}),
        (["1", "2", "3"], GammaRule, {"gamma": 0.5}),  # up to 7/16 of the depth
        (["4", "5", "6"], EpsilonRule, {"epsilon": 0.1}),  # up to 13/16
        (["7"], ZeroRule, {}),
    ]


# As name maps


@pytest.mark.parametrize("name", PRESETS)
def test_model_without_linear_layers(name) -> None:
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    with pytest.raises(RuleMapError, match=f"preset {name} finds no linear layer or convolution"):
        make(name)(model)
    x = torch.randn(2, 3, 4, 4)
    relevance = LRP(model, make(name)).attribute(x, target=1)  # LRP-0: there is nothing else
    assert torch.equal(relevance, gradient_x_input(model, x, 1))


@pytest.mark.parametrize("name", PRESETS)
def test_name_map_prints_edits_and_is_the_preset(name) -> None:
    torch.manual_seed(0)
    model, x = small().double().eval(), torch.rand(2, 2, 12, dtype=torch.float64)
    name_map = make(name)(model)
    names = [layer for layers, _, _ in name_map for layer in layers]
    assert sorted(names) == ["0", "3.0", "3.2", "5", "7", "9"]
    assert all(f"'{layer}'" in str(name_map) for layer in names)
    assert list(build_rules(model, name_map)) == names
    from_preset = LRP(model, make(name)).attribute(x, target=1)
    assert torch.equal(LRP(model, name_map).attribute(x, target=1), from_preset)
    others = [([n for n in names if n != "9"], *rule) for names, *rule in name_map]
    edited = [entry for entry in others if entry[0]] + [(["9"], EpsilonRule, {"epsilon": 9.0})]
    assert not torch.allclose(LRP(model, edited).attribute(x, target=1), from_preset)


@pytest.mark.parametrize("name", PRESETS)
def test_editing_a_name_map_leaves_the_preset_alone(name) -> None:
    preset, model = make(name), small()
    before = str(preset(model))
    for names, _, parameters in preset(model):
        names.append("another")
        parameters["another"] = 1
    assert str(preset(model)) == before


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return resnet18().eval(), torch.rand(1, 3, 32, 32) * (HIGH - LOW) + LOW


@pytest.mark.parametrize("name", PRESETS)
def test_preset_runs_on_resnet18(name, residual) -> None:
    model, x = residual
    relevance = LRP(model, make(name), nonfinite="raise").attribute(x, target=3)
    assert relevance.shape == x.shape
    assert bool(torch.isfinite(relevance).all())
    assert bool((relevance.flatten(1).abs().sum(1) > 0).all())
