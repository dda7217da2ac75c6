"""What the tests of naming share with others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Modules(nn.Module):
    """A residual block between two convolutions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.inner(x).relu() + x
        return self.head(self.last(self.pool(x)).relu().flatten(1))


class Functional(nn.Module):
    """The same without modules of its own that run."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in Modules().named_parameters():
            self.register_parameter(name.replace(".", "_"), parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first_weight, self.first_bias, padding=1), inplace=True)
        y = F.relu(F.conv2d(x, self.inner_weight, self.inner_bias, padding=1))
        y = y * 1
        y += x
        y = F.conv2d(F.avg_pool2d(y, 2), weight=self.last_weight, bias=self.last_bias).relu_()
        return F.linear(torch.flatten(y, 1), self.head_weight, self.head_bias)
