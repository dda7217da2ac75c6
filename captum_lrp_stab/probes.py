"""Noting the relevance of inner tensors on its way through the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.errors import RuleError


class Probe:
    """The relevance of a layer's output or input, summed over its uses in one pass."""

    def __init__(self, name: str, at_input: bool) -> None:
        self.name = name
        self.at_input = at_input
        self.was_tuple = False
        self.relevances: list[Tensor | None] = []

    def start(self, tensors: tuple[Any, ...], was_tuple: bool) -> None:
        """Make room for the tensors of one use of the layer."""
        self.was_tuple = was_tuple
        missing = len(tensors) - len(self.relevances)
        self.relevances.extend([None] * missing)

    def forget(self) -> None:
        """Drop what was noted, before another backward pass."""
        self.relevances = [None] * len(self.relevances)

    def note(self, position: int, relevance: Tensor) -> None:
        """Add the relevance of one use."""
        known = self.relevances[position]
        if known is not None and known.shape != relevance.shape:
            raise RuleError(
                f"layer '{self.name}' is used with shapes {tuple(known.shape)} and "
                f"{tuple(relevance.shape)}; its relevance has no single shape, so attribute to "
                "another layer"
            )
        self.relevances[position] = relevance if known is None else known + relevance


class ProbeStep(torch.autograd.Function):
    """A copy of a tensor that notes, in the backward pass, the tensor and what it is handed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, note: Callable[[Tensor, Tensor], None]) -> Tensor:
        """Return a copy, so that writing to it in place leaves the value alone."""
        copy = value.clone()
        ctx.save_for_backward(value.detach().clone())
        ctx.note = note
        return copy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Note the value and c, and hand c on."""
        (value,) = ctx.saved_tensors
        ctx.note(value, upstream[0])
        return upstream[0], None


class CarrierProbeStep(torch.autograd.Function):
    """A carrier of relevance that notes what it carries."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, note: Callable[[Tensor], None]) -> Tensor:
        """Return a copy of the carrier."""
        ctx.note = note
        return carrier.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Note the relevance and hand it on."""
        ctx.note(upstream[0])
        return upstream[0], None
