"""Layers that are given one sample without a batch dimension, under every rule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZPlusRule,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import build


class Rows(nn.Module):
    """A network that runs on each sample for itself."""

    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(row) for row in x])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (4,)),
    "2d": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(-3), nn.Linear(144, 2)
        ),
        (3, 6, 6),
    ),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten(-2), nn.Linear(24, 2)
        ),
        (3, 6),
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(3, 4, 3), nn.ReLU(), nn.Flatten(-2), nn.Linear(32, 2)
        ),
        (3, 6),
    ),
    "pool": (
        lambda: nn.Sequential(nn.AvgPool1d(2), nn.Conv1d(3, 4, 3), nn.Flatten(-2), nn.Linear(8, 2)),
        (3, 8),
    ),
}
RULES: dict[str, Callable[[tuple[int, ...]], tuple[type, dict[str, Any]]]] = {
    "epsilon": lambda shape: (EpsilonRule, {}),
    "gamma": lambda shape: (GammaRule, {}),
    "alpha_beta": lambda shape: (AlphaBetaRule, {}),
    "z_plus": lambda shape: (ZPlusRule, {}),
    "flat": lambda shape: (FlatRule, {}),
    "w_square": lambda shape: (WSquareRule, {}),
    "z_box": lambda shape: (ZBoxRule, {"low": -1.0, "high": 2.0}),
    "z_box by pixel": lambda shape: (
        ZBoxRule,
        {"low": -torch.ones(1, *shape), "high": 2 + torch.rand(shape)},
    ),
}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_sample_alone_is_one_of_a_batch(name, rule, optimize) -> None:
    make, shape = NETWORKS[name]
    model = build(make)
    x = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = RULES[rule](shape)
    batched = LRP(model, [(["0"], *given)], optimize=optimize).attribute(x, target=1)
    rows = LRP(Rows(model), [(["one.0"], *given)], optimize=optimize)
    assert relative_error(rows.attribute(x, target=1), batched) <= 1e-12
