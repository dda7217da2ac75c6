"""The layers, rules and stabilizers whose products the rule tests run over."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    stabilizers,
)
from tests.helpers import dense_formulas as reference

LOW, HIGH = -3.0, 3.5

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear-no-bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (2, 7)),
    "conv1d-same-even": (lambda: nn.Conv1d(2, 3, 4, padding="same", dilation=1), (2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2), (4, 5, 5)),
    "conv2d-dilated-same": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 5, 5)),
    "conv2d-valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    "conv2d-reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
    "conv2d-replicate": (
        lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), stride=2, padding_mode="replicate"),
        (2, 4, 5),
    ),
    "conv2d-circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2, stride=(1, 2, 1), padding=(0, 1, 0)), (1, 3, 3, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), (2, 4)),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, groups=2, dilation=2),
        (4, 3, 3),
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(1, 2, 2, stride=2), (1, 2, 2, 2)),
    "avg_pool1d": (lambda: nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True), (2, 6)),
    "avg_pool2d": (lambda: nn.AvgPool2d((2, 3), stride=2, padding=1), (2, 5, 5)),
    "avg_pool2d-unpadded-count": (
        lambda: nn.AvgPool2d(3, padding=1, ceil_mode=True, count_include_pad=False),
        (2, 5, 5),
    ),
    "avg_pool3d-divisor": (lambda: nn.AvgPool3d(2, divisor_override=3), (1, 4, 2, 4)),
    "adaptive1d": (lambda: nn.AdaptiveAvgPool1d(3), (2, 7)),
    "adaptive2d": (lambda: nn.AdaptiveAvgPool2d((2, None)), (2, 5, 3)),
    "adaptive3d": (lambda: nn.AdaptiveAvgPool3d(1), (2, 2, 3, 2)),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4), (4, 3)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(3), (3, 2, 2)),
    "batch_norm3d": (lambda: nn.BatchNorm3d(2, affine=False), (2, 2, 2, 1)),
}


@dataclass(frozen=True)
class Pair:
    """A rule of the package and the dense formula that judges it."""

    rule: Callable[..., Any]
    formula: Callable[..., Tensor]


RULES = {
    "zero": Pair(ZeroRule, reference.zero),
    "epsilon": Pair(partial(EpsilonRule, 0.25), partial(reference.epsilon, epsilon=0.25)),
    "epsilon-unsigned": Pair(
        partial(EpsilonRule, 0.25, signed=False),
        partial(reference.epsilon, epsilon=0.25, signed=False),
    ),
    "gamma": Pair(partial(GammaRule, 0.25), partial(reference.gamma, gamma=0.25)),
    "gamma-0": Pair(partial(GammaRule, 0.0), partial(reference.gamma, gamma=0.0)),
    "gamma-captum-bias": Pair(
        partial(GammaRule, 0.5, bias="captum"),
        partial(reference.gamma, gamma=0.5, bias="captum"),
    ),
    "alpha2-beta1": Pair(
        partial(AlphaBetaRule, 2.0, 1.0), partial(reference.alpha_beta, alpha=2.0, beta=1.0)
    ),
    "z_plus": Pair(ZPlusRule, reference.z_plus),
    "z_box": Pair(partial(ZBoxRule, LOW, HIGH), partial(reference.z_box, low=LOW, high=HIGH)),
    "w_square": Pair(WSquareRule, reference.w_square),
    "flat": Pair(FlatRule, reference.flat),
}

STABILIZERS = {
    "none": (stabilizers.Identity(), reference.identity),
    "signed": (stabilizers.Signed(0.1), reference.signed(0.1)),
    "signed-relative": (stabilizers.Signed(0.1, relative=True), reference.signed_relative(0.1)),
    "quadratic-mean": (stabilizers.RootMeanSquare(0.1), reference.quadratic_mean(0.1)),
    "additive": (stabilizers.Additive(0.1), reference.additive(0.1)),
    "clip": (stabilizers.Clip(0.1), reference.clip(0.1)),
}


def seeded(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer of the table with random parameters and statistics, in eval mode."""
    make, shape = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = make()
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -1, 1)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.uniform_(-1, 1)
            layer.running_var.uniform_(0.5, 2)
    return layer.eval().to(dtype), shape


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())
