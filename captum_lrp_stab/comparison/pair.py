"""Two runs side by side, layer by layer, and the first place at which they part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captum_lrp_stab.comparison.agreement import Agreement, agreement, relative_difference
from captum_lrp_stab.comparison.recording import Recording, Use
from captum_lrp_stab.dispatch.operation import Operation, names_of

_RANKED = 2**14
"""The most values of a layer's relevance that are ranked in each sample."""


@dataclass(frozen=True)
class LayerAgreement:
    """How well the two sides agree at one use of one layer; None for what either could not see.

    ``output`` compares the relevance of the layer's output, ``input`` what the layer propagates to
    its input, ``value`` is the relative difference of the outputs themselves. The rank correlation
    of a large layer is that of 16,384 values of each sample, evenly spaced.
    """

    name: str
    kind: str
    rule: str
    output: Agreement | None
    input: Agreement | None
    value: float | None


@dataclass(frozen=True)
class Divergence:
    """The first place at which two runs part.

    In the forward pass it is the first layer whose output differs although what it reads does not;
    else, in the backward pass from the score, the first that propagates other relevance although
    it receives the same. Where the reference could not be watched in between, ``candidates``
    are all operations that may be the one.
    """

    name: str
    kind: str
    direction: str  # "forward" or "backward"
    relative_l2: float | None  # None where a side is not finite
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class _Ends:
    """One use of one layer on both sides; None where either side could not see it."""

    name: str
    operation: Operation
    output: tuple[Use, Use] | None
    input: tuple[Use, Use] | None

    @cached_property
    def differences(self) -> tuple[float | None, float | None, float | None]:
        """Relative differences of the output's relevance, the input's, and the output itself.

        Infinite where a side is not finite, None where one is not known.
        """
        return (
            _difference(_relevances(self.output)),
            _difference(_relevances(self.input)),
            _difference(_values(self.output)),
        )


class Pair:
    """Two recordings of one attribution.

    Args:
        ours: This package's.
        reference: The other.
        operations: This package's operations, in order of execution, with what each reads.
    """

    def __init__(
        self, ours: Recording, reference: Recording, operations: Sequence[Operation]
    ) -> None:
        self.ours, self.reference, self.operations = ours, reference, operations
        self._ends = []
        for name, operation in zip(names_of(operations), operations, strict=True):
            use = int(name[len(operation.name) + 1 : -1] or 0)
            ends = (
                _same_use(one.get(operation.name, ()), other.get(operation.name, ()), use)
                for one, other in (
                    (ours.outputs, reference.outputs),
                    (ours.inputs, reference.inputs),
                )
            )
            self._ends.append(_Ends(name, operation, *ends))

    @cached_property
    def overall(self) -> Agreement:
        """How well the relevance of the inputs agrees."""
        return agreement(self.ours.relevances, self.reference.relevances)

    @cached_property
    def error(self) -> float:
        """The relative difference of the relevance of the inputs; infinite where not finite."""
        found = relative_difference(self.ours.relevances, self.reference.relevances)
        return math.inf if found is None else found

    @cached_property
    def layers(self) -> tuple[LayerAgreement, ...]:
        """How well each use of each layer agrees, in order of execution."""
        given: dict[Operation, _Compared] = {}
        return tuple(_compared(ends, given) for ends in self._ends)

    @property
    def was_watched(self) -> bool:
        """Whether any layer was seen on both sides."""
        return any(ends.output or ends.input for ends in self._ends)

    def divergence(self, tolerance: float) -> Divergence | None:
        """Return the first place at which the runs part by more than a tolerance.

        None if they do not, or if the reference's layers were not seen.
        """
        if not self.was_watched:
            return None
        return self._forward(tolerance) or self._backward(tolerance)

    def _forward(self, tolerance: float) -> Divergence | None:
        differing = set()
        for ends in self._ends:
            difference = ends.differences[2]
            if difference is None or difference <= tolerance:
                continue
            if not any(o in differing for o in ends.operation.reads):
                kind = _kind(ends.operation)
                return Divergence(ends.name, kind, "forward", _finite(difference), (ends.name,))
            differing.add(ends.operation)
        return None

    def _backward(self, tolerance: float) -> Divergence | None:
        for ends in reversed(self._ends):
            output, propagated, _ = ends.differences
            if output is not None and output > tolerance:
                return self._between(self._readers(ends.operation), output, tolerance)
            if propagated is not None and propagated > tolerance:
                kind, size = _kind(ends.operation), _finite(propagated)
                return Divergence(ends.name, kind, "backward", size, (ends.name,))
        if self.overall.within(tolerance):
            return None
        first = [i for i, operation in enumerate(self.operations) if not operation.reads]
        return self._between(first, self.overall.relative_l2, tolerance)

    def _readers(self, operation: Operation) -> list[int]:
        return [i for i, o in enumerate(self.operations) if operation in o.reads]

    def _between(self, readers: list[int], size: float | None, tolerance: float) -> Divergence:
        """Return the operations between relevance that differs and relevance that agrees."""
        waiting, candidates = readers, []
        while waiting:
            index = waiting.pop()
            output, propagated, _ = self._ends[index].differences
            if index in candidates or (propagated is not None and propagated <= tolerance):
                continue
            candidates.append(index)
            # not watched: what it propagates may have been wrong above it
            if output is None and not self._received_right(index, tolerance):
                waiting += self._readers(self.operations[index])
        if not candidates:
            return Divergence("the score", "", "backward", _finite(size), ())
        candidates.sort(key=self._innocence)
        names = tuple(self._ends[i].name for i in candidates)
        kind = _kind(self.operations[candidates[0]])
        return Divergence(names[0], kind, "backward", _finite(size), names)

    def _received_right(self, index: int, tolerance: float) -> bool:
        """Return whether what it alone reads has the right relevance, so that it received such."""
        places = {operation: i for i, operation in enumerate(self.operations)}
        for read in self.operations[index].reads:
            output = self._ends[places[read]].differences[0] if read in places else None
            if output is not None and output <= tolerance and self._readers(read) == [index]:
                return True
        return False

    def _innocence(self, index: int) -> tuple[bool, bool, int]:
        """Return a key that sorts likely culprits first: what mixes values, then functional calls.

        A reference that sees modules is blind to functional calls.
        """
        operation = self.operations[index]
        mixes = operation.rule is not None or not operation.treatment.changes_nothing
        call = operation.name.rpartition(".")[2].startswith(f"{operation.kind}_")
        return (not mixes, not call or self._ends[index].output is not None, -index)


def _compared(ends: _Ends, given: "dict[Operation, _Compared]") -> LayerAgreement:
    """Return how well one use of a layer agrees.

    Args:
        ends: The layer.
        given: The relevance of the outputs of the layers before it, to which this one's is added.
            It is what this one propagates, unless others read the same, and is compared once.
    """
    operation = ends.operation
    outputs, inputs = _relevances(ends.output), _relevances(ends.input)
    output = None if outputs is None else agreement(*outputs, _RANKED)
    if outputs is not None and output is not None:
        given[operation] = outputs, output
    known = [given[read] for read in operation.reads if read in given]
    same = (found for sides, found in known if inputs is not None and _equal(inputs, sides))
    return LayerAgreement(
        ends.name,
        _kind(operation),
        operation.treatment_in_words if operation.rule is None else repr(operation.rule),
        output,
        None if inputs is None else next(same, None) or agreement(*inputs, _RANKED),
        ends.differences[2],
    )


def _kind(operation: Operation) -> str:
    return operation.kind + (f" + {operation.batch_norm}" if operation.batch_norm else "")


def _same_use(ours: Sequence[Use], theirs: Sequence[Use], use: int) -> tuple[Use, Use] | None:
    """Return one use of a layer on both sides, None if one side ran it more often."""
    if len(ours) != len(theirs) or use >= len(ours):
        return None
    return ours[use], theirs[use]


_Sides = tuple[list[Tensor], list[Tensor]]
_Compared = tuple[_Sides, Agreement]


def _equal(some: _Sides, others: _Sides) -> bool:
    """Return whether both sides are the same tensors by their values."""
    return all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(some, others, strict=True)
    )


def _relevances(uses: tuple[Use, Use] | None) -> _Sides | None:
    """Return the relevance of each tensor that has some on either side, 0 where it has none."""
    if uses is None:
        return None
    ours, theirs = (use.relevances for use in uses)
    if len(ours) != len(theirs):  # of a function as reference, which gives one tensor for a layer
        return _alike(uses[0].relevance, uses[1].relevance)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None or b is not None]
    return _alike([_or_0(a, b) for a, b in pairs], [_or_0(b, a) for a, b in pairs])


def _or_0(relevance: Tensor | None, other: Tensor | None) -> Tensor:
    if relevance is not None:
        return relevance
    assert other is not None
    return torch.zeros_like(other)


def _values(uses: tuple[Use, Use] | None) -> _Sides | None:
    """Return the values, as far as both sides know them, of the tensors with relevance."""
    if uses is None or len(uses[0].values) != len(uses[1].values):
        return None
    known = [
        (value, other)
        for value, other, *relevances in zip(
            *(use.values for use in uses), *(use.relevances for use in uses), strict=True
        )
        if value is not None and other is not None and any(R is not None for R in relevances)
    ]
    return _alike([a for a, _ in known], [b for _, b in known]) if known else None


def _alike(ours: list[Tensor] | None, theirs: list[Tensor] | None) -> _Sides | None:
    """Return both sides if they are known and of the same shapes."""
    if ours is None or theirs is None or [t.shape for t in ours] != [t.shape for t in theirs]:
        return None
    return ours, theirs


def _difference(sides: _Sides | None) -> float | None:
    if sides is None:
        return None
    difference = relative_difference(*sides)
    return math.inf if difference is None else difference


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
