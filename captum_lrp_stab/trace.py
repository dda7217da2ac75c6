"""What happened at each layer of one pass: where NaN or Inf first arose.

Both passes are watched. A backward record compares what comes into a layer (coefficient or
relevance of its output) with what it hands down; a layer that turns finite into non-finite values
is the one to look at.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_stab.sites import Operation


@dataclass(frozen=True)
class LayerTrace:
    """Non-finite values at one layer, in one direction."""

    name: str
    rule: str
    direction: str  # "forward" or "backward"
    before: int  # non-finite values that came in
    after: int  # non-finite values that went out

    @property
    def is_origin(self) -> bool:
        """Whether non-finite values arose here."""
        return self.before == 0 and self.after > 0


class Trace:
    """Records of one forward and one backward pass, in order of execution."""

    def __init__(self) -> None:
        self.layers: list[LayerTrace] = []

    def forward(self, operation: Operation, x: Tensor, z: Tensor) -> None:
        """Note a layer's input and output."""
        self._note(operation, "forward", x, z)

    def forget(self, operation: Operation) -> None:
        """Drop the last record of a layer: it is one layer with a batch norm, noted next."""
        notes = [i for i, layer in enumerate(self.layers) if layer.name == operation.name]
        if notes:
            del self.layers[notes[-1]]

    def backward(self, operation: Operation, upstream: Tensor, downstream: Tensor) -> None:
        """Note what a layer was handed and what it hands down."""
        self._note(operation, "backward", upstream, downstream)

    def _note(self, operation: Operation, direction: str, before: Tensor, after: Tensor) -> None:
        counts = [int((~torch.isfinite(t)).sum()) for t in (before.detach(), after.detach())]
        rule = repr(operation.rule) if operation.rule is not None else "none"
        self.layers.append(LayerTrace(operation.name, rule, direction, *counts))

    def origin(self) -> LayerTrace | None:
        """Return the first layer, forward pass before backward pass, where NaN or Inf arose.

        None if the first layer that has any was handed them: then they arose outside the layers.
        """
        first = next((layer for layer in self.layers if layer.before or layer.after), None)
        return first if first is not None and first.is_origin else None
