"""Which part of each model input can move a neuron, for the phrase ``sees`` of a diagnosis.

It is where the gradient of the neuron is not 0, in a copy of the model with random positive weights
and on random positive inputs: there no ReLU is off and nothing cancels. LRP holds gates and the
statistics of normalisations constant; what acts on the neuron through these alone does not count,
because no relevance gets there. Neither does what a max pool chose in none of a few such runs.
"""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.standard import ZeroRule
from captum_lrp_stab.task import Task, on


@dataclass(frozen=True)
class Box:
    """The bounding box of a part of an input, without the batch dimension.

    Example:
        >>> Box((0, 12, 0), (3, 71, 67)).describe()
        'rows 12 to 70, columns 0 to 66'
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]  # exclusive

    def describe(self, shape: Sequence[int] | None = None) -> str:
        """Return the box in words, with inclusive ends.

        Args:
            shape: Of the input, without the batch dimension; with it, channels of a picture or a
                volume are named where they are not all in the box.
        """
        names = {1: ("feature",), 3: ("channel", "row", "column")}.get(len(self.start), ())
        if len(self.start) == 4:
            names = ("channel", "slice", "row", "column")
        parts = []
        for d, (first, end) in enumerate(zip(self.start, self.stop, strict=True)):
            if names[d : d + 1] == ("channel",) and (shape is None or end - first == shape[d]):
                continue
            if names:
                name = names[d] if end - first == 1 else f"{names[d]}s"
            else:
                name = f"dimension {d + 1}:"
            parts.append(f"{name} {first}" if end - first == 1 else f"{name} {first} to {end - 1}")
        return ", ".join(parts) or "the only value"


_RUNS = 3
_UNTOLD = (LRPError, RuntimeError, IndexError, ValueError, StopIteration)
"""What a pass ends with that cannot be followed, or has no such neuron."""


def receptive_field(
    task: Task, layer: str, index: tuple[int, ...], use: int = 0
) -> tuple[Box | None, ...]:
    """Return the part of each input that can move a neuron; None where there is none.

    Args:
        task: What is attributed; its rules decide what operations are called.
        layer: Name of the operation, as a plan lists it.
        index: Of the neuron in the operation's first output, with the batch dimension.
        use: Which run of the operation it is, of several in one pass.

    Returns:
        A box for each input; nothing if there is no such neuron, or the model cannot be followed.
    """
    rules = replace(task, form=GradientForm, stabilizer=None, merge_batch_norm=False)
    plain = rules.changing(lambda rule: on(_Gradient(), rule.layer))
    generator = torch.Generator().manual_seed(0)  # torch's own stays as it is
    found: list[Tensor] = []
    with warnings.catch_warnings(), torch.autocast(task.inputs[0].device.type, enabled=False):
        warnings.simplefilter("ignore")
        with suppress(*_UNTOLD):
            copied = plain.copied(torch.float32)
            _make_positive(copied.model, generator)
            for _ in range(_RUNS):
                drawn = tuple(_drawn(x, generator) for x in copied.inputs)
                more = _moved_by(replace(copied, inputs=drawn), layer, index, use)
                found = [a | b for a, b in zip(found, more, strict=True)] if found else more
    return tuple(map(_box, found))


def _moved_by(task: Task, layer: str, index: tuple[int, ...], use: int) -> list[Tensor]:
    """Return for each element of each input whether it moves a neuron; nothing if none is there."""
    inputs = _Inputs()
    try:
        task.propagate((inputs, _Neuron(layer, index, use, inputs)))
    except _Reached as reached:
        pairs = zip(reached.gradients, task.inputs, strict=True)
        return [(torch.zeros_like(x) if g is None else g) != 0 for g, x in pairs]
    return []


def _drawn(t: Tensor, generator: torch.Generator) -> Tensor:
    """Return positive numbers, of many sizes so that a max pool chooses differently by channel."""
    count = min(t.numel(), 65_521)  # a prime, after which they repeat: to draw takes long
    drawn = torch.randn(count, generator=generator, dtype=t.dtype).exp().to(t.device)
    return drawn.repeat(-(-t.numel() // max(count, 1)))[: t.numel()].reshape(t.shape)


def _make_positive(model: nn.Module, generator: torch.Generator) -> None:
    """Give a model random positive weights.

    They take means over channels, and what is between means and sums over positions: neither values
    nor the gradients at the edge of a receptive field become too large or too small with depth.
    """
    with torch.no_grad():
        for weight in model.parameters():
            channels, positions = weight.shape[1:2].numel(), weight.shape[2:].numel()
            weight.copy_(_drawn(weight, generator) / (channels * math.sqrt(positions)))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()


def _box(part: Tensor) -> Box | None:
    places = part.nonzero()[:, 1:]  # without the batch dimension
    if not len(places):
        return None
    return Box(tuple(places.amin(0).tolist()), tuple((places.amax(0) + 1).tolist()))


class _Gradient(ZeroRule):
    """LRP-0 that counts what an output of exactly 0 reads too, of which 0/0 is 0 otherwise."""

    def coefficient(self, op: Affine, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Return the gradient of ``x``."""
        return op.vjp(c, x, op.weight)


class _Reached(Exception):
    """Ends a pass at the neuron, with the gradient of it by each input."""

    def __init__(self, gradients: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.gradients = gradients


class _Inputs(Probe):
    """Keeps the inputs of the model, as the graph of the pass has them."""

    def __init__(self) -> None:
        super().__init__("", at_input=True)
        self.values: Sequence[Tensor] = ()

    def start(self, values: Sequence[Tensor], was_tuple: bool) -> int:
        """Keep the inputs."""
        self.values = values
        return super().start(values, was_tuple)


class _Neuron(Probe):
    """Ends the pass at one output of one run of an operation."""

    def __init__(self, layer: str, index: tuple[int, ...], use: int, inputs: _Inputs) -> None:
        super().__init__(layer, at_input=False)
        self._index, self._use, self._inputs = index, use, inputs

    def restart(self) -> None:
        """Begin to count, before a forward pass."""
        super().restart()
        self._before = self._use

    def start(self, values: Sequence[Tensor], was_tuple: bool) -> int:
        """Raise with the gradients, if this is the run of the operation."""
        if self._before:
            self._before -= 1
            return super().start(values, was_tuple)
        value = next(t for t in values if t.requires_grad)
        seed = torch.zeros_like(value)
        seed[self._index] = 1
        raise _Reached(
            torch.autograd.grad(value, tuple(self._inputs.values), seed, allow_unused=True)
        )
