r"""One layer in the backward pass, examined: its ledger, its denominators, its loudest neuron.

With the groups of a rule (see ``kernel``), the message :math:`m_k = R_k / s(d_k)`, the stabilized
denominators :math:`s(d)` and the biases :math:`β_g` of a group,

.. math::
    \sum_k R_k = \sum_g α_g \sum_k m_k (d_k - β_{gk}) + \sum_g α_g \sum_k m_k β_{gk}
    + \sum_g α_g \sum_k m_k (s(d_k) - d_k) + \Big(\sum_k R_k - \sum_g α_g \sum_k m_k s(d_k)\Big)

is what the layer hands down, what its bias absorbs, what its stabilizer absorbs, and what belongs
to outputs that the rule gives to nobody. One neuron alone hands down
:math:`\sum_g |α_g m_k| \sum_j |u_j w_{jk}|` in absolute value.

Source: Montavon et al. 2019, ch. 10.2.2 (what epsilon absorbs); Bach et
al. 2015, sec. 2.3 (biases).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.ledger.measuring import (
    first_index,
    flow_of,
    histogram_of,
    index_of_largest,
    is_finite,
    largest_of,
    total_of,
)
from captum_lrp_stab.ledger.records import Denominators, Flow, Input, LayerRecord, Neuron, Shares
from captum_lrp_stab.propagation.observer import Passage, wide
from captum_lrp_stab.rules import kernel
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.kernel import Division, Group, Message


@dataclass(frozen=True, eq=False)
class _Sent:
    """What one group sends down, in float32 or wider; tensors are shaped like the output."""

    share: float
    message: Tensor
    raw: Tensor  # the message in its own dtype, where it may overflow
    d: Tensor
    s: Tensor
    magnitude: Tensor  # sum of absolute contributions, without the bias
    bias: Tensor | None
    live: Tensor | None  # outputs that are divided for at all; None: all
    distributed: Tensor | None  # outputs whose relevance goes anywhere; None: all


def examine(passage: Passage, overflow: tuple[int, ...] | None = None) -> LayerRecord:
    """Return the record of one use of one layer.

    Args:
        passage: The layer.
        overflow: The first output that is not finite, if that is known from the forward pass.
    """
    received = passage.received()
    record = _outline(passage, received)
    with torch.no_grad():
        sent = _sent(passage)
        if sent is None:  # a rule with a backward pass of its own, of which nothing is known
            return replace(record, shares=_unexplained(record))
        return _completed(record, passage, received, sent, overflow)


def outline(passage: Passage) -> LayerRecord:
    """Return the record of a layer without its denominators, which cost most."""
    return _outline(passage, passage.received())


def _outline(passage: Passage, received: Tensor) -> LayerRecord:
    handed_down = passage.handed_down()
    operation = passage.operation
    rule = None if passage.site is None else passage.site.rule
    flows = Flow()
    for relevance in handed_down:
        flows += flow_of(relevance)
    bad = None
    if flows.nonfinite:
        found = ((i, first_index(~r.isfinite())) for i, r in enumerate(handed_down))
        position, index = next((i, at) for i, at in found if at is not None)
        x, relevance = passage.inputs[position], handed_down[position]
        bad = Input(index, float(x[index]), float(relevance[index]))
    return LayerRecord(
        operation.name,
        operation.kind,
        operation.treatment if rule is None else repr(rule),
        "" if rule is None else repr(rule.stabilizer),
        operation.batch_norm,
        tuple(passage.output.shape),
        rule is not None,
        flow_of(received),
        flows,
        Shares(),
        nonfinite_input=bad,
    )


def _unexplained(record: LayerRecord) -> Shares:
    return Shares(rule=record.received.total - record.handed_down.total)


def absorbed(operation: Operation, lost: float, record: LayerRecord, dtype: torch.dtype) -> Shares:
    """Return what an operation without a rule loses, by what absorbs it.

    Args:
        operation: The operation.
        lost: Relevance received less relevance handed down.
        record: With the flow at both ends.
        dtype: Of the pass.
    """
    if abs(lost) <= 64 * torch.finfo(dtype).eps * (record.received.l1 + record.handed_down.l1):
        return Shares(rounding=lost)
    if operation.fallback or operation.treatment.startswith("softmax"):
        return Shares(operation=lost)
    return Shares(bias=lost)  # of a sum with a constant, a normalisation, ...


def _sent(passage: Passage) -> list[_Sent] | None:
    if passage.site is None:
        return [_without_rule(passage)]
    if passage.messages is None:
        return None
    (x,) = passage.inputs
    return [_of_group(passage, group, passage.site.op, x, sent) for group, sent in passage.messages]


def _without_rule(passage: Passage) -> _Sent:
    """Return what an operation without a rule sends that divides, as + in relevance form."""
    assert passage.stabilized is not None and passage.magnitude is not None
    raw = passage.upstream / passage.stabilized
    magnitude = wide(passage.magnitude())
    d, s = wide(passage.z), wide(passage.stabilized)
    return _Sent(1.0, wide(raw), raw, d, s, magnitude, None, None, None)


def _of_group(passage: Passage, group: Group, op: Affine, x: Tensor, sent: Message) -> _Sent:
    z = passage.z
    # under some rules they are the same for all samples, and have one
    d, s = wide(sent.denominators).expand_as(z), wide(sent.stabilized).expand_as(z)
    bias: Tensor | None = None
    for term in group.terms:
        if term.bias is not None:
            offset = term.sign * wide(op.offset(term.bias, passage.z))
            bias = offset if bias is None else bias + offset
    if group.one_sign:
        magnitude = (d if bias is None else d - bias).abs()
    else:
        magnitude = _magnitude(group, op, x, d)
    distributed = live = None if sent.dead is None else ~sent.dead
    if passage.division is Division.COEFFICIENT:
        # an output of exactly 0 sends nothing, and is one of those to count
        live = passage.upstream != 0
        if group.outputs is kernel.Part.ALL and not group.one_sign:
            distributed = None  # what sends nothing has no relevance
        elif distributed is not None:
            live &= distributed | (passage.z == 0)
    raw = sent.values
    m = wide(raw) if passage.scale == 1 else wide(raw) / passage.scale
    return _Sent(group.share, m, raw, d, s, magnitude, bias, live, distributed)


def _magnitude(group: Group, op: Affine, x: Tensor, d: Tensor) -> Tensor:
    """Return the sum of absolute contributions to each output, without the bias."""
    total: Tensor | None = None
    for term in group.terms:
        if not term.part.is_empty(x):
            source, weight = wide(term.input(x)), wide(term.weight)
            with torch.autocast(x.device.type, enabled=False):  # sums would overflow in half
                size = op.magnitude(source, weight, None)
            total = size if total is None else total + size
    return torch.zeros_like(d) if total is None else total


def _completed(
    record: LayerRecord,
    passage: Passage,
    received: Tensor,
    sent: list[_Sent],
    overflow: tuple[int, ...] | None,
) -> LayerRecord:
    bias = stabilizer = explained = excess = 0.0
    emitted: Tensor | None = None
    gain: Tensor | None = None
    denominators: Denominators | None = None
    for group in sent:
        m = group.message
        if group.bias is not None:
            bias += group.share * total_of(m * group.bias)
        if passage.division is Division.REWRITTEN:
            explained += group.share * total_of(m * group.d)
        else:
            stabilizer += group.share * total_of(m * (group.s - group.d))
            if group.distributed is None:
                explained += group.share * record.received.total
            else:
                explained += group.share * total_of(received * group.distributed)
        size = _times(group.share, m.abs() * group.magnitude)
        emitted = size if emitted is None else emitted + size
        absolute, stabilized = group.d.abs(), group.s.abs()
        if group.live is not None:  # the others divide by infinity: they send nothing
            dead = ~group.live
            absolute.masked_fill_(dead, math.inf)
            stabilized.masked_fill_(dead, math.inf)
        factor = _times(group.share, group.magnitude / stabilized)
        gain = factor if gain is None else gain + factor
        found, added = _denominators(passage, group, absolute, stabilized, size)
        excess += added
        denominators = found if denominators is None else denominators + found
    shares = Shares(bias, stabilizer, record.received.total - explained)
    rest = record.received.total - record.handed_down.total - shares.total
    if passage.site is None:
        shares += absorbed(passage.operation, rest, record, passage.z.dtype)
    else:
        shares += Shares(rounding=rest)
    record = replace(record, shares=shares, denominators=denominators)
    if emitted is None or gain is None:
        return record
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
    return replace(
        record,
        gain=largest_of(gain),
        peak=None if loudest is None or not l1 else float(emitted[loudest]) / l1,
        excess=excess / l1 if l1 else 0.0,
        growth=growth,
        strongest=_neuron(grown or loudest, passage, received, sent, emitted),
        first_nonfinite=_neuron(bad, passage, received, sent, emitted),
    )


def _times(share: float, t: Tensor) -> Tensor:
    """Return a tensor times the size of a share, without a pass over it where that is 1."""
    return t if abs(share) == 1 else abs(share) * t


def _denominators(
    passage: Passage, group: _Sent, absolute: Tensor, stabilized: Tensor, size: Tensor
) -> tuple[Denominators, float]:
    """Return the denominators of a group, and what its stabilizer added to the L1 handed down.

    Args:
        passage: The layer.
        group: Likewise.
        absolute: Of the denominators, infinite where they are not used.
        stabilized: Likewise, of the stabilized ones.
        size: What each output hands down.
    """
    magnitude = group.magnitude if group.bias is None else group.magnitude + group.bias.abs()
    cancellation = magnitude / absolute
    rule = None if passage.site is None else passage.site.rule
    flipped = shrunk = 0
    excess = 0.0
    if rule is None or not rule.moves_away_from_0:
        closer = stabilized < absolute
        shrunk = int(closer.sum())
        turned = (group.s < 0) != (group.d < 0)
        flipped = int((turned if group.live is None else turned & group.live).sum())
    if shrunk:
        added = size[closer] * (1 - stabilized[closer] / absolute[closer])
        excess = total_of(added.nan_to_num(0.0, 0.0, 0.0))
    count = absolute.numel() if group.live is None else int(group.live.sum())
    unit_roundoff = torch.finfo(passage.z.dtype).eps / 2
    empty = not absolute.numel()
    found = Denominators(
        count,
        math.inf if empty else float(absolute.min()),
        absolute.numel() - int(torch.count_nonzero(absolute)),
        int((cancellation > 1 / unit_roundoff).sum()),
        flipped,
        shrunk,
        largest_of(cancellation) or 0.0,
        histogram_of(absolute),
        histogram_of(cancellation),
    )
    return found, excess


def _first_bad(passage: Passage, sent: list[_Sent]) -> tuple[int, ...] | None:
    """Return the first output that is not finite, or whose message is not."""
    tensors = [passage.output, *(group.raw for group in sent)]
    if all(map(is_finite, tensors)):
        return None
    bad = torch.stack([~t.isfinite() for t in tensors]).any(0)
    return first_index(bad)


def _overflowing(
    record: LayerRecord, passage: Passage, sent: list[_Sent]
) -> tuple[int, ...] | None:
    """Return the output whose message, though finite, is too large times the layer's weights."""
    if not record.handed_down.nonfinite or passage.site is None or passage.messages is None:
        return None
    op, (x,) = passage.site.op, passage.inputs
    ones = torch.ones_like(wide(x))
    total: Tensor | None = None
    for (group, _), one in zip(passage.messages, sent, strict=True):
        for term in group.terms:
            with torch.autocast(x.device.type, enabled=False):
                size = one.message.abs() * op.magnitude(ones, wide(term.weight), None)
            total = size if total is None else total + size
    return None if total is None else index_of_largest(total)


def _neuron(
    index: tuple[int, ...] | None,
    passage: Passage,
    received: Tensor,
    sent: list[_Sent],
    emitted: Tensor,
) -> Neuron | None:
    if index is None:
        return None
    z, relevance, handed_down = passage.z[index], received[index], emitted[index]
    neuron = Neuron(index, float(z), float(relevance), handed_down=float(handed_down))
    # of several groups, the one this output hands down most by
    sizes = [(abs(g.share) * g.message[index].abs() * g.magnitude[index]) for g in sent]
    if not sizes:
        return neuron
    group = sent[max(range(len(sent)), key=lambda i: _rank(float(sizes[i])))]
    exact = None
    rule = None if passage.site is None else passage.site.rule
    divides_by_nothing = not bool(group.raw[index].isfinite()) or bool(group.s[index] == 0)
    if rule is not None and divides_by_nothing:
        try:
            exact = float(rule.stabilize(group.d.double(), group.magnitude.double)[index])
        except Exception:  # a user's stabilizer need not know float64
            exact = None
    return replace(
        neuron,
        denominator=float(group.d[index]),
        stabilized=float(group.s[index]),
        magnitude=float(group.magnitude[index]),
        stabilized_in_float64=exact,
    )


def _rank(size: float) -> float:
    return math.inf if math.isnan(size) else size
