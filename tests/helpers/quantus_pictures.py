"""A small network, pictures, and LRP as Quantus calls an explanation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, presets
from tests.helpers.networks import build

N = 3

X = np.random.default_rng(0).standard_normal((N, 3, 8, 8)).astype(np.float32)

Y = np.array([2, 0, 4])

PRESETS = [presets.epsilon(0.01), presets.epsilon_plus(), presets.epsilon_gamma_box(-5.0, 5.0)]

QUIET = {"disable_warnings": True}  # no hints in print, nor a second's wait for each


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 5),
    )


def network(make: Callable[[], nn.Module] = small) -> nn.Module:
    return build(make, dtype=torch.float32)


class Flat(nn.Module):
    """One that stock Captum serves: it has no rule for Flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*small()[:5], nn.Conv2d(5, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).flatten(1)


def explain(
    model: nn.Module, inputs: Any, targets: Any, rules: Any = None, **options: Any
) -> np.ndarray:
    """What Quantus takes as ``explain_func``; further options come in ``explain_func_kwargs``."""
    x, y = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
    return LRP(model, rules).attribute(x, target=y).numpy()


def summed(model: nn.Module, inputs: Any, targets: Any, **options: Any) -> np.ndarray:
    """Over the channels, one number per pixel."""
    return explain(model, inputs, targets, **options).sum(1, keepdims=True)
