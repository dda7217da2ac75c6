"""Watched attributions: an observer and probes that record what relevance does at each layer."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation, names_of
from captum_lrp_stab.ledger.layer_record import absorbed, examine, outline, record_of
from captum_lrp_stab.ledger.measuring import (
    Index,
    flow_of,
    index_of_largest,
    is_finite,
    nonfinite,
    total_of,
)
from captum_lrp_stab.ledger.records import Flow, Input, LayerRecord, Ledger, Neuron, ledger_of
from captum_lrp_stab.operations import table
from captum_lrp_stab.propagation.attribution import Propagation
from captum_lrp_stab.propagation.observer import Observer, Passage, wide
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.task import Task, run_each
from captum_lrp_stab.tensors.complex_values import number_at

_CONSERVING = table.names_of("keeps_all")
"""Operations that redistribute all they receive, value by value, and cannot overflow."""


class Collector(Observer):
    """Records each layer that divides.

    Args:
        denominators: Look at the denominators too, which costs most.
    """

    def __init__(self, denominators: bool = True) -> None:
        self._denominators = denominators
        self._overflows: list[tuple[Operation, int, Neuron | None]] = []
        self.found: list[tuple[Operation, LayerRecord]] = []  # in order of the backward pass

    def forward(self, operation: Operation, x: Tensor, z: Tensor, output: Tensor) -> None:
        """Count the outputs that are not finite, if the layer's input is."""
        count, neuron = 0, None
        found = nonfinite(output.detach())
        if found and is_finite(x.detach()):
            count, index = found
            neuron = Neuron(index, float(z.detach()[index]), math.nan)
        self._overflows.append((operation, count, neuron))

    def forget(self, operation: Operation) -> None:
        """Drop the last note of a layer that turned out to be one with its batch norm."""
        notes = [i for i, note in enumerate(self._overflows) if note[0].name == operation.name]
        if notes:
            del self._overflows[notes[-1]]

    def backward(self, passage: Passage) -> None:
        """Examine a layer."""
        if self._denominators:
            noted = (n for o, _, n in self._overflows if o is passage.operation and n is not None)
            record = examine(passage, next((neuron.index for neuron in noted), None))
        else:
            record = outline(passage)
        self.found.append((passage.operation, record))

    def restart(self) -> None:
        """Drop everything."""
        self._overflows.clear()
        self.found.clear()

    def again(self) -> None:
        """Drop what the backward pass gave."""
        self.found.clear()

    def records(self) -> list[tuple[Operation, LayerRecord]]:
        """Return a record of each layer with its operation, in order of execution.

        A layer that relevance did not reach has one if its output is not finite.
        """
        seen = {operation: record for operation, record in self.found}
        result = []
        for operation, count, neuron in self._overflows:
            record = seen.pop(operation, None)
            if record is None and not count:
                continue
            record = record or record_of(operation, operation.rule)
            if count:
                known = record.first_nonfinite or neuron
                record = replace(record, overflow=count, first_nonfinite=known)
            result.append((operation, record))
        return result + list(seen.items())


class FlowProbe(Probe):
    """Sums up the relevance at one end of an operation without a rule.

    Args:
        name: Of the operation.
        at_input: Look at its inputs, or else at its output.
    """

    def __init__(self, name: str, at_input: bool) -> None:
        super().__init__(name, at_input)
        self.first: Neuron | None = None  # value of the forward pass that is not finite
        self.restart()

    def start(self, values: Sequence[Tensor], was_tuple: bool) -> int:
        """Begin a use of the operation."""
        for value in (v.detach() for v in values):
            if found := nonfinite(value):
                count, index = found
                self.overflow += count
                z = value[index].abs() if value.is_complex() else value[index]
                self.first = self.first or Neuron(index, float(z), math.nan)
        return 0

    def restart(self) -> None:
        """Drop everything, before a forward pass."""
        self.overflow = 0  # values of the forward pass that are not finite
        self.first = None
        self.forget()

    def forget(self) -> None:
        """Drop what was noted, before another backward pass."""
        self.flow = Flow()
        self.loudest: tuple[float, Index, float] | None = None
        self.bad: Input | None = None

    def seen(self, t: Tensor) -> Tensor:
        """Return a tensor as wide as sums need it."""
        return wide(t)

    def note(self, position: int, relevance: Tensor) -> None:
        """Add the relevance of one tensor."""
        flow = flow_of(relevance)
        self.flow += flow
        if self.bad is None and (found := nonfinite(relevance)):
            self.bad = Input(found[1], math.nan, float(relevance[found[1]]))
        if self.loudest is None or flow.largest > self.loudest[0]:
            index = index_of_largest(relevance.abs().nan_to_num(0.0, 0.0, 0.0))
            if index is not None:
                self.loudest = flow.largest, index, float(relevance[index])


def probes_of(operations: Iterable[Operation]) -> list[FlowProbe]:
    """Return probes at both ends of each operation without a rule that may lose relevance."""
    merged = {o.batch_norm for o in operations if o.batch_norm}
    names = dict.fromkeys(
        o.name
        for o in operations
        if o.rule is None
        and o.reached
        and not (o.is_merged or o.is_absorbed or o.name in merged)
        and not (o.treatment.changes_nothing and o.function in _CONSERVING)
    )
    return [FlowProbe(name, at_input) for name in names for at_input in (False, True)]


def records_of(
    collector: Collector,
    probes: Iterable[FlowProbe],
    operations: Sequence[Operation],
    dtype: torch.dtype,
) -> tuple[LayerRecord, ...]:
    """Return a record of each use of each layer that took part, in order of execution.

    Args:
        collector: Of the layers that divide.
        probes: Of the other operations; several uses of one of these are one record.
        operations: Of the pass.
        dtype: The coarsest of the pass.
    """
    found = dict(collector.records())
    by_end = {(probe.name, probe.at_input): probe for probe in probes}
    for operation in operations:
        ends = [by_end.pop((operation.name, end), None) for end in (False, True)]
        if ends[0] is not None and ends[1] is not None and operation not in found:
            found[operation] = _without_rule(operation, ends[0], ends[1], dtype)
    found = {operation: _of_numbers(record, operation) for operation, record in found.items()}
    places = {operation: i for i, operation in enumerate(operations)}
    ordered = sorted(found, key=lambda operation: places.get(operation, len(places)))
    return tuple(
        replace(found[operation], name=name, use=int(name[len(operation.name) + 1 : -1] or 0))
        for operation, name in zip(ordered, names_of(ordered), strict=True)
        if found[operation].has_rule or _took_part(found[operation])
    )


def _of_numbers(record: LayerRecord, operation: Operation) -> LayerRecord:
    """Return a record of pairs as one of the complex numbers they are, any other as it is."""
    pairs, numbers = record.shape, operation.shape
    if math.prod(pairs) == math.prod(numbers) or not numbers:
        return record

    def at(known: Any) -> Any:
        return known and replace(known, index=number_at(known.index, pairs, numbers))

    return replace(
        record,
        shape=numbers,
        strongest=at(record.strongest),
        first_nonfinite=at(record.first_nonfinite),
        nonfinite_input=at(record.nonfinite_input),
    )


def _took_part(record: LayerRecord) -> bool:
    flows = record.received, record.propagated
    return bool(record.overflow or any(flow.l1 or flow.nonfinite for flow in flows))


def _without_rule(
    operation: Operation, output: FlowProbe, given: FlowProbe, dtype: torch.dtype
) -> LayerRecord:
    received, strongest = output.flow, None
    if given.loudest is not None:
        size, index, relevance = given.loudest
        strongest = Neuron(index, math.nan, relevance, propagated=size)
    record = record_of(
        operation,
        None,
        received=received,
        propagated=given.flow,
        peak=given.flow.largest / received.l1 if received.l1 else None,
        overflow=0 if given.overflow else output.overflow,
        strongest=strongest,
        first_nonfinite=None if given.overflow else output.first,
        nonfinite_input=given.bad,
    )
    lost = received.total - given.flow.total
    return replace(record, shares=absorbed(operation, lost, record, dtype))


@dataclass(frozen=True, eq=False)
class Watched:
    """What was seen of one attribution."""

    done: Propagation
    records: tuple[LayerRecord, ...]  # in order of execution
    ledger: Ledger

    @staticmethod
    def of(done: Propagation, records: tuple[LayerRecord, ...]) -> "Watched":
        """Return an attribution and its records, with their sum."""
        inputs = sum((flow_of(wide(relevance)) for relevance in done.relevances), Flow())
        return Watched(done, records, ledger_of(total_of(done.score), inputs, records))


def watch(
    task: Task, operations: Sequence[Operation] | None = None, denominators: bool = True
) -> Watched:
    """Run a task's attribution and look at every layer.

    Args:
        task: What to attribute.
        operations: Those of the task, if they are known.
        denominators: Look at denominators too, not at the flow of relevance alone.
    """
    seen: list[Watched] = []
    watch_each((task,), seen.append, operations, denominators)
    return seen[0]


def watch_each(
    tasks: Sequence[Task],
    each: Callable[[Watched], None],
    operations: Sequence[Operation] | None = None,
    denominators: bool = True,
) -> None:
    """Watch attributions that differ in their rules and forms alone, after one forward pass.

    Those in another form than the gradient form have a forward pass each.

    Args:
        tasks: What to attribute; see :func:`captum_lrp_stab.task.run_each`.
        each: Called with what was seen of each, in their order, before the next begins.
        operations: Those of the tasks, if they are known.
        denominators: Look at denominators too, not at the flow of relevance alone.
    """
    planned = tasks[0].operations() if operations is None else operations
    collector, probes, dtype = Collector(denominators), probes_of(planned), tasks[0].dtype

    def note(done: Propagation) -> None:
        each(Watched.of(done, records_of(collector, probes, done.operations, dtype)))

    run_each(tasks, probes=tuple(probes), observer=collector, after=note)


def in_float64(task: Task, look: Callable[[Task], Watched] = watch) -> Watched:
    """Watch the same attribution in float64, without autocast.

    Args:
        task: What to attribute.
        look: How to watch it.

    Raises:
        ModelError: The model cannot be copied.
    """
    device = task.inputs[0].device.type
    with torch.autocast(device, enabled=False):
        return look(task.copied(torch.float64))


def amplification_of(records: Sequence[LayerRecord]) -> dict[str, float | None]:
    """Return how many times each layer amplifies the sum of absolute relevance, by name.

    In order of execution, without the operations that only move values (reshaping, concatenation);
    None where something is not finite.
    """
    return {
        record.name: None
        if record.received.nonfinite or record.propagated.nonfinite
        else record.amplification
        for record in records
        if record.has_rule or record.rule != "moved"
    }
