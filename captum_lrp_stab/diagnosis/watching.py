"""One watched attribution: the records of its layers, and its ledger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from captum_lrp_stab.comparison.subject import Subject
from captum_lrp_stab.diagnosis.ledger import Ledger, ledger_of
from captum_lrp_stab.diagnosis.measuring import flow_of, total_of
from captum_lrp_stab.diagnosis.observing import Collector, probes_of, records_of
from captum_lrp_stab.diagnosis.records import Flow, LayerRecord
from captum_lrp_stab.observation import wide
from captum_lrp_stab.propagation import Propagation, propagate
from captum_lrp_stab.sites import Operation


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
    planned = subject.operations() if operations is None else operations
    probes = probes_of(planned)
    collector = Collector(denominators)
    done = propagate(
        subject.model,
        subject.inputs,
        subject.target,
        subject.additional_forward_args,
        rule_set=subject.rule_set(),
        probes=tuple(probes),
        observer=collector,
        form=subject.form,
    )
    records = records_of(collector, probes, done.operations, subject.dtype)
    inputs = Flow()
    for relevance in done.relevances:
        inputs += flow_of(wide(relevance))
    return Watched(done, records, ledger_of(total_of(done.score), inputs, records))


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
