r"""The kernel in gradient form, with few passes over memory.

It computes what ``kernel`` does, up to rounding, for the rules and stabilizers whose factor
:math:`z / s(d)` is finite wherever nothing is wrong, and leaves the others alone:

- no masks: a factor that is finite needs none. Where something is infinite after all, NaN arises,
  and the whole attribution is computed again by ``kernel``.
- values are computed in the memory of the denominators or in one buffer that all layers share, a
  block at a time, so that intermediate values stay in the cache.
- no half of a rule that is empty: for inputs that are not negative, and for outputs that a ReLU has
  cut off.
- no denominators that follow from z: see :meth:`_Layer.gamma` and :meth:`_Layer.box`.
- what several backward passes over one forward pass have in common is computed once
  (``factor_cache``).
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import captum_lrp_stab.stabilizers as stabilizers
from captum_lrp_stab.fast.factor_cache import Memo
from captum_lrp_stab.fast.parameter_cache import Derived
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.input_layer import ZBoxRule
from captum_lrp_stab.rules.kernel import Group, Part, Term, stabilized
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule
from captum_lrp_stab.tensors.blocks import Buffer, blocks, is_dense, like


class Known(NamedTuple):
    """What is known of a layer's values without reading them."""

    nonnegative: bool = False  # no element of x is negative
    cut: bool = False  # the coefficient is 0 wherever z is not positive
    rectified: bool = False  # so it is, and z itself is not negative


class Tools(NamedTuple):
    """The memory and the caches that a layer uses."""

    buffer: Buffer
    memo: Memo | None = None  # for other backward passes, where there are some
    store: Derived | None = None  # from call to call
    place: Hashable = ""  # the layer, in the store


def coefficient(
    rule: Rule,
    op: Affine,
    x: Tensor,
    z: Tensor,
    c: Tensor,
    known: Known,
    tools: Tools,
    y: Tensor | None = None,
) -> Tensor | None:
    r"""Return ``rule.coefficient(op, x, z, c)``, None where only that method can.

    Args:
        rule: The rule.
        op: The layer's affine map.
        x: Its input.
        z: Its output.
        c: The coefficient of ``z``.
        known: Of x and z.
        tools: Of the layer.
        y: The activation of z, with the sign of z, if ``c`` is the coefficient of that:
            :math:`c\, y / z` is that of z, and the factor becomes :math:`y / s(d)`.
    """
    if not rule.is_by_messages or {t.dtype for t in (op.weight, x, z)} != {c.dtype}:
        return None
    if not is_dense(z) or z.shape != c.shape or not (z.numel() and x.numel()):
        return None
    epsilon = _signed_epsilon(rule, z.dtype)
    if epsilon is None and not _is_finite_at_0(rule):
        return None
    top = z if y is None else like(y, z)
    layer = _Layer(rule, op, x, z, top, like(c, z), known, tools, epsilon)
    groups = rule.groups(op, x)
    if type(rule) is ZBoxRule:
        return layer.box(*groups)
    if not rule.proportional or not all(map(_is_usual, groups)):
        return None
    if epsilon == 0 and y is not None:
        return None
    if epsilon == 0 and not all(layer.is_own(group.terms) for group in groups):
        return None  # without a stabilizer, denominators of 0 are common
    signs_matter = any(term.part is not Part.ALL for group in groups for term in group.terms)
    nonnegative = signs_matter and (known.nonnegative or bool(x.amin() >= 0))
    if layer.has_gamma() and not (nonnegative and known.cut):
        return layer.gamma(nonnegative)
    return layer.proportional(groups, nonnegative)


def has_own_weights(rule: Rule) -> bool:
    """Return whether a rule has the layer's own weights in each term."""
    own = type(rule).groups is EpsilonRule.groups and type(rule).stabilize is EpsilonRule.stabilize
    return own and rule.is_by_messages


class _Layer(NamedTuple):
    """One layer on its way through the backward pass."""

    rule: Rule
    op: Affine
    x: Tensor
    z: Tensor
    top: Tensor  # the numerator of the factor: z, or its activation
    c: Tensor
    known: Known
    tools: Tools
    epsilon: float | None  # where the stabilizer is d + epsilon sign(d)

    # rules that are proportional to the input ----------------------------------------------------

    def proportional(self, groups: Sequence[Group], nonnegative: bool) -> Tensor:
        """Return the coefficient of x."""
        total: Tensor | None = None
        for index, group in enumerate(groups):
            outputs = group.outputs
            if self.known.cut and outputs is not Part.ALL:
                if outputs is Part.NEGATIVE:
                    continue
                outputs = Part.ALL
            terms = _simplified(group.terms) if nonnegative else group.terms
            if not terms:
                continue
            if self.epsilon == 0:
                values = self._passed(outputs)
            else:
                values = self._values(index, group, terms, outputs)
            if values is not None:
                total = _added(total, self._sent_down(terms, values), group.share)
        return torch.zeros_like(self.x) if total is None else total

    def is_own(self, terms: Sequence[Term]) -> bool:
        """Return whether denominators are z."""
        (term, *more) = terms
        own = term.weights is self.op.weight and term.bias is self.op.bias
        return own and term.part is Part.ALL and not more and term.sign == 1

    def _passed(self, outputs: Part) -> Tensor | None:
        """Return c where z is not 0: LRP-0."""
        if self.known.rectified:
            return self.c
        out = self.tools.buffer.like(self.z)
        compare = {Part.ALL: torch.ne, Part.POSITIVE: torch.gt, Part.NEGATIVE: torch.lt}[outputs]
        for z, c, o in blocks(self.z, self.c, out):
            compare(z, 0, out=o)
            o.mul_(c)
        return out if outputs is not Part.NEGATIVE or _has_values(out) else None

    def _values(
        self, index: int, group: Group, terms: Sequence[Term], outputs: Part
    ) -> Tensor | None:
        """Return ``c top / s(d)``, or None if it is 0 everywhere."""
        memo = self.tools.memo
        place = () if memo is None else self._place(memo, index)
        if memo is not None and memo.whole:
            factor = memo.kept.get(place)
            if factor is None:
                factor = torch.empty_like(self.z)
                self._write(factor, group, self._denominators(terms), outputs, weighted=False)
                memo.keep(place, factor)
            out = torch.mul(factor, self.c, out=self.tools.buffer.like(self.z))
            return out if outputs is not Part.NEGATIVE or _has_values(out) else None
        d = None if memo is None else memo.kept.get(place)
        if d is None:
            d = self._denominators(terms)
        if memo is not None and d is not self.z:
            memo.keep(place, d)
        out = self.tools.buffer.like(self.z) if d is self.z or memo is not None else d
        return out if self._write(out, group, d, outputs) else None

    def _denominators(self, terms: Sequence[Term]) -> Tensor:
        if self.is_own(terms):
            return self.z
        total: Tensor | None = None
        for term in terms:
            d = self.op.apply(term.part.of(self.x), term.weight, term.bias)
            total = _added(total, d, term.sign)
        assert total is not None  # there is a term
        return like(total, self.z)

    def _write(
        self, out: Tensor, group: Group, d: Tensor, outputs: Part, weighted: bool = True
    ) -> bool:
        """Write ``c top / s(d)``, or without c, to ``out``; return whether it has a value but 0."""
        s = d
        if self.epsilon is None:
            s = stabilized(group, self.op, self.x, d, self.rule.stabilize)
        epsilon = torch.full((), self.epsilon or 0.0, dtype=d.dtype, device=d.device)
        some = False
        for top, c, d_, s_, o in blocks(self.top, self.c, d, s, out):
            one_sign = torch.ne(d_, 0, out=torch.empty_like(d_)) if group.one_sign else None
            if self.epsilon is None:
                divisor = s_
            elif d is self.z and self.known.rectified:
                divisor = torch.add(d_, self.epsilon, out=o)
            else:
                divisor = torch.copysign(epsilon, d_).add_(d_)
            if outputs is not Part.ALL:
                top = top.clamp(min=0) if outputs is Part.POSITIVE else top.clamp(max=0)
            torch.div(top, divisor, out=o)
            if one_sign is not None:
                o.mul_(one_sign)
            if weighted:
                o.mul_(c)
            some = some or outputs is not Part.NEGATIVE or _has_values(o)
        return some

    def _sent_down(self, terms: Sequence[Term], values: Tensor) -> Tensor:
        """Return what the terms of a group propagate to x."""
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

    def _place(self, memo: Memo, what: Hashable) -> tuple[Hashable, ...]:
        # what is known of z may differ from target to target
        return memo.formula, what, self.known

    # two rules whose denominators follow from z --------------------------------------------------

    def has_gamma(self) -> bool:
        """Return whether :meth:`gamma` serves."""
        rule = self.rule
        if type(rule) is not GammaRule or not rule.gamma or not self.epsilon:
            return False
        return rule.bias == "scaled" or self.op.bias is None

    def gamma(self, nonnegative: bool) -> Tensor:
        r"""Return the coefficient of x under the gamma rule, for values of either sign.

        With :math:`M = \sum_j |x_j w_{jk}| + |b_k|` the denominators of both halves of the rule
        have one size, :math:`D = (1 + γ/2) |z| + γ/2\, M`, and the weights of both are made of w
        and :math:`|w|`, so that

        .. math:: c_j = (1 + γ/2) \sum_k w_{jk} \frac{c_k |z_k|}{D_k + ε}
            + \frac{γ}{2} \mathrm{sign}(x_j) \sum_k |w_{jk}| \frac{c_k z_k}{D_k + ε}.
        """
        assert isinstance(self.rule, GammaRule) and self.epsilon is not None
        op, x, memo, half = self.op, self.x, self.tools.memo, self.rule.gamma / 2
        sizes = op.weight.abs().mul_(half)
        d = None if memo is None else memo.kept.get(self._place(memo, "D"))
        if d is None:
            bias = None if op.bias is None else op.bias.abs().mul_(half)
            d = like(op.apply(x if nonnegative else x.abs(), sizes, bias), self.z)
            for z, d_ in blocks(self.z, d):
                d_.add_(z.abs(), alpha=1 + half)
            if memo is not None:
                memo.keep(self._place(memo, "D"), d)
        signed = d if memo is None else torch.empty_like(d)
        unsigned = self.tools.buffer.like(self.z)
        for top, c, d_, s, u in blocks(self.top, self.c, d, signed, unsigned):
            torch.add(d_, self.epsilon, out=s)
            torch.div(top, s, out=s)  # first: c / s may be rounded to 0
            s.mul_(c)
            torch.sign(top, out=u)
            u.mul_(1 + half).mul_(s)
        total = op.vjp(unsigned, x, op.weight)
        part = op.vjp(signed, x, sizes)
        if nonnegative:
            return total.add_(part)
        total, part = like(total, x), like(part, x)
        if not is_dense(x):
            return total.add_(torch.where(x >= 0, part, -part))
        for x_, t, p in blocks(x, total, part):
            sign = torch.ge(x_, 0, out=torch.empty_like(x_)).mul_(2).sub_(1)
            t.addcmul_(p, sign)
        return total

    def box(self, group: Group) -> Tensor | None:
        """Return the relevance of x under the zB rule.

        Its denominators are z and what the box's corners give, which is the same for every x; its
        weights w are the sum of their halves.
        """
        _, low, high = group.terms
        shift = self._shift(group) if self.epsilon else None
        if shift is None:
            return None
        memo, out = self.tools.memo, self.tools.buffer.like(self.z)
        if memo is None or not memo.whole:
            self._write(torch.add(self.z, shift, out=out), group, out, Part.ALL)
        else:
            factor = memo.kept.get(self._place(memo, 0))
            if factor is None:
                factor = torch.add(self.z, shift)
                self._write(factor, group, factor, Part.ALL, weighted=False)
                memo.keep(self._place(memo, 0), factor)
            torch.mul(factor, self.c, out=out)
        positive, negative = self.op.vjps(out, self.x, [low.weight, high.weight])
        relevance = torch.mul(self.x - low.input(self.x), positive)
        return relevance.addcmul_(self.x - high.input(self.x), negative)

    def _shift(self, group: Group) -> Tensor | None:
        """Return the zB rule's denominators minus z; None where rounding would show."""
        op, store = self.op, self.tools.store
        corners = [term for term in group.terms if term.constant is not None]
        values = [_without_repeats(term.input(self.x)) for term in corners]

        def make() -> Tensor:
            total: Tensor | None = None
            for term in corners:
                total = _added(total, op.apply(term.input(self.x), term.weight, None), term.sign)
            assert total is not None
            if op.bias is None:
                return total
            bias = op.offset(op.bias, self.z)
            # z less a large bias would be rounded off: NaN says so
            large = bias.abs().amax() > total.abs().amax()
            return (total - bias).masked_fill_(large, torch.nan)

        if store is None:
            shift = make()
        else:
            sources = (op.weight, *values) if op.bias is None else (op.weight, op.bias, *values)
            key = (self.tools.place, op.geometry, tuple(self.x.shape[1:]))
            shift = store.get(key, sources, make)
        return None if bool(shift.flatten()[0].isnan()) else shift


def _without_repeats(t: Tensor) -> Tensor:
    """Return a tensor without the copies of an expansion."""
    return t[tuple(slice(0, 1 if step == 0 else None) for step in t.stride())]


def _is_usual(group: Group) -> bool:
    """Return whether the terms of a group are for all inputs, or for those of one sign each."""
    parts = {term.part for term in group.terms}
    biased = any(term.part is Part.NEGATIVE and term.bias is not None for term in group.terms)
    constant = any(term.constant is not None for term in group.terms)
    return not biased and not constant and (Part.ALL not in parts or len(parts) == 1)


def _simplified(terms: Sequence[Term]) -> Sequence[Term]:
    """Return the terms that take part for an input without negative elements."""
    return [term._replace(part=Part.ALL) for term in terms if term.part is not Part.NEGATIVE]


def _added(total: Tensor | None, part: Tensor, factor: float) -> Tensor:
    """Return ``total + factor * part``, in the memory of one of them."""
    if total is not None:
        return total.add_(part, alpha=factor)
    return part if factor == 1 else part.mul_(factor)


def _signed_epsilon(rule: Rule, dtype: torch.dtype) -> float | None:
    """Return e where a rule's denominators become ``d + e * sign(d)``, None elsewhere."""
    epsilon = stabilizers.signed_epsilon(rule.stabilizer, dtype)
    if type(rule).stabilize is Rule.stabilize or epsilon is None:
        return epsilon
    if type(rule).stabilize is EpsilonRule.stabilize and isinstance(rule, EpsilonRule):
        own = stabilizers.signed_epsilon(rule.shift, dtype)
        return None if own is None else own + epsilon
    return None


def _is_finite_at_0(rule: Rule) -> bool:
    """Return whether the stabilizer of a rule leaves no denominator of 0 as it is."""
    if type(rule).stabilize not in (Rule.stabilize, EpsilonRule.stabilize):
        return False
    s = rule.stabilizer
    if type(s) is stabilizers.RootMeanSquare:
        return s.floor > 0
    if type(s) in (stabilizers.Signed, stabilizers.Additive, stabilizers.Clip):
        return s.epsilon > 0  # type: ignore[attr-defined, no-any-return]
    return False


def _has_values(t: Tensor) -> bool:
    """Return whether an element is not 0."""
    low, high = torch.aminmax(t)
    return not bool((low == 0) & (high == 0))
