"""What the tests of letting go share with others."""

import torch
from torch import Tensor, nn


class Shortcut(nn.Module):
    """A convolution with its batch norm beside a shortcut, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return three scores."""
        y = torch.relu(self.norm(self.conv(x)) + x.sum(1, keepdim=True))
        tokens = y.flatten(2).mT
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))
