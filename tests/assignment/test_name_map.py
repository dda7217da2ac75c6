"""One rule for each layer that a name map names."""

import torch
from torchvision.models import vgg16

from captum_lrp_stab import LayerFilter
from captum_lrp_stab.assignment.name_map import build_rules
from captum_lrp_stab.rules.input_layer import ZBoxRule
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule, ZeroRule


def test_study_map_on_vgg16() -> None:
    with torch.device("meta"):  # names and types alone
        model = vgg16()
    layers = LayerFilter(model)
    name_map = [
        (layers(lambda n: n == 0), ZBoxRule, {"low": -2.2, "high": 2.7}),
        (layers(lambda n: 1 <= n <= 16), GammaRule, {"gamma": 0}),
        (layers(lambda n: 17 <= n <= 30), EpsilonRule, {"epsilon": 0.25}),
        (layers(lambda n: 31 <= n), ZeroRule, {}),
    ]
    assert [names for names, _, _ in name_map] == [
        ["features.0"],
        [f"features.{i}" for i in (2, 5, 7, 10, 12, 14)],
        [f"features.{i}" for i in (17, 19, 21, 24, 26, 28)],
        ["avgpool", *(f"classifier.{i}" for i in (0, 3, 6))],
    ]
    rules = build_rules(model, name_map)
    assert len({id(rule) for rule in rules.values()}) == 17  # each layer has its own
    assert all(rule.layer == name for name, rule in rules.items())
    assert repr(rules["features.2"]) == repr(rules["features.14"]) == repr(GammaRule(gamma=0))
    assert repr(rules["avgpool"]) == repr(ZeroRule())
