"""Which part of each model input can influence a neuron: its structural receptive field.

In one forward pass every operation is connected to all that it reads, and a backward pass carries
*influence* from the neuron: 1 where a value can have an effect on it, 0 elsewhere. Structural means
whatever the weights and the data are: a weight of 0, a unit that ReLU switched off, the losers of a
max pool and a gate that LRP holds constant all count.

How an operation hands influence down is in ``influence``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor, nn

from captum_lrp_stab.diagnosis.influence import followed
from captum_lrp_stab.dispatch import call_checks
from captum_lrp_stab.dispatch.form import Call
from captum_lrp_stab.dispatch.layer_use import Site
from captum_lrp_stab.dispatch.mode import Interception
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.propagation import checks
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.tensors import graph
from captum_lrp_stab.tensors.graph import made
from captum_lrp_stab.tensors.nested import mapped, tensors_in


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


def receptive_field(
    model: nn.Module,
    inputs: Any,
    additional_forward_args: Any,
    rule_set: RuleSet,
    layer: str,
    index: tuple[int, ...],
    use: int = 0,
) -> tuple[Box | None, ...]:
    """Return the part of each input that can influence a neuron, None where there is none.

    Args:
        model: Any module that LRP can explain; it stays as it is.
        inputs: A tensor ``(N, ...)`` or a tuple of them, floating point.
        additional_forward_args: As in Captum.
        rule_set: Its named rules decide what operations are called.
        layer: Name of the operation, as a plan lists it, or of a batch norm merged into it.
        index: Of the neuron in the operation's (first) output, with the batch dimension.
        use: Which it is of the operations that the pass runs under this name: runs of a layer that
            is used again, or the steps of one that takes several, such as an LPPool2d.

    Raises:
        InputError: An input is not a finite floating-point tensor, or there is no such neuron.
        ModelError: The model cannot be followed.
    """
    checks.check_model(model)
    xs = as_tuple(inputs)
    checks.check_inputs(xs)
    extra = mapped(
        lambda t: t.clone() if t.is_inference() else t.detach(),
        tuple(_format_additional_forward_args(additional_forward_args) or ()),
    )
    with torch.inference_mode(False), torch.enable_grad():
        mode = _Following(model, rule_set, layer, index, use)
        mode.sources = tuple(x.detach().clone().requires_grad_() for x in xs)
        with mode.places.watch(lambda name, *given: given, lambda name, output: output), mode:
            model(*(leaf.clone() for leaf in mode.sources), *extra)
        return tuple(map(_box, mode.influences()))


def _box(influence: Tensor | None) -> Box | None:
    if influence is None or not influence.any():
        return None
    places = influence.ne(0).nonzero()[:, 1:]  # without the batch dimension
    return Box(tuple(places.amin(0).tolist()), tuple((places.amax(0) + 1).tolist()))


class _Following(Interception):
    """Connect each operation up to a neuron to all that it reads."""

    def __init__(
        self, model: nn.Module, rule_set: RuleSet, layer: str, index: tuple[int, ...], use: int
    ) -> None:
        super().__init__(model, rule_set)
        self._layer, self._index, self._use = layer, index, use
        self._uses = 0
        self._neuron: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one torch function call; inside, the mode is off."""
        kwargs = kwargs or {}
        tensors = list(tensors_in(args, kwargs))
        if self._neuron is not None and tensors:  # what comes after it needs no graph
            with torch.no_grad():
                return func(*mapped(Tensor.detach, args), **mapped(Tensor.detach, kwargs))
        call_checks.check_randomness(func, kwargs, self.places)
        given = [t for t in tensors if made(t)]
        if not given:
            return self._constant(func, [t for t in tensors if t.requires_grad], args, kwargs)
        with torch.enable_grad():  # what the model computes under no_grad() has influence too
            call_checks.check_call(func, args, kwargs, self.places, made)
            written_out = self._written_out(func)
            if written_out is not None:
                return self._run_inside(func, written_out, args, kwargs)
            operation, _ = self.assignment.operation(func, args, kwargs, self)
            out = followed(operation, func, args, kwargs, given)
            result = args[0] if func is Tensor.__setitem__ else out
            return self._recorded(operation, out, result, given)

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Get hold of the neuron."""
        if operation.name == self._layer:
            self._uses += 1
            if self._uses == self._use + 1:
                value = next(t for t in tensors_in((result,), {}) if t.requires_grad)
                sizes = tuple(value.shape)
                fits = len(self._index) == len(sizes)
                if not fits or any(not 0 <= i < n for i, n in zip(self._index, sizes, strict=True)):
                    raise InputError(
                        f"index {self._index} is no element of the output of '{self._layer}', "
                        f"which has shape {sizes}"
                    )
                self._neuron = value[self._index].clone()  # later writes leave a copy alone
        return output

    def influences(self) -> tuple[Tensor | None, ...]:
        """Return the influence of each input on the neuron, None for none."""
        if self._neuron is None:
            ran = ", ".join(dict.fromkeys(o.name for o in self.operations)) or "none"
            raise InputError(
                f"use {self._use} of operation '{self._layer}': the pass ran it {self._uses} "
                f"times; the operations it ran are {ran}"
            )
        for function in graph.custom_functions(graph.graph(self._neuron)):
            raise ModelError(
                f"the custom autograd function {function.__name__} does not tell what its result "
                "depends on; write it in torch functions"
            )
        seed = torch.ones_like(self._neuron)
        return torch.autograd.grad(self._neuron, self.sources, seed, allow_unused=True)

    def affine(self, site: Site, call: Call) -> Tensor:
        """Raise: rules have no part in this."""
        raise NotImplementedError

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Raise: rules have no part in this."""
        raise NotImplementedError
