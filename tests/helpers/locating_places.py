"""What the tests of locating places share with others."""

import torch
from torch import Tensor, nn

from tests.helpers.locating import linear


class Between(nn.Module):
    """Two layers with an operation between them: 3 and 5 go in for (1, 2)."""

    def __init__(self, f) -> None:
        super().__init__()
        self.a, self.c, self.f = linear([1.0, 1.0], [1.0, 2.0]), linear([1.0, 1.0]), f

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.f(self.a(x)))


FUNCTIONS = {
    "exp_0": (lambda h: torch.exp(h * 20), 1),
    "log_0": (lambda h: (h - 3).log(), 0),
    "sqrt_0": (lambda h: (h - 4).sqrt(), 0),
    "div_0": (lambda h: h / (h - 3), 0),
    "mul_0": (lambda h: h * 1e38, 1),
}
