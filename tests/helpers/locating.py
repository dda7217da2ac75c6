"""Layers with chosen weights, and operations that go wrong between two of them."""

import torch
from torch import Tensor, nn

from captum_lrp_stab import ZeroRule
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.ledger.locating import Origin


def linear(*rows: list[float]) -> nn.Linear:
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def zero(*names: str, **parameters) -> list:
    return [(list(names), ZeroRule, parameters)]


def two(*rows: list[float], dtype=torch.float32) -> nn.Module:
    """A layer with these weights, and the sum of its outputs."""
    return nn.Sequential(linear(*rows), linear([1.0] * len(rows))).to(dtype).eval()


ONES = torch.ones(1, 2)

BAD, GOOD = ([1.0, -1.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, 1.0])


def origin_of(found: Diagnosis) -> Origin:
    assert found.origin is not None and found.cause is not None
    return found.origin


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
