r"""The kernel in gradient form, with few passes over memory.

It computes what ``kernel`` does, up to rounding, for the rules and stabilizers whose factor
:math:`z / s(d)` is finite wherever nothing is wrong, and leaves the others alone:

- no masks: a factor that is finite needs none. Where something is infinite after all, NaN arises,
  and the whole attribution is done again by ``kernel``.
- values are made in the memory of the denominators or in one buffer that all layers share, a block
  at a time, so that what is between lies in the cache.
- no half of a rule that is empty: for inputs that are not negative, and for outputs that a ReLU has
  cut off.
- denominators that follow from others are not computed: those of the gamma rule's two halves add
  up to a multiple of z (``Group.complement``), those of the zB rule are z and a constant.
- what several backward passes over one forward pass have in common is computed once (``Memo``).
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab import stabilizers
from captum_lrp_stab.affine import Affine
from captum_lrp_stab.blocks import Buffer, blocks, is_dense, like
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.kernel import Group, Part, Term, stabilized
from captum_lrp_stab.memo import Memo, formula
from captum_lrp_stab.rules import EpsilonRule, GammaRule, ZBoxRule


class Known(NamedTuple):
    """What is known of a layer without looking at it."""

    nonnegative: bool = False  # no element of x is negative
    cut: bool = False  # the coefficient is 0 wherever z is not positive
    rectified: bool = False  # so it is, and z itself is not negative


def coefficient(
    rule: Rule,
    op: Affine,
    x: Tensor,
    z: Tensor,
    c: Tensor,
    known: Known,
    buffer: Buffer,
    memo: Memo | None = None,
) -> Tensor | None:
    """Return what ``rule.coefficient(op, x, z, c)`` does, None if that must be asked.

    Args:
        rule: The rule.
        op: The layer's affine map.
        x: Its input.
        z: Its output.
        c: The coefficient of ``z``.
        known: Of x and z.
        buffer: Where values can be made.
        memo: Of the layer, where there is more than one backward pass.
    """
    if not rule.is_by_messages or {t.dtype for t in (op.weight, x, z)} != {c.dtype}:
        return None
    if not is_dense(z) or z.shape != c.shape or not (z.numel() and x.numel()):
        return None
    epsilon = rule.signed_epsilon(z.dtype)
    if epsilon is None and not _is_finite_at_0(rule):
        return None
    groups = rule.groups(op, x)
    terms = [term for group in groups for term in group.terms]
    if any(term.part is Part.NEGATIVE and term.bias is not None for term in terms):
        return None
    layer = _Layer(rule, op, x, z, like(c, z), known, buffer, memo, epsilon)
    if type(rule) is ZBoxRule:
        return layer.box(*groups)
    return layer.proportional(groups) if rule.proportional else None


def has_own_weights(rule: Rule) -> bool:
    """Return whether a rule sends everything through the layer's own weights."""
    own = type(rule).groups is EpsilonRule.groups and type(rule).stabilize is EpsilonRule.stabilize
    return own and rule.is_by_messages


class _Layer(NamedTuple):
    """One layer on its way through the backward pass."""

    rule: Rule
    op: Affine
    x: Tensor
    z: Tensor
    c: Tensor
    known: Known
    buffer: Buffer
    memo: Memo | None
    epsilon: float | None  # where the stabilizer is d + epsilon sign(d)

    # rules that are proportional to the input ----------------------------------------------------

    def proportional(self, groups: Sequence[Group]) -> Tensor | None:
        """Return the coefficient of x."""
        if self.epsilon == 0 and not all(self._is_own(group.terms) for group in groups):
            return None  # without a stabilizer, denominators of 0 are common
        needs_signs = any(term.part is not Part.ALL for g in groups for term in g.terms)
        nonnegative = needs_signs and (self.known.nonnegative or bool(self.x.amin() >= 0))
        if self._is_gamma() and not (nonnegative and self.known.cut):
            return self._gamma(nonnegative)
        total: Tensor | None = None
        previous: Tensor | None = None  # denominators, where the next group's follow from them
        for index, group in enumerate(groups):
            outputs = group.outputs
            if self.known.cut and outputs is not Part.ALL:
                if outputs is Part.NEGATIVE:
                    continue
                outputs = Part.ALL
            terms = _simplified(group.terms, nonnegative)
            if self.epsilon == 0:
                values: Tensor | None = self._passed(outputs)
            else:
                more = groups[index + 1 : index + 2]
                followed = bool(more) and more[0].complement is not None
                keep = followed and not self.known.cut
                d = self._denominators(index, group, terms, previous)
                previous = d if keep else None
                values = self._values(index, group, d, outputs, keep)
            if values is not None:
                total = _added(total, self._sent_down(terms, values), group.share)
        return torch.zeros_like(self.x) if total is None else total

    def _is_own(self, terms: Sequence[Term]) -> bool:
        """Return whether denominators are z."""
        (term, *more) = terms
        own = term.weights is self.op.weight and term.bias is self.op.bias
        return own and term.part is Part.ALL and not more and term.sign == 1

    def _passed(self, outputs: Part) -> Tensor | None:
        """Return c where z is not 0: LRP-0."""
        if self.known.rectified:
            return self.c
        out = self.buffer.like(self.z)
        compare = {Part.ALL: torch.ne, Part.POSITIVE: torch.gt, Part.NEGATIVE: torch.lt}[outputs]
        for z, c, o in blocks(self.z, self.c, out):
            compare(z, 0, out=o)
            o.mul_(c)
        return None if outputs is Part.NEGATIVE and not _has_values(out) else out

    def _denominators(
        self, index: int, group: Group, terms: Sequence[Term], previous: Tensor | None
    ) -> Tensor:
        if self._is_own(terms):
            return self.z
        known = self._recalled(index, whole=False)
        if known is not None:
            return known
        total: Tensor | None = None
        if previous is not None and group.complement is not None:
            total = torch.empty_like(previous)
            for z, p, o in blocks(self.z, previous, total):
                torch.mul(z, group.complement, out=o)
                o.sub_(p)
        else:
            for term in terms:
                d = self.op.apply(term.part.of(self.x), term.weight, term.bias)
                total = _added(total, d, term.sign)
        assert total is not None  # a group has at least one term
        return self._remembered(index, like(total, self.z), whole=False)

    def _values(
        self, index: int, group: Group, d: Tensor, outputs: Part, keep: bool
    ) -> Tensor | None:
        """Return ``c z / s(d)``, or None if it is 0 everywhere.

        Args:
            index: Of the group.
            group: Whose denominators ``d`` are.
            d: Overwritten unless it is z, or is to be kept.
            outputs: Which outputs take part.
            keep: Whether ``d`` is needed afterwards.
        """
        if self.memo is not None and self.memo.whole:
            factor = self._recalled(index, whole=True)
            if factor is None:
                factor = torch.empty_like(self.z)
                self._write_values(factor, group, d, outputs, weighted=False)
                self._remembered(index, factor, whole=True)
            out = torch.mul(factor, self.c, out=self.buffer.like(self.z))
            return out if outputs is not Part.NEGATIVE or _has_values(out) else None
        keep = keep or d is self.z or self.memo is not None
        out = self.buffer.like(self.z) if keep else d
        return out if self._write_values(out, group, d, outputs) else None

    def _write_values(
        self, out: Tensor, group: Group, d: Tensor, outputs: Part, weighted: bool = True
    ) -> bool:
        """Write ``c z / s(d)``, or without c, to ``out``; return whether it is 0 everywhere."""
        s = d
        if self.epsilon is None:
            s = stabilized(group, self.op, self.x, d, self.rule.stabilize)
        epsilon = torch.full((), self.epsilon or 0.0, dtype=d.dtype, device=d.device)
        some = False
        for z, c, d_, s_, o in blocks(self.z, self.c, d, s, out):
            one_sign = torch.ne(d_, 0, out=torch.empty_like(d_)) if group.one_sign else None
            if self.epsilon is None:
                divisor = s_
            elif d is self.z and self.known.rectified:
                divisor = torch.add(d_, self.epsilon, out=o)
            else:
                divisor = torch.copysign(epsilon, d_).add_(d_)
            if outputs is not Part.ALL:
                z = z.clamp(min=0) if outputs is Part.POSITIVE else z.clamp(max=0)
            torch.div(z, divisor, out=o)
            if one_sign is not None:
                o.mul_(one_sign)
            if weighted:
                o.mul_(c)
            some = some or outputs is not Part.NEGATIVE or _has_values(o)
        return some

    def _sent_down(self, terms: Sequence[Term], values: Tensor) -> Tensor:
        """Return what the terms of a group hand down."""
        parts: dict[Part, Tensor] = {}
        for term in terms:
            part = self.op.vjp(values, self.x, term.weight)
            parts[term.part] = _added(parts.get(term.part), part, term.sign)
        if Part.ALL in parts:
            return parts[Part.ALL]
        mask = torch.ge(self.x, 0, out=torch.empty_like(self.x))
        zero = torch.zeros((), dtype=mask.dtype, device=mask.device)
        positive, negative = (parts.get(p, zero) for p in (Part.POSITIVE, Part.NEGATIVE))
        return torch.lerp(negative, positive, mask)

    def _is_gamma(self) -> bool:
        rule, epsilon = self.rule, self.epsilon
        if type(rule) is not GammaRule or not rule.gamma or not epsilon:
            return False
        return rule.bias == "scaled" or self.op.bias is None

    def _gamma(self, nonnegative: bool) -> Tensor:
        r"""Return the coefficient of x under the gamma rule, for values of either sign.

        With :math:`M = \sum_j |x_j w_{jk}| + |b_k|` the denominators of both halves of the rule
        have one size, :math:`D = (1 + γ/2) |z| + γ/2\, M`, and the weights of both are made of w
        and :math:`|w|`, so that

        .. math:: c_j = (1 + γ/2) \sum_k w_{jk} \frac{c_k |z_k|}{D_k + ε}
            + \frac{γ}{2} \mathrm{sign}(x_j) \sum_k |w_{jk}| \frac{c_k z_k}{D_k + ε}.
        """
        assert isinstance(self.rule, GammaRule) and self.epsilon is not None
        op, x, half = self.op, self.x, self.rule.gamma / 2
        sizes = op.derived(f"{half} |w|", lambda: op.weight.abs().mul_(half))
        bias = None if op.bias is None else op.bias.abs().mul_(half)
        place = (formula(self.rule), "D", self.known)
        d = None if self.memo is None else self.memo.kept.get(place)
        if d is None:
            d = like(op.apply(x if nonnegative else x.abs(), sizes, bias), self.z)
            for z, d_ in blocks(self.z, d):
                d_.add_(z.abs(), alpha=1 + half)
            if self.memo is not None:
                self.memo.keep(place, d)
        signed = d if self.memo is None else torch.empty_like(d)
        unsigned = self.buffer.like(self.z)
        for z, c, d_, s, u in blocks(self.z, self.c, d, signed, unsigned):
            torch.add(d_, self.epsilon, out=s)
            torch.div(c, s, out=s)
            torch.abs(z, out=u)
            u.mul_(1 + half).mul_(s)
            s.mul_(z)
        total = op.vjp(unsigned, x, op.weight)
        part = op.vjp(signed, x, sizes)
        if nonnegative:
            return total.add_(part)
        for x_, t, p in blocks(like(x, total), total, like(part, total)):
            sign = torch.ge(x_, 0, out=torch.empty_like(x_)).mul_(2).sub_(1)
            t.addcmul_(p, sign)
        return total

    # the rule that puts constants in the place of the input --------------------------------------

    def box(self, group: Group) -> Tensor | None:
        """Return the relevance of x under the zB rule."""
        _, low, high = group.terms
        if not self.epsilon or low.constant is None or high.constant is None:
            return None
        d = self.z
        if self._recalled(0, whole=True) is None:
            d = torch.add(self.z, self._shift(low, high), out=self.buffer.like(self.z))
        values = self._values(0, group, d, Part.ALL, keep=False)
        assert values is not None  # unless the outputs of one sign alone take part
        x = self.x
        # w is the sum of its halves
        positive, negative = self.op.vjps(values, x, [low.weight, high.weight])
        return (x - low.constant).mul_(positive).addcmul_(x - high.constant, negative)

    def _shift(self, *terms: Term) -> Tensor:
        """Return the denominators less the layer's output: those of the constants, and no bias."""

        def make() -> Tensor:
            total: Tensor | None = None
            for t in terms:
                total = _added(total, self.op.apply(t.input(self.x), t.weight, None), t.sign)
            assert total is not None
            bias = self.op.bias
            return total if bias is None else total - self.op.offset(bias, self.z)

        given = [_contents(t.input(self.x)) for t in terms]
        if None in given:
            return make()
        return self.op.derived(("zB", *given, self.x.shape[1:]), make)

    # what other passes have computed -------------------------------------------------------------

    def _place(self, index: int) -> tuple[Hashable, ...]:
        # what is known of z may differ from target to target
        return formula(self.rule), index, self.known

    def _recalled(self, index: int, whole: bool) -> Tensor | None:
        if self.memo is None or self.memo.whole != whole:
            return None
        return self.memo.kept.get(self._place(index))

    def _remembered(self, index: int, value: Tensor, whole: bool) -> Tensor:
        if self.memo is not None and self.memo.whole == whole:
            self.memo.keep(self._place(index), value)
        return value


def _contents(constant: Tensor) -> Hashable:
    """Return the values of a constant that repeats a few, None of any other."""
    if constant.device.type != "cpu":  # asking would wait for the device
        return None
    few = constant[tuple(slice(0, 1 if step == 0 else None) for step in constant.stride())]
    return (*few.shape, *few.flatten().tolist()) if few.numel() <= 64 else None


def _simplified(terms: Sequence[Term], nonnegative: bool) -> Sequence[Term]:
    """Return the terms that take part for an input without negative elements."""
    if not nonnegative:
        return terms
    return [term._replace(part=Part.ALL) for term in terms if term.part is not Part.NEGATIVE]


def _added(total: Tensor | None, part: Tensor, factor: float) -> Tensor:
    """Return ``total + factor * part``, in the memory of one of them."""
    if total is not None:
        return total.add_(part, alpha=factor)
    return part if factor == 1 else part.mul_(factor)


def _is_finite_at_0(rule: Rule) -> bool:
    """Return whether the stabilizer of a rule leaves no denominator of 0 as it is."""
    if type(rule).stabilize not in (Rule.stabilize, EpsilonRule.stabilize):
        return False
    s = rule.stabilizer
    if type(s) is stabilizers.RootMeanSquare:
        return s.floor > 0
    if type(s) in (stabilizers.Signed, stabilizers.Additive, stabilizers.Clip):
        return s.epsilon > 0  # type: ignore[attr-defined, no-any-return]
    return type(s) is stabilizers.RoundingAware


def _has_values(t: Tensor) -> bool:
    """Return whether an element is not 0."""
    low, high = torch.aminmax(t)
    return not bool((low == 0) & (high == 0))
