"""Small networks with random weights, of the architectures that instabilities are planted in."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normed(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))


def stem(act: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(normed(3, 8).named_children(), relu=act))


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = normed(inputs, outputs, stride=stride), normed(outputs, outputs)
        self.side = nn.Identity() if stride == 1 else normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + self.side(x))


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = normed(inputs, 2 * inputs, 1)
        self.depth = normed(2 * inputs, 2 * inputs, stride=stride, groups=2 * inputs)
        self.project = normed(2 * inputs, outputs, 1)
        self.is_residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))
        return x + y if self.is_residual else y


class Next(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.ln = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.ln(self.depth(x).permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class Encoder(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.before, self.ln, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.ln(x))))


class Network(nn.Module):
    """A stem, blocks, a mean over positions or tokens, perhaps a hidden layer, and a head."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], width: int, act: Any = None):
        super().__init__()
        self.stem, self.blocks = stem, nn.Sequential(*blocks)
        self.hidden, self.act = (nn.Linear(width, 16), act) if act else (nn.Identity(),) * 2
        self.head = nn.Linear(16 if act else width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if isinstance(self.blocks[0], Encoder):
            x = self.blocks(x.flatten(2).transpose(1, 2)).mean(1)
        else:
            x = self.blocks(x).mean((2, 3))
        return self.head(self.act(self.hidden(x)))


def vgg(act: Callable[[], nn.Module]) -> nn.Module:
    first = [nn.Conv2d(3, 8, 3, padding=1), act(), nn.Conv2d(8, 12, 3, padding=1), act()]
    second = [nn.Conv2d(12, 12, 3, padding=1), act(), nn.Conv2d(12, 16, 3, padding=1), act()]
    pools = [nn.MaxPool2d(2), nn.AvgPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(256, 24), act(), nn.Linear(24, 10)]
    return nn.Sequential(*first, pools[0], *second, pools[1], *dense)


def resnet(act: Callable[[], nn.Module]) -> nn.Module:
    return Network(stem(nn.ReLU()), [Basic(8, 8, 1), Basic(8, 12, 2), Basic(12, 12, 1)], 12)


def mobile(act: Callable[[], nn.Module]) -> nn.Module:
    return Network(
        stem(nn.ReLU6()), [Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1)], 12, act()
    )


def convnext(act: Callable[[], nn.Module]) -> nn.Module:
    return Network(nn.Conv2d(3, 12, 2, 2), [Next(12) for _ in range(3)], 12)


def vit(act: Callable[[], nn.Module]) -> nn.Module:
    return Network(nn.Conv2d(3, 12, 4, 4), [Encoder(12) for _ in range(3)], 12, nn.Tanh())


MAKE = {"vgg": vgg, "resnet": resnet, "mobile": mobile, "convnext": convnext, "vit": vit}
ARCHITECTURES = tuple(MAKE)

#: Layers whose channels are the next one's with nothing but an activation or a max pool between,
#: and the layer that reads the last of them.
PAIRS: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "vgg": [(("0",), "2"), (("2",), "5"), (("5",), "7"), (("11",), "13")],
    "resnet": [(("stem.conv",), "blocks.0.a.conv")],
    "mobile": [(("hidden",), "head"), (("stem.conv",), "blocks.0.expand.conv")],
    "convnext": [],
    "vit": [(("hidden",), "head")],
}
for _i in map(str, range(3)):
    PAIRS["resnet"].append(((f"blocks.{_i}.a.conv",), f"blocks.{_i}.b.conv"))
    _chain = f"blocks.{_i}.expand.conv", f"blocks.{_i}.depth.conv"
    PAIRS["mobile"].append((_chain, f"blocks.{_i}.project.conv"))
    PAIRS["convnext"].append(((f"blocks.{_i}.up",), f"blocks.{_i}.down"))
    PAIRS["vit"].append(((f"blocks.{_i}.up",), f"blocks.{_i}.down"))


def linear_layers(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def norm_of(model: nn.Module, layer: str) -> Any:
    """The batch norm behind a layer, None if it has none."""
    parent, _, own = layer.rpartition(".")
    return getattr(model.get_submodule(parent), "norm", None) if own == "conv" else None


def image(generator: torch.Generator, count: int = 1, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=generator).clamp(-3, 3)


def build(architecture: str, seed: int, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """A network with He's random weights, and statistics its batch norms could have learnt."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MAKE[architecture](act)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    calibrated(model, seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # so that a scale can be exactly 1, in any dtype
    return model


@torch.no_grad()
def predicted(model: nn.Module, x: Tensor) -> int:
    return int(model(x).argmax())


def calibrated(model: nn.Module, seed: int, side: int = 16) -> nn.Module:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad(), torch.random.fork_rng():  # dropouts draw
        torch.manual_seed(seed)
        model.train()(image(torch.Generator().manual_seed(seed), 8, side))
        for norm in norms:
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)
    return model.eval()
