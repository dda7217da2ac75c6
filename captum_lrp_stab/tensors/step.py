"""A node of the autograd graph whose backward pass is a given function."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[[Tensor], tuple[Tensor, ...]]


class Step(torch.autograd.Function):
    """A value whose backward pass is a given function instead of its derivative.

    The function must hold no tensor with a node of the graph (see
    ``propagation.autograd_nodes``).
    """

    @staticmethod
    def forward(ctx: Any, backward: Backward, z: Tensor, *inputs: Tensor) -> Tensor:
        """Return a copy of ``z``."""
        ctx.backward_function = backward
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Return what the given function computes from the output's gradient, for each input."""
        return None, None, *ctx.backward_function(upstream[0].detach())
