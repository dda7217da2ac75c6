"""Blocks as people write them: without biases, under LRP-0 and CP-LRP, they keep the sum."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from tests.helpers.networks import build, gradient_x_input

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
C = 8


def bare(*size: int, kernel: int = 1) -> nn.Conv2d:
    return nn.Conv2d(*size, kernel, padding=kernel // 2, bias=False)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(C, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, C, bias=False)
        self.fc = nn.Sequential(*layers, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = bare(2, 1, kernel=7)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)
        return x * torch.sigmoid(self.conv(both))


class EfficientChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class GlobalResponseNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, C))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return (self.gamma * (x * share) + x).permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(C))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        heads = self.qkv(tokens).reshape(b, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        weights = ((q * (c // 2) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(b, h * w, c)
        return self.out(mixed).transpose(1, 2).reshape(b, c, h, w) + x


class NonLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g = bare(C, 4), bare(C, 4), bare(C, C)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        theta, phi, g = (f(x).view(b, -1, h * w) for f in (self.theta, self.phi, self.g))
        weights = F.softmax(torch.bmm(theta.permute(0, 2, 1), phi), dim=-1)
        return 0.3 * torch.bmm(g, weights.permute(0, 2, 1)).view_as(x) + x


BLOCKS = (
    SqueezeExcite,
    SpatialAttention,
    EfficientChannelAttention,
    GlobalResponseNorm,
    ChannelsFirstNorm,
    Attention,
    NonLocal,
)


class Net(nn.Module):
    """A block between a convolution with batch norm and a head."""

    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm, self.block = bare(3, C, kernel=3), nn.BatchNorm2d(C), block()
        self.head = nn.Linear(C, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_a_block_keeps_the_sum(block) -> None:
    model = build(lambda: Net(block))
    with torch.no_grad():
        model.norm.bias.zero_()
        model.norm.running_mean.zero_()
    explainer = LRP(model, presets.zero(), attention="cp", strict=True)
    _, delta = explainer.attribute(X, 1, return_convergence_delta=True)
    score = model(X)[:, 1].detach()
    assert (delta.abs() <= 1e-12 * score.abs()).all()
    assert plan(model, X).fallbacks == ()
    if block is GlobalResponseNorm:
        return  # of degree 1 in its input, so that gradient x input keeps the sum as well
    control = gradient_x_input(model, X, target=1).sum((1, 2, 3))
    assert ((control - score).abs() > 1e-3 * score.abs()).any()
