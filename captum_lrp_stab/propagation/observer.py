"""Observers: callbacks for each layer of a pass, with its input, output and relevance.

A form calls an :class:`Observer` for every layer that divides relevance, in order of execution in
the forward pass and in the reverse order in the backward pass. ``ledger`` records it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.rules.kernel import Division, Sent


@dataclass(frozen=True, eq=False)
class Passage:
    """One layer in the backward pass.

    ``upstream`` and ``downstream`` are what the pass carries, for one output and each input;
    ``received`` and ``handed_down`` return the relevance they stand for, in float32 or wider.
    """

    operation: Operation
    inputs: tuple[Tensor, ...]
    output: Tensor
    upstream: Tensor
    downstream: tuple[Tensor, ...]
    division: Division
    above: Callable[[Tensor, Tensor], Tensor]  # from output and upstream to relevance
    below: Callable[[Tensor, Tensor], Tensor]  # from an input and its downstream to relevance
    use: LayerUse | None = None  # None for an operation without a rule that divides all the same
    messages: Sequence[Sent] | None = None  # of the rule; None if it has a backward pass of its own
    pre_activation: Tensor | None = None  # None: the output
    stabilized: Tensor | None = None  # of an operation without a rule
    magnitude: Callable[[], Tensor] | None = None  # likewise: its sums of absolute contributions
    scale: float = 1.0  # of what is carried, in float16

    @property
    def z(self) -> Tensor:
        """The pre-activation: the output, unless a form rewrites the forward pass."""
        return self.output if self.pre_activation is None else self.pre_activation

    def received(self) -> Tensor:
        """Return the relevance of the output."""
        return self.above(wide(self.output), wide(self.upstream))

    def handed_down(self) -> tuple[Tensor, ...]:
        """Return the relevance of each input."""
        pairs = zip(self.inputs, self.downstream, strict=True)
        return tuple(self.below(wide(x), wide(carried)) for x, carried in pairs)


class Observer:
    """Callbacks for each layer of a pass; these do nothing."""

    def forward(self, operation: Operation, x: Tensor, z: Tensor, output: Tensor) -> None:
        """Note a layer's input, its pre-activation, and its output."""

    def forget(self, operation: Operation) -> None:
        """Drop the last note of a layer: it is one layer with a batch norm, noted next."""

    def backward(self, passage: Passage) -> None:
        """Note the relevance a layer received and the relevance it propagates."""

    def restart(self) -> None:
        """Drop everything, before a forward pass."""

    def again(self) -> None:
        """Drop what was noted of the backward pass, before another one."""


def as_it_is(value: Tensor, relevance: Tensor) -> Tensor:
    """Return the relevance of a value that is carried as such."""
    return relevance


def wide(t: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own dtype if that is wider."""
    return t.detach().to(torch.promote_types(t.dtype, torch.float32))
