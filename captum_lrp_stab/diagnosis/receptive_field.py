"""Which part of each model input moves a neuron, for the phrase ``sees`` of a diagnosis.

A part counts where the neuron's coefficient under LRP-0 (on a network of ReLUs its gradient) is not
0: at the input that is explained, or at one of a few random inputs, because a ReLU that is off and
the choice of a max pool hide at one input what they show at another. What LRP holds constant, such
as a gate or the statistics of a normalisation, does not count: no relevance gets there.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.rules.standard import ZeroRule
from captum_lrp_stab.task import Subject, on


@dataclass(frozen=True)
class Box:
    """The bounding box of a part of an input, without the batch dimension.

    Example:
        >>> Box((0, 12, 0), (3, 71, 67)).describe()
        'rows 12 to 70, columns 0 to 66'
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]  # exclusive

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Return whether the box is all of an input of this shape, without the batch dimension."""
        return not any(self.start) and self.stop == tuple(shape)

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


_RANDOM = 3
"""Random inputs that are looked at beside the input itself."""
_UNTOLD = (LRPError, RuntimeError, IndexError, StopIteration)
"""What a pass ends with that cannot be followed, or has no such neuron."""


def receptive_field(
    subject: Subject, layer: str, index: tuple[int, ...], use: int = 0
) -> tuple[Box | None, ...]:
    """Return the part of each input that moves a neuron; None where there is none.

    Args:
        subject: What is attributed; its rules decide what operations are called.
        layer: Name of the operation, as a plan lists it.
        index: Of the neuron in the operation's first output, with the batch dimension.
        use: Which run of the operation it is, of several in one pass.

    Returns:
        A box for each input; nothing if there is no such neuron, or the model cannot be followed.
    """
    rules = replace(subject, form=GradientForm, stabilizer=None, merge_batch_norm=False)
    plain = rules.changing(lambda rule: on(ZeroRule(), rule.layer))
    found: list[Tensor] = []
    with warnings.catch_warnings(), torch.autocast(subject.inputs[0].device.type, enabled=False):
        warnings.simplefilter("ignore")
        with suppress(LRPError):
            if torch.finfo(subject.dtype).bits < 32:  # in which small gradients are 0
                plain = plain.copied(torch.float32)
        for seed in range(_RANDOM + 1):
            with suppress(*_UNTOLD):  # a model may refuse what is no picture
                more = _moved_by(_random(plain, seed) if seed else plain, layer, index, use)
                pairs = zip(found, more, strict=True)
                found = [a | b for a, b in pairs] if found and more else found or more
    return tuple(map(_box, found))


def _moved_by(subject: Subject, layer: str, index: tuple[int, ...], use: int) -> list[Tensor]:
    """Return for each element of each input whether it moves a neuron; nothing if none is there."""
    inputs = _Inputs()
    try:
        subject.propagate((inputs, _Neuron(layer, index, use, inputs)))
    except _Reached as reached:
        pairs = zip(reached.gradients, subject.inputs, strict=True)
        return [_not_0(torch.zeros_like(x) if g is None else g) for g, x in pairs]
    return []


def _not_0(gradient: Tensor) -> Tensor:
    """Return where a gradient is not 0; NaN, which is all around a division by 0, if nowhere."""
    known = gradient.nan_to_num(0.0) != 0
    return known if known.any() else gradient != 0


def _random(subject: Subject, seed: int) -> Subject:
    """Return the subject with random inputs, as large as its own."""

    def other(x: Tensor) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(seed)  # torch's own stays as it is
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return noise * (x.abs().square().mean().sqrt() or 1)

    return replace(subject, inputs=tuple(map(other, subject.inputs)))


def _box(part: Tensor) -> Box | None:
    places = part.nonzero()[:, 1:]  # without the batch dimension
    if not len(places):
        return None
    return Box(tuple(places.amin(0).tolist()), tuple((places.amax(0) + 1).tolist()))


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
