"""Gradient x input: the unit of time and memory."""

import torch
from torch import Tensor

from benchmarks.contenders.base import Explainer


class GradientTimesInput(Explainer):
    """Plain autograd, and nothing else."""

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the gradient of the score times the input."""
        x = inputs.detach().requires_grad_()
        score = self.model(x)[range(len(x)), target].sum()
        return torch.autograd.grad(score, x)[0] * x.detach()
