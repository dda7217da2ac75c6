"""Noting the relevance of inner tensors on its way through the backward pass.

A probe must not change what it measures. The output of a layer gets a hook on the tensor itself;
its input is copied, so that other readers of the same tensor are left out, and written back if the
layer wrote over its copy. A tensor that is given twice is one copy.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.complex_values import real_dtype
from captum_lrp_stab.tensors.graph import made
from captum_lrp_stab.tensors.nested import mapped, tensors_in


class Probe:
    """The relevance of a layer's output or input, summed over its uses in one pass.

    Args:
        name: The layer's name.
        at_input: Whether to note the relevance of its input, or of its output.
        is_wanted: Whether this very layer is asked for. Then what does not depend on the model's
            inputs counts as data here, such as the vectors of an embedding whose ids are further
            arguments; and an operation that uses its weights without calling it is a use of it.
    """

    def __init__(self, name: str, at_input: bool, is_wanted: bool = False) -> None:
        self.name = name
        self.at_input = at_input
        self.is_wanted = is_wanted
        self.was_tuple = False
        self.has_run = False
        self.relevances: list[Tensor | None] = []  # of each tensor, None where none came to it
        self._makes: list[Callable[[], Tensor]] = []  # zeros like each

    def start(self, values: Sequence[Tensor], was_tuple: bool) -> int:
        """Make room for the tensors of one use of the layer; return the position of the first."""
        self.was_tuple, self.has_run = was_tuple, True
        new = values[len(self.relevances) :]
        self.relevances.extend([None] * len(new))
        self._makes += [
            partial(torch.zeros, v.shape, dtype=real_dtype(v), device=v.device) for v in new
        ]
        return 0

    def restart(self) -> None:
        """Drop everything, before a forward pass."""
        self.relevances, self._makes, self.has_run = [], [], False

    @property
    def noted(self) -> list[Tensor]:
        """The relevance of the tensors that it came to."""
        return [R for R in self.relevances if R is not None]

    def parts(self) -> tuple[Tensor, ...]:
        """Return the relevance of every tensor: 0 where none came to it, as to an unused part."""
        pairs = zip(self.relevances, self._makes, strict=True)
        return tuple(make() if R is None else R for R, make in pairs)

    def forget(self) -> None:
        """Drop what was noted, before another backward pass."""
        self.relevances = [None] * len(self.relevances)

    def seen(self, t: Tensor) -> Tensor:
        """Return a value, or what is carried for it, in the form the relevance is computed from."""
        return t

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


class Form(Protocol):
    """What probes ask of the form."""

    def carries_relevance(self, t: Tensor) -> bool:
        """Return whether the backward pass gives this tensor relevance, not a coefficient."""

    def noted(self, value: Tensor, carried: Tensor, as_it_is: bool) -> Tensor:
        """Return the relevance of a value, given what the backward pass carries for it."""

    def depends_on_input(self, t: Tensor) -> bool:
        """Return whether a tensor depends on the model's input."""

    def as_data(self, t: Tensor) -> Tensor:
        """Return a copy of a constant that counts as if it came from an input."""

    def branch(self, t: Tensor, copy: Tensor, note: Callable[[Tensor], None]) -> None:
        """Note the relevance of the carrier of ``t``, and give the carrier to ``copy``."""

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Give the carrier of a tensor to another one that has its values now."""

    def overwrote(self, t: Tensor) -> None:
        """Note a tensor that has been written to in place, with what depends on an input."""


@dataclass
class _Running:
    """A layer between its input and its output."""

    name: str
    given: list[tuple[Tensor, int]]  # with the version it had
    copies: list[tuple[Tensor, Tensor]]  # what was given, and what stands for it


class Probes:
    """The probes of one pass.

    Args:
        probes: Where to look.
        form: How relevance is carried.
    """

    def __init__(self, probes: Iterable[Probe], form: Form) -> None:
        self._by_place = {(probe.name, probe.at_input): probe for probe in probes}
        self._form = form
        self._running: list[_Running] = []

    def __iter__(self) -> Any:
        """Yield the probes."""
        return iter(self._by_place.values())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._by_place)

    def entering(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the arguments to run a layer with."""
        probe = self._by_place.get((name, True))
        if probe is None and (name, False) not in self._by_place:
            return args, kwargs
        given = tensors_in(args, kwargs)
        tensors = list({id(t): t for t in given if made(t)}.values())  # one that is given twice
        copies: dict[int, Tensor] = {}
        if probe is not None:
            constants = self._constants(probe, given)
            tensors = constants or tensors
            first = probe.start(tensors, len(tensors) > 1)
            for position, t in enumerate(tensors, first):
                if id(t) not in copies:
                    copy = self._as_data if constants else self._copied
                    copies[id(t)] = copy(probe, position, t)
        pairs = [(t, copies[id(t)]) for t in tensors if id(t) in copies]
        self._running.append(_Running(name, [(t, t._version) for t in tensors], pairs))

        def change(t: Tensor) -> Tensor:
            return copies.get(id(t), t)

        return mapped(change, args), mapped(change, kwargs)

    def leaving(self, name: str, output: Any, result: Any) -> Any:
        """Return the output to go on with after a layer.

        Args:
            name: Of the layer.
            output: What it gives.
            result: What it made: the output, or what it wrote to.
        """
        if not any(running.name == name for running in self._running):
            return output
        while (running := self._running.pop()).name != name:
            pass
        originals: dict[int, Tensor] = {}
        for t, copy in running.copies:
            if copy._version:  # the layer wrote over it
                originals[id(copy)] = t.copy_(copy)
                self._form.overwrote(t)
                marks.carry(copy, t)
                self._form.carry(copy, t)

        def back(t: Tensor) -> Tensor:
            return originals.get(id(t), t)

        if originals:
            output, result = mapped(back, output), mapped(back, result)
        probe = self._by_place.get((name, False))
        return output if probe is None else self.watched(probe.name, output, result, running.given)

    def watched(
        self, name: str, output: Any, result: Any, given: Iterable[tuple[Tensor, int]] = ()
    ) -> Any:
        """Return an output whose relevance is noted for layer ``name`` if asked to."""
        probe = self._by_place.get((name, False))
        if probe is None:
            return output
        unchanged = {id(t) for t, version in given if t._version == version}
        tensors = list(tensors_in((result,), {}))
        first = probe.start(tensors, isinstance(result, (tuple, list, dict)))
        copies: dict[int, Tensor] = {}
        constants = self._constants(probe, tensors)
        for position, t in enumerate(tensors, first):
            if any(t is constant for constant in constants):
                copies[id(t)] = self._as_data(probe, position, t)
            if constants or not made(t):
                continue
            if id(t) in unchanged:  # returned as it is, and read by others too
                copies[id(t)] = self._copied(probe, position, t)
            else:
                self._hook(probe, position, t)

        def change(t: Tensor) -> Tensor:
            return copies.get(id(t), t)

        return mapped(change, output) if copies else output

    def _constants(self, probe: Probe, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return what counts as data: all with floating point, if none depends on an input."""
        if not probe.is_wanted or any(map(self._form.depends_on_input, tensors)):
            return []
        return [t for t in tensors if t.is_floating_point() or t.is_complex()]

    def _as_data(self, probe: Probe, position: int, t: Tensor) -> Tensor:
        copy = self._form.as_data(t)
        self._hook(probe, position, copy)
        return copy

    def _hook(self, probe: Probe, position: int, t: Tensor) -> None:
        value, as_it_is = t.detach().clone(), self._form.carries_relevance(t)

        def hook(carried: Tensor | None) -> None:
            if carried is None:  # of a part that nothing reads, where others are read
                return
            noted = self._form.noted(probe.seen(value), probe.seen(carried), as_it_is)
            probe.note(position, noted)

        t.register_hook(hook)  # type: ignore[no-untyped-call]
        self._form.branch(t, t, lambda R: probe.note(position, R))

    def _copied(self, probe: Probe, position: int, t: Tensor) -> Tensor:
        as_it_is = self._form.carries_relevance(t)

        def note(value: Tensor, carried: Tensor) -> None:
            noted = self._form.noted(probe.seen(value), probe.seen(carried), as_it_is)
            probe.note(position, noted)

        copy: Tensor = ProbeStep.apply(t, note)
        marks.carry(t, copy)
        padded = marks.get(t, "padded")
        if padded is not None:  # a layer that takes the padding as its own reads what is inside
            inside = self._copied(probe, position, padded.x)
            mark = replace(padded, x=inside, version=inside._version)
            marks.put(copy, "padded", mark)
        self._form.branch(t, copy, lambda R: probe.note(position, R))
        return copy


class ProbeStep(torch.autograd.Function):
    """A copy of a tensor that notes, in the backward pass, its value and what is carried for it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, note: Callable[[Tensor, Tensor], None]) -> Tensor:
        """Return a copy, so that writing to it in place leaves the value alone."""
        copy = value.clone()
        ctx.save_for_backward(value.detach().clone())
        ctx.note = note
        return copy

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Note the value and c, and return c."""
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
        """Note the relevance and return it."""
        ctx.note(upstream[0])
        return upstream[0], None
