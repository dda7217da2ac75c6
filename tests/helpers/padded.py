"""What the tests of mixed form share with others."""

from torch import nn


def padded(mode: str, *before: nn.Module) -> nn.Module:
    """Paddings of every kind before both convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        *before,
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
