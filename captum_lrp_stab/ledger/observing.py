"""Collecting the records of one pass, layer by layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation, names_of
from captum_lrp_stab.ledger.examining import absorbed, examine, outline
from captum_lrp_stab.ledger.measuring import first_index, flow_of, index_of_largest, is_finite
from captum_lrp_stab.ledger.records import Flow, Input, LayerRecord, Neuron, Shares
from captum_lrp_stab.propagation.observer import Observer, Passage, wide
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.tensors.complex_values import number_at

_CONSERVING = frozenset(
    """
    celu elu gelu hardshrink hardswish hardtanh leaky_relu leakyrelu mish prelu relu relu6 rrelu
    selu silu softshrink softsign tanh tanhshrink threshold
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptivemaxpool1d adaptivemaxpool2d
    adaptivemaxpool3d clone constantpad1d constantpad2d constantpad3d contiguous dropout dropout1d
    dropout2d dropout3d flatten identity max_pool1d max_pool2d max_pool3d maxpool1d maxpool2d
    maxpool3d moveaxis movedim pad permute ravel reflectionpad1d reflectionpad2d reflectionpad3d
    replicationpad1d replicationpad2d replicationpad3d reshape squeeze swapaxes transpose unflatten
    unsqueeze view zeropad1d zeropad2d zeropad3d
    """.split()
)
"""Operations that hand down what they receive, value by value, and cannot overflow."""


class Collector(Observer):
    """Makes a record of each layer that divides.

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
        if not is_finite(output.detach()) and is_finite(x.detach()):
            bad = ~output.detach().isfinite()
            count, index = int(bad.sum()), first_index(bad)
            assert index is not None
            neuron = Neuron(index, float(z.detach()[index]), math.nan)
        self._overflows.append((operation, count, neuron))

    def forget(self, operation: Operation) -> None:
        """Drop the last note of a layer that turned out to be one with its batch norm."""
        notes = [i for i, note in enumerate(self._overflows) if note[0].name == operation.name]
        if notes:
            del self._overflows[notes[-1]]

    def backward(self, passage: Passage) -> None:
        """Examine a layer."""
        if not self._denominators:
            record = outline(passage)
        else:
            noted = (n for o, _, n in self._overflows if o is passage.operation and n is not None)
            record = examine(passage, next((neuron.index for neuron in noted), None))
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
            if record is None and count:
                record = _unreached(operation)
            if record is None:
                continue
            if count:
                known = record.first_nonfinite or neuron
                record = replace(record, overflow=count, first_nonfinite=known)
            result.append((operation, record))
        return result + list(seen.items())


def _unreached(operation: Operation) -> LayerRecord:
    rule = operation.rule
    return LayerRecord(
        operation.name,
        operation.kind,
        repr(rule),
        "" if rule is None else repr(rule.stabilizer),
        operation.batch_norm,
        operation.shape,
        rule is not None,
        Flow(),
        Flow(),
        Shares(),
    )


class FlowProbe(Probe):
    """Sums up the relevance at one end of an operation without a rule.

    Args:
        name: Of the operation.
        at_input: Look at what it hands down.
    """

    def __init__(self, name: str, at_input: bool) -> None:
        super().__init__(name, at_input)
        self.first: Neuron | None = None  # value of the forward pass that is not finite
        self.restart()

    def start(self, values: Sequence[Tensor], was_tuple: bool) -> int:
        """Begin a use of the operation."""
        for value in (v.detach() for v in values):
            if (value.is_floating_point() or value.is_complex()) and not is_finite(value):
                bad = ~value.isfinite()
                index = first_index(bad)
                assert index is not None
                self.overflow += int(bad.sum())
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
        self.loudest: tuple[float, tuple[int, ...], float] | None = None
        self.bad: Input | None = None

    def seen(self, t: Tensor) -> Tensor:
        """Return a tensor as wide as sums need it."""
        return wide(t)

    def note(self, position: int, relevance: Tensor) -> None:
        """Add the relevance of one tensor."""
        flow = flow_of(relevance)
        self.flow += flow
        if flow.nonfinite and self.bad is None:
            index = first_index(~relevance.isfinite())
            assert index is not None
            self.bad = Input(index, math.nan, float(relevance[index]))
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
        and not (o.treatment in ("moved", "passed") and o.kind.lower() in _CONSERVING)
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
        return (
            None if known is None else replace(known, index=number_at(known.index, pairs, numbers))
        )

    return replace(
        record,
        shape=numbers,
        strongest=at(record.strongest),
        first_nonfinite=at(record.first_nonfinite),
        nonfinite_input=at(record.nonfinite_input),
    )


def _took_part(record: LayerRecord) -> bool:
    flows = record.received, record.handed_down
    return bool(record.overflow or any(flow.l1 or flow.nonfinite for flow in flows))


def _without_rule(
    operation: Operation, output: FlowProbe, given: FlowProbe, dtype: torch.dtype
) -> LayerRecord:
    received = output.flow
    strongest = None
    if given.loudest is not None:
        size, index, relevance = given.loudest
        strongest = Neuron(index, math.nan, relevance, handed_down=size)
    record = LayerRecord(
        operation.name,
        operation.kind,
        operation.fallback or operation.treatment,
        "",
        "",
        operation.shape,
        False,
        received,
        given.flow,
        Shares(),
        peak=given.flow.largest / received.l1 if received.l1 else None,
        overflow=0 if given.overflow else output.overflow,
        strongest=strongest,
        first_nonfinite=None if given.overflow else output.first,
        nonfinite_input=given.bad,
    )
    lost = received.total - given.flow.total
    return replace(record, shares=absorbed(operation, lost, record, dtype))
