"""Instabilities planted in small networks at a known layer, channel and position; clean runs."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torchvision
from torch import nn

from captum_lrp_stab import presets, stabilizers
from captum_lrp_stab.propagation import forms
from tests.helpers.planted_networks import ARCHITECTURES, build, calibrated, image, predicted
from tests.helpers.planting_gardener import KINDS, Gardener, Misfit
from tests.helpers.planting_harm import Planting


@cache
def planting(seed: int) -> Planting:
    """The planting of a seed; 35 seeds in a row have every kind in every architecture."""
    chance = random.Random(seed)
    kind, architecture = KINDS[seed % len(KINDS)], ARCHITECTURES[seed % len(ARCHITECTURES)]
    for attempt in range(200):
        try:
            return Gardener(kind, architecture, 1000 * seed + attempt, chance).plant()
        except Misfit:
            continue
    raise AssertionError(f"no place for {kind} in {architecture}")


TORCHVISION = ("resnet18", "vgg11", "mobilenet_v2", "squeezenet1_1")

PRESETS: dict[str, Callable[[], Any]] = {
    "zero": presets.zero,
    "epsilon": presets.epsilon,
    "epsilon_plus": presets.epsilon_plus,
    "epsilon_plus_flat": presets.epsilon_plus_flat,
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1,
    "epsilon_alpha2_beta1_flat": presets.epsilon_alpha2_beta1_flat,
    "epsilon_gamma_box": lambda: presets.epsilon_gamma_box(-3.0, 3.0),
    "lrp_tutorial": lambda: presets.lrp_tutorial(-3.0, 3.0),
}


@cache
def _stock(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None)
    return calibrated(model, 0, 64)


def clean_run(seed: int) -> Planting:
    """An ordinary network on an ordinary input; ``kind`` is the name of the preset."""
    chance = random.Random(seed)
    name = list(PRESETS)[seed % len(PRESETS)]
    dtype = chance.choice([torch.float32, torch.float32, torch.float64])
    stock = seed % 11 == 10
    # without a stabilizer the mean of a dead channel is 0/0 in the other forms: no clean run
    bare = name == "zero" or (stock and name == "lrp_tutorial")
    form = "gradient" if bare else chance.choice(forms.NAMES)
    if stock:
        architecture = TORCHVISION[seed // 11 % len(TORCHVISION)]
        model, side = _stock(architecture), 64
        dtype = torch.float32
    else:
        architecture, side = ARCHITECTURES[seed % len(ARCHITECTURES)], 16
        model = build(architecture, seed, chance.choice([nn.ReLU, nn.LeakyReLU, nn.GELU])).to(dtype)
    x = image(torch.Generator().manual_seed(seed), side=side).to(dtype)
    target = predicted(model, x)
    stabilizer = stabilizers.Signed(1e-6) if form == "relevance" else None
    return Planting(name, architecture, model, x, target, PRESETS[name](), form, stabilizer)
