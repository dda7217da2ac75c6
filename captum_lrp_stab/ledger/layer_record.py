r"""The record of one layer in the backward pass: its ledger, its denominators, its loudest neuron.

With the groups of a rule (see ``kernel``), the message :math:`m_k = R_k / s(d_k)`, the stabilized
denominators :math:`s(d)` and the biases :math:`β_g` of a group,

.. math::
    \sum_k R_k = \sum_g α_g \sum_k m_k (d_k - β_{gk}) + \sum_g α_g \sum_k m_k β_{gk}
    + \sum_g α_g \sum_k m_k (s(d_k) - d_k) + \Big(\sum_k R_k - \sum_g α_g \sum_k m_k s(d_k)\Big)

is what the layer redistributes to its inputs, what its bias absorbs, what its stabilizer absorbs,
and the relevance of outputs that the rule gives to no input. One neuron alone redistributes
:math:`\sum_g |α_g m_k| \sum_j |u_j w_{jk}|` in absolute value.

Source: Montavon et al. 2019, ch. 10.2.2 (epsilon); Bach et al. 2015, sec. 2.3 (biases).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation, Treatment
from captum_lrp_stab.ledger.measuring import (
    Index,
    first_index,
    flow_of,
    histogram_of,
    index_of_largest,
    is_finite,
    nonfinite,
    total_of,
)
from captum_lrp_stab.ledger.records import Denominators, Flow, Input, LayerRecord, Neuron, Shares
from captum_lrp_stab.propagation.observer import Passage, wide
from captum_lrp_stab.rules import kernel
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.kernel import Division, Group, Message


def record_of(operation: Operation, rule: Rule | None, **known: Any) -> LayerRecord:
    """Return the record of an operation with its name, its rule and whatever else is known."""
    in_words = operation.fallback or operation.treatment_in_words
    return LayerRecord(
        operation.name,
        operation.kind,
        in_words if rule is None else repr(rule),
        "" if rule is None else repr(rule.stabilizer),
        operation.batch_norm,
        has_rule=rule is not None,
        **{"shape": operation.shape} | known,
    )


def outline(passage: Passage) -> LayerRecord:
    """Return the record of a layer without its denominators, which cost most."""
    return _outline(passage, flow_of(passage.received()))


def _outline(passage: Passage, received: Flow) -> LayerRecord:
    flows, bad = Flow(), None
    for x, relevance in zip(passage.inputs, passage.handed_down(), strict=True):
        flows += flow_of(relevance)
        if bad is None and (found := nonfinite(relevance)):
            index = found[1]
            bad = Input(index, float(x[index]), float(relevance[index]))
    return record_of(
        passage.operation,
        None if passage.use is None else passage.use.rule,
        shape=tuple(passage.output.shape),
        received=received,
        propagated=flows,
        nonfinite_input=bad,
    )


def examine(passage: Passage, overflow: Index | None = None) -> LayerRecord:
    """Return the record of one use of one layer.

    Args:
        passage: The layer.
        overflow: The first output that is not finite, if that is known from the forward pass.
    """
    received = passage.received()
    record = _outline(passage, flow_of(received))
    with torch.no_grad():
        sent = _sent(passage)
        if sent is None:  # a rule with a backward pass of its own, of which nothing is known
            lost = record.received.total - record.propagated.total
            return replace(record, shares=Shares(rule=lost))
        record = replace(record, shares=_shares(record, passage, received, sent))
        return _with_neurons(record, passage, received, sent, overflow) if sent else record


def absorbed(operation: Operation, lost: float, record: LayerRecord, dtype: torch.dtype) -> Shares:
    """Return what an operation without a rule loses, by what absorbs it.

    Args:
        operation: The operation.
        lost: Relevance received less relevance redistributed.
        record: With the flow at both ends.
        dtype: Of the pass.
    """
    if abs(lost) <= 64 * torch.finfo(dtype).eps * (record.received.l1 + record.propagated.l1):
        return Shares(rounding=lost)
    if operation.fallback or operation.treatment is Treatment.SOFTMAX:
        return Shares(operation=lost)
    return Shares(bias=lost)  # of a sum with a constant, a normalisation, ...


@dataclass(frozen=True, eq=False)
class _Sent:
    """What one group sends down, in float32 or wider; tensors are shaped like the output."""

    share: float
    message: Tensor
    raw: Tensor  # the message in its own dtype, where it may overflow
    d: Tensor
    s: Tensor
    magnitude: Tensor  # sum of absolute contributions, without the bias
    bias: Tensor | None = None
    live: Tensor | None = None  # outputs that are divided for at all; None: all
    distributed: Tensor | None = None  # outputs whose relevance goes anywhere; None: all

    @cached_property
    def size(self) -> Tensor:
        """The absolute sum that each output redistributes."""
        size = self.message.abs() * self.magnitude
        return size if abs(self.share) == 1 else abs(self.share) * size


def _sent(passage: Passage) -> list[_Sent] | None:
    if passage.use is not None:
        if passage.messages is None:
            return None
        op, (x,) = passage.use.op, passage.inputs
        return [_of_group(passage, group, op, x, sent) for group, sent in passage.messages]
    # an operation without a rule that divides, as + in relevance form
    assert passage.stabilized is not None and passage.magnitude is not None
    raw = passage.upstream / passage.stabilized
    d, s = wide(passage.z), wide(passage.stabilized)
    return [_Sent(1.0, wide(raw), raw, d, s, wide(passage.magnitude()))]


def _of_group(passage: Passage, group: Group, op: Affine, x: Tensor, sent: Message) -> _Sent:
    z = passage.z
    # under some rules they are the same for all samples, and have one
    d, s = wide(sent.denominators).expand_as(z), wide(sent.stabilized).expand_as(z)
    offsets = [t.sign * wide(op.offset(t.bias, z)) for t in group.terms if t.bias is not None]
    bias: Tensor | None = sum(offsets[1:], offsets[0]) if offsets else None
    if group.one_sign:
        magnitude = (d if bias is None else d - bias).abs()
    else:
        terms = (term for term in group.terms if not term.part.is_empty(x))
        sizes = [_sizes(op, wide(term.input(x)), wide(term.weight)) for term in terms]
        magnitude = sum(sizes[1:], sizes[0]) if sizes else torch.zeros_like(d)
    distributed = live = None if sent.dead is None else ~sent.dead
    if passage.division is Division.COEFFICIENT:
        # an output of exactly 0 sends nothing, and is one of those to count
        live = passage.upstream != 0
        if group.outputs is kernel.Part.ALL and not group.one_sign:
            distributed = None  # what sends nothing has no relevance
        elif distributed is not None:
            live &= distributed | (z == 0)
    raw = sent.values
    message = wide(raw) if passage.scale == 1 else wide(raw) / passage.scale
    return _Sent(group.share, message, raw, d, s, magnitude, bias, live, distributed)


def _sizes(op: Affine, x: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of absolute contributions to each output, without the bias."""
    with torch.autocast(x.device.type, enabled=False):  # sums would overflow in half
        return op.magnitude(x, weight, None)


def _shares(
    record: LayerRecord, passage: Passage, received: Tensor, sent: Sequence[_Sent]
) -> Shares:
    """Return what absorbs the relevance that a layer does not redistribute."""
    bias = stabilizer = explained = 0.0
    for group in sent:
        m = group.message
        if group.bias is not None:
            bias += group.share * total_of(m * group.bias)
        if passage.division is Division.REWRITTEN:
            explained += group.share * total_of(m * group.d)
            continue
        stabilizer += group.share * total_of(m * (group.s - group.d))
        if group.distributed is None:
            explained += group.share * record.received.total
        else:
            explained += group.share * total_of(received * group.distributed)
    shares = Shares(bias, stabilizer, record.received.total - explained)
    rest = record.received.total - record.propagated.total - shares.total
    if passage.use is None:
        return shares + absorbed(passage.operation, rest, record, passage.z.dtype)
    return shares + Shares(rounding=rest)


def _with_neurons(
    record: LayerRecord,
    passage: Passage,
    received: Tensor,
    sent: Sequence[_Sent],
    overflow: Index | None,
) -> LayerRecord:
    """Return the record with its denominators, and with the neurons that stand out."""
    (denominators, excess), *others = (_denominators(passage, group) for group in sent)
    for more, added in others:
        denominators, excess = denominators + more, excess + added
    emitted = sum((group.size for group in sent[1:]), sent[0].size)
    l1 = record.received.l1
    growth, grown = 1.0, None
    if passage.division is Division.REWRITTEN:
        before, after = wide(passage.z).abs(), wide(passage.output).abs()
        below = total_of(before)
        growth = total_of(after) / below if below else 1.0
        rounding = math.sqrt(torch.finfo(passage.z.dtype).eps)  # by so much a sum does not grow
        grown = index_of_largest(after - before) if growth > 1 + rounding else None
    loudest = index_of_largest(emitted)
    bad = overflow or _first_bad(passage, sent) or _overflowing(record, passage, sent)
    strongest, first_nonfinite = (
        None if at is None else _neuron(at, passage, received, sent, emitted)
        for at in (grown or loudest, bad)
    )
    return replace(
        record,
        peak=None if loudest is None or not l1 else float(emitted[loudest]) / l1,
        excess=excess / l1 if l1 else 0.0,
        growth=growth,
        denominators=denominators,
        strongest=strongest,
        first_nonfinite=first_nonfinite,
    )


def _denominators(passage: Passage, group: _Sent) -> tuple[Denominators, float]:
    """Return the denominators of a group, and what its stabilizer added to the L1 norm sent."""
    absolute, stabilized, count = group.d.abs(), group.s.abs(), group.d.numel()
    if group.live is not None:  # the others divide by infinity: they send nothing
        absolute.masked_fill_(~group.live, math.inf)
        stabilized.masked_fill_(~group.live, math.inf)
        count = int(group.live.sum())
    magnitude = group.magnitude if group.bias is None else group.magnitude + group.bias.abs()
    cancellation = magnitude / absolute
    rule = None if passage.use is None else passage.use.rule
    flipped = shrunk = 0
    excess = 0.0
    if rule is None or not rule.moves_away_from_0:
        closer = stabilized < absolute
        shrunk = int(closer.sum())
        turned = (group.s < 0) != (group.d < 0)
        flipped = int((turned if group.live is None else turned & group.live).sum())
    if shrunk:
        added = group.size[closer] * (1 - stabilized[closer] / absolute[closer])
        excess = total_of(added.nan_to_num(0.0, 0.0, 0.0))
    unit_roundoff = torch.finfo(passage.z.dtype).eps / 2
    found = Denominators(
        count,
        float(absolute.min()) if absolute.numel() else math.inf,
        absolute.numel() - int(torch.count_nonzero(absolute)),
        int((cancellation > 1 / unit_roundoff).sum()),
        flipped,
        shrunk,
        histogram_of(absolute),
        histogram_of(cancellation),
    )
    return found, excess


def _first_bad(passage: Passage, sent: Sequence[_Sent]) -> Index | None:
    """Return the first output that is not finite, or whose message is not."""
    tensors = [passage.output, *(group.raw for group in sent)]
    if all(map(is_finite, tensors)):
        return None
    return first_index(torch.stack([~t.isfinite() for t in tensors]).any(0))


def _overflowing(record: LayerRecord, passage: Passage, sent: Sequence[_Sent]) -> Index | None:
    """Return the output whose message, though finite, is too large times the layer's weights."""
    if not record.propagated.nonfinite or passage.use is None or passage.messages is None:
        return None
    op, ones = passage.use.op, torch.ones_like(wide(passage.inputs[0]))
    total = torch.zeros_like(sent[0].message)
    for (group, _), one in zip(passage.messages, sent, strict=True):
        for term in group.terms:
            total = total + one.message.abs() * _sizes(op, ones, wide(term.weight))
    return index_of_largest(total)


def _neuron(
    index: Index, passage: Passage, received: Tensor, sent: Sequence[_Sent], emitted: Tensor
) -> Neuron:
    def rank(group: _Sent) -> float:
        size = float(abs(group.share) * group.message[index].abs() * group.magnitude[index])
        return math.inf if math.isnan(size) else size

    group = max(sent, key=rank)  # the one that most of what this output sends is sent by
    rule = None if passage.use is None else passage.use.rule
    divides_by_nothing = not bool(group.raw[index].isfinite()) or bool(group.s[index] == 0)
    exact = None
    if rule is not None and divides_by_nothing:
        try:
            exact = float(rule.stabilize(group.d.double(), group.magnitude.double)[index])
        except Exception:  # a user's stabilizer need not know float64
            exact = None
    return Neuron(
        index,
        float(passage.z[index]),
        float(received[index]),
        float(group.d[index]),
        float(group.s[index]),
        float(group.magnitude[index]),
        float(emitted[index]),
        exact,
    )
