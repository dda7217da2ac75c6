"""What the tests of locating share with others."""

import torch
from torch import nn

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
