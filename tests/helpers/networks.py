"""Small networks for the tests, each with something that trips LRP implementations up."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random parameters and batch-norm statistics; in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)
    return model.eval()


def build(make, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make()
    return randomize(model, seed).to(dtype)


class Residual(nn.Module):
    """Additions, functional and in place, a concatenation, a mean, functional pooling, reuse."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)
        self.last = nn.Linear(8, 5)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        y = self.shared(x)
        if self.inplace:
            y += x
            y = F.relu(y, inplace=True)
        else:
            y = F.relu(y + x)
        z = self.act(self.shared(F.max_pool2d(y, 2)))
        z = F.interpolate(z, scale_factor=2)
        return self.last(torch.cat([y, z], dim=1).mean(dim=(2, 3)))


class TwoInputs(nn.Module):
    """Two inputs, an argument without relevance, and an output of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.right = nn.Linear(3, 6)
        self.head = nn.Linear(6, 8)

    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        hidden = F.relu(self.left(a) + scale * self.right(b))
        return self.head(hidden).unflatten(1, (2, 4))


class Doubled(torch.autograd.Function):
    """A custom function, which no mode sees."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return 2 * z

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 2 * gradient


def cnn(activation: nn.Module | None = None, inplace: bool = False) -> nn.Module:
    """A plain sequential network that stock Captum serves."""
    act = activation or nn.ReLU(inplace=inplace)
    again = activation or nn.ReLU(inplace=inplace)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        act,
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        again,
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(5, 6, 1),
        nn.Flatten(),
    )


def resnet10() -> nn.Module:
    """ResNet-18 with one block for two: the smallest of its kind that zennit knows."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def narrow(make: Callable[[], nn.Module], units: int = 256) -> nn.Module:
    """A VGG or AlexNet of few units in its classifier: up to 0.8 GB of weights less."""
    model = make()
    first = next(m for m in model.classifier if isinstance(m, nn.Linear))
    sizes = iter(pairwise((first.in_features, units, units, 10)))
    for index, layer in enumerate(model.classifier):
        if isinstance(layer, nn.Linear):
            model.classifier[index] = nn.Linear(*next(sizes))
    return model


def gradient_x_input(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """The oracle for LRP-0 on ReLU networks."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    return (gradient * x).detach()


class Net(nn.Module):
    """A forward pass given as a function of the module and the inputs."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def net(function, **modules: nn.Module) -> Net:
    return build(lambda: Net(function, **modules))


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


def padded(mode: str, *before: nn.Module) -> nn.Module:
    """Paddings of every kind before both convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        *before,
        nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def gradient_x_activation(model: nn.Module, layer: nn.Module, x: Tensor, target: int) -> Tensor:
    kept = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(x.clone().requires_grad_())[:, target].sum()
    handle.remove()
    gradients = torch.autograd.grad(score, kept)
    return sum(g * a for g, a in zip(gradients, kept, strict=True)).detach()
