"""What users hold on to, copy and send to other processes."""

from typing import Any

import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import nn

from captum_lrp_stab import LRP, EpsilonRule, LayerLRP, PassRule, ZBoxRule, diagnose, plan, presets
from captum_lrp_stab import stabilizers as s
from tests.helpers.layers import RULES, STABILIZERS

PRESETS = [
    presets.zero(),
    presets.epsilon(0.5),
    presets.epsilon_plus(),
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(torch.zeros(3), 1.0),
    presets.lrp_tutorial(-1.0, 1.0),
]


def by_name() -> dict[str, Any]:
    """What users hold, by a name."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    name_map = [(["0"], ZBoxRule, {"low": torch.zeros(3), "high": 1}), (["2"], EpsilonRule, {})]
    x = torch.rand(2, 3)
    used = LRP(model, name_map)
    used.attribute(x, target=0)
    found: dict[str, Any] = {name: pair.rule() for name, pair in RULES.items()}
    found |= {f"stabilizer {name}": one for name, (one, _) in STABILIZERS.items()}
    found |= {"pass": PassRule(), "rounding-aware": EpsilonRule(stabilizer=s.RoundingAware(4.0))}
    found |= {"name_map": name_map, "LRP": LRP(model, name_map), "LRP after a call": used}
    found |= {"LRP without rules": LRP(model), "LayerLRP": LayerLRP(model, model[1], name_map)}
    by_captum = [(["0"], captum_rules.GammaRule, {"gamma": 0.1})]
    found |= {"LRP with a rule of Captum's": LRP(model, by_captum)}
    found |= {preset.name: preset for preset in PRESETS}
    found |= {f"LRP with {preset.name}": LRP(model, preset) for preset in PRESETS}
    found |= {"plan": plan(model, x, name_map), "diagnosis": diagnose(model, x, 0, name_map)}
    return found
