"""A small network and pictures for Captum's metrics and attribution methods."""

import torch
from torch import nn

N, SAMPLES = 3, 4

TARGETS = [2, 0, 4]

IMAGES = torch.randn(N, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def small() -> nn.Module:
    """Without pooling: DeepLift has a rule of its own for max pools."""
    convolutions = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(80, 5))


def without_bias(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model
