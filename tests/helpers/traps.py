"""What the tests of traps share with others."""

import torch
from torch import Tensor, nn

from tests.helpers.networks import build

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


class Net(nn.Module):
    """A forward pass given as a function of the module and the input."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def net(function, **modules: nn.Module) -> Net:
    return build(lambda: Net(function, **modules))
