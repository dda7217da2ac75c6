"""Small networks of every kind, for what must hold of any: each with inputs for a batch of two."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.ops import SqueezeExcitation

from tests.helpers.attention import TOKENS, Attention, E, Layer, fused, in_place
from tests.helpers.networks import Residual, TwoInputs, build, cnn


class Around(nn.Module):
    """A convolution, one inner operation or more on its output, and a head."""

    def __init__(self, inner: Callable[["Around", Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.unpadded = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self, self.stem(x)).mean(dim=(2, 3)))


def _add(m: Around, x: Tensor) -> Tensor:
    x += m.norm(m.conv(x))  # of the x that the convolution has read
    return x


def _multiply(m: Around, x: Tensor) -> Tensor:
    x *= m.conv(x)
    return x


def _gate(m: Around, x: Tensor) -> Tensor:
    x *= torch.sigmoid(m.conv(x))
    return x


def _divide(m: Around, x: Tensor) -> Tensor:
    x /= x.abs().sum(1, keepdim=True) + 1
    return x


def _padded(m: Around, x: Tensor) -> Tensor:
    x += m.unpadded(F.pad(x, (1, 1, 1, 1)))
    return x


def _view(m: Around, x: Tensor) -> Tensor:
    half = x[:, :2]
    half += F.silu(x[:, 2:])
    return x


def _item(m: Around, x: Tensor) -> Tensor:
    x[:, 0] = m.conv(x)[:, 1]
    return x


def _normalised(m: Around, x: Tensor) -> Tensor:
    x += F.layer_norm(x, x.shape[1:])
    x += F.group_norm(x, 2)
    return x


def _activations(m: Around, x: Tensor) -> Tensor:
    return F.hardswish(m.conv(F.silu(m.conv(F.relu6(x, inplace=True)), True)), True)


def _gelu(m: Around, x: Tensor) -> Tensor:
    x += F.gelu(x)
    return x


def _hidden(m: Around, x: Tensor) -> Tensor:
    return torch.exp(-m.conv(x).square())  # no rule: its plain gradient


class Apart(nn.Module):
    """A batch norm without a layer before it, whose output is read in another order."""

    def __init__(self, norm: nn.Module, dims: int) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(3, 5, bias=False)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        if self.dims != 2:
            x = x.flatten(2) if self.dims == 1 else x[..., None].expand(*x.shape, 2)
        return self.head(self.norm(x).flatten(2).transpose(1, 2)).relu().mean(1)


def _around(inner: Callable[[Around, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Around(inner)


def _classifier(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Tokens(nn.Module):
    """A transformer's layer as PyTorch has it, on parts of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x).flatten(2).mT)[:, 0])


class Swin(nn.Module):
    """A block of shifted windows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, stride=2)
        self.block = SwinTransformerBlock(8, 2, [2, 2], [1, 1])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))


_IN_PLACE = {
    "gate": _gate,
    "divide": _divide,
    "padded": _padded,
    "normalised": _normalised,
    "activations": _activations,
}
REFUSED: dict[str, Callable[[], nn.Module]] = {
    "add": _around(_add),
    "multiply": _around(_multiply),
    "view": _around(_view),
    "item": _around(_item),
    "GELU": _around(_gelu),
}
"""They write over what a backward pass needs, as could not be trained either."""

PICTURES: dict[str, Callable[[], nn.Module]] = {
    **{f"in place: {name}": _around(inner) for name, inner in _IN_PLACE.items()},
    "no rule": _around(_hidden),
    "plain": cnn,
    "GELU": lambda: cnn(nn.GELU()),
    "ReLU6 in place": lambda: cnn(nn.ReLU6(inplace=True)),
    "residual": Residual,
    "residual in place": lambda: Residual(inplace=True),
    "batch norm apart": lambda: Apart(nn.BatchNorm2d(3), 2),
    "batch norm apart, 1D": lambda: Apart(nn.BatchNorm1d(3), 1),
    "batch norm apart, 3D": lambda: Apart(nn.BatchNorm3d(3), 3),
    "instance norm": lambda: Apart(nn.InstanceNorm2d(3, affine=True), 2),
    "instance norm by statistics": lambda: Apart(nn.InstanceNorm2d(3, track_running_stats=True), 2),
    "inverted residual": lambda: _classifier(
        nn.Conv2d(3, 8, 3), InvertedResidual(8, 8, 1, 2), nn.ReLU6(inplace=True)
    ),
    "squeeze and excitation": lambda: _classifier(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(inplace=True), SqueezeExcitation(8, 2)
    ),
    "ConvNeXt": lambda: _classifier(nn.Conv2d(3, 8, 2, 2), CNBlock(8, 1.0, 0.0)),
    "Swin": Swin,
    "transformer": Tokens,
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "two inputs": (TwoInputs, ((4,), (3,))),
    "attention": (Attention, ((TOKENS, E),)),
    "attention in place": (partial(Attention, in_place), ((TOKENS, E),)),
    "fused attention": (partial(Attention, fused), ((TOKENS, E),)),
    "layer with its norm first": (lambda: Layer(True), ((TOKENS, E),)),
    "layer": (lambda: Layer(False), ((TOKENS, E),)),
}
NAMES = (*PICTURES, *OTHERS)


def network(
    name: str, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, tuple[Tensor, ...], int | tuple[int, int]]:
    """A network with seeded weights, its inputs, a batch of two, and a target."""
    pictures = PICTURES | {f"refused: {key}": make for key, make in REFUSED.items()}
    make, shapes = (pictures[name], ((3, 8, 8),)) if name in pictures else OTHERS[name]
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in shapes]
    target = (1, 2) if name == "two inputs" else 1
    return build(make, dtype=dtype), tuple(x.to(dtype) for x in inputs), target
