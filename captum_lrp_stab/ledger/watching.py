"""Watched attributions: the records of their layers, and their ledgers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.ledger.measuring import flow_of, total_of
from captum_lrp_stab.ledger.observing import Collector, probes_of, records_of
from captum_lrp_stab.ledger.records import Flow, LayerRecord, Ledger, ledger_of
from captum_lrp_stab.propagation.attribution import Propagation
from captum_lrp_stab.propagation.observer import wide
from captum_lrp_stab.task import Subject, run_each


@dataclass(frozen=True, eq=False)
class Watched:
    """What was seen of one attribution."""

    done: Propagation
    records: tuple[LayerRecord, ...]  # in order of execution
    ledger: Ledger


def watch(
    subject: Subject, operations: Sequence[Operation] | None = None, denominators: bool = True
) -> Watched:
    """Run a subject's attribution and look at every layer.

    Args:
        subject: What to attribute.
        operations: Those of the subject, if they are known.
        denominators: Look at denominators too, not at the flow of relevance alone.
    """
    seen: list[Watched] = []
    watch_each((subject,), seen.append, operations, denominators)
    return seen[0]


def watch_each(
    subjects: Sequence[Subject],
    each: Callable[[Watched], None],
    operations: Sequence[Operation] | None = None,
    denominators: bool = True,
) -> None:
    """Watch attributions that differ in their rules and forms alone, after one forward pass.

    Those in another form than the gradient form have a forward pass each.

    Args:
        subjects: What to attribute; see :func:`captum_lrp_stab.task.run_each`.
        each: Called with what was seen of each, in their order, before the next begins.
        operations: Those of the subjects, if they are known.
        denominators: Look at denominators too, not at the flow of relevance alone.
    """
    planned = subjects[0].operations() if operations is None else operations
    probes = probes_of(planned)
    collector = Collector(denominators)
    dtype = subjects[0].dtype

    def note(done: Propagation) -> None:
        records = records_of(collector, probes, done.operations, dtype)
        inputs = Flow()
        for relevance in done.relevances:
            inputs += flow_of(wide(relevance))
        each(Watched(done, records, ledger_of(total_of(done.score), inputs, records)))

    run_each(subjects, probes=tuple(probes), observer=collector, after=note)


def in_float64(subject: Subject, look: Callable[[Subject], Watched] = watch) -> Watched:
    """Watch the same attribution in float64, without autocast.

    Args:
        subject: What to attribute.
        look: How to watch it.

    Raises:
        ModelError: The model cannot be copied.
    """
    device = subject.inputs[0].device.type
    with torch.autocast(device, enabled=False):
        return look(subject.copied(torch.float64))


def amplification_of(records: Sequence[LayerRecord]) -> dict[str, float | None]:
    """Return how many times each layer amplifies the sum of absolute relevance, by name.

    In order of execution, without the operations that only move values (reshaping, concatenation);
    None where something is not finite.
    """
    return {
        record.name: None
        if record.received.nonfinite or record.handed_down.nonfinite
        else record.amplification
        for record in records
        if record.has_rule or record.rule != "moved"
    }
