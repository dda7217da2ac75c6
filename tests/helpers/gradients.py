"""What the tests of layer lrp share with others."""

import torch
from torch import Tensor, nn


def gradient_x_activation(model: nn.Module, layer: nn.Module, x: Tensor, target: int) -> Tensor:
    kept = []
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(x.clone().requires_grad_())[:, target].sum()
    handle.remove()
    gradients = torch.autograd.grad(score, kept)
    return sum(g * a for g, a in zip(gradients, kept, strict=True)).detach()
