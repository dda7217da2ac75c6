r"""The one kernel behind every rule, in relevance form and in gradient form.

A rule turns an affine layer into :class:`Group` s of :class:`Term` s. With :math:`u_t` the input of
term t (x, its positive or negative part, or a constant such as a box bound), :math:`w_t, b_t` its
weights and :math:`σ_t` its sign, a group has the denominators

.. math:: d_g = \sum_{t \in g} σ_t f(u_t; w_t, b_t)

and the kernel computes, s being the stabilizer and :math:`α_g` the group's share,

.. math::
    R_{in} = \sum_g α_g \sum_{t \in g} σ_t u_t \odot J_{w_t}^T \frac{R}{s(d_g)}
    \qquad\text{(relevance form)}

    c_{in} = \sum_g α_g \sum_{t \in g} σ_t [u_t \ne 0] \odot J_{w_t}^T \frac{c\,z}{s(d_g)}
    \qquad\text{(gradient form, } R = z c, R_{in} = x c_{in})

The gradient form needs every :math:`u_t` to be x where it is not 0 (``Term.constant`` is None).
There :math:`z / s(d_g)` is bounded for any sensible stabilizer, 0/0 counts as 0, and a coefficient
that is exactly 0 stays 0 whatever it is multiplied by.

Source: Montavon et al. 2019, ch. 10.2.2 and 10.3, Algorithm 8 in gradient form.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab.rules.affine import Affine

Stabilize = Callable[[Tensor, Callable[[], Tensor]], Tensor]
"""From denominators, and a function that computes their magnitude, to stabilized denominators."""


class Part(Enum):
    """Which elements of a tensor take part, by their sign."""

    ALL = "all"
    POSITIVE = "positive"
    NEGATIVE = "negative"

    def of(self, x: Tensor) -> Tensor:
        """Return ``x`` with the other elements set to 0."""
        if self is Part.ALL:
            return x
        return x.clamp(min=0) if self is Part.POSITIVE else x.clamp(max=0)

    def is_empty(self, x: Tensor) -> bool:
        """Return whether no element of ``x`` takes part."""
        if self is Part.ALL:
            return False
        return not bool((x > 0 if self is Part.POSITIVE else x < 0).any())


class Term(NamedTuple):
    """One pass of an input through the layer with a rule's weights."""

    weights: Tensor | Callable[[], Tensor]  # a function, called if they are needed
    bias: Tensor | None
    part: Part = Part.ALL
    constant: Tensor | None = None  # stands for x: box bounds, ones; batch dimension 1
    sign: float = 1.0

    @property
    def weight(self) -> Tensor:
        """The weights, shaped like the layer's."""
        return self.weights if isinstance(self.weights, Tensor) else self.weights()

    def input(self, x: Tensor) -> Tensor:
        """Return the term's input to the layer, :math:`u_t`."""
        return self.part.of(x) if self.constant is None else self.constant


class Group(NamedTuple):
    """Terms that share a denominator, for the outputs z of one sign."""

    terms: tuple[Term, ...]
    share: float = 1.0
    outputs: Part = Part.ALL
    one_sign: bool = False  # all contributions have one sign: where their sum is 0, so are all


def denominators(group: Group, op: Affine, x: Tensor, z: Tensor) -> Tensor:
    """Return the group's denominators, shaped like ``z``, taking ``z`` itself where it serves."""
    total: Tensor | None = None
    for term in group.terms:
        if term.weights is op.weight and term.bias is op.bias and term.input(x) is x:
            d = z
        elif term.bias is None and term.part.is_empty(x):
            continue
        else:
            source = term.input(x).to(term.weight.dtype)  # under autocast they differ
            d = op.apply(source, term.weight, term.bias)
        total = term.sign * d if total is None else total + term.sign * d
    if total is None:
        return torch.zeros_like(z)
    return total if total.dtype == z.dtype else total.to(z.dtype)


def stabilized(group: Group, op: Affine, x: Tensor, d: Tensor, stabilize: Stabilize) -> Tensor:
    """Return the group's stabilized denominators ``s(d)``, shaped like ``d``."""

    def magnitude() -> Tensor:
        sums = [op.magnitude(term.input(x), term.weight, term.bias) for term in group.terms]
        return torch.stack([m.expand_as(d) for m in sums]).sum(0)

    return stabilize(d, magnitude)


class Division(Enum):
    """How a form divides by the stabilized denominators."""

    COEFFICIENT = "c z / s(d), where 0/0 is 0"
    PROTECTED = "R / s(d), where 0/0 is 0"
    BARE = "R / s(d)"
    REWRITTEN = "c [z / s(d)]"  # the factor is part of the forward pass


class Message(NamedTuple):
    """What a group propagates through its weights: a value for each output."""

    values: Tensor
    denominators: Tensor
    stabilized: Tensor
    dead: Tensor | None  # outputs that propagate nothing, whatever they receive; None: none


def message(
    group: Group,
    op: Affine,
    x: Tensor,
    z: Tensor,
    carried: Tensor,
    stabilize: Stabilize,
    division: Division,
) -> Message | None:
    """Return what the group propagates of ``carried``, the coefficient or relevance of ``z``.

    None where it is known to be 0 everywhere. As a coefficient it is 0 where ``c`` or ``z`` is 0,
    and where the denominator is 0 because all contributions are: 0/0 is 0.
    """
    dead: Tensor | None = None
    if division is Division.COEFFICIENT:
        dead = (carried == 0) | (z == 0)
    if group.outputs is not Part.ALL:
        others = ~(z > 0 if group.outputs is Part.POSITIVE else z < 0)
        dead = others if dead is None else dead | others
        if division is Division.COEFFICIENT and bool(dead.all()):
            return None
    d = denominators(group, op, x, z)
    if group.one_sign and division is Division.COEFFICIENT:
        dead = d == 0 if dead is None else dead | (d == 0)
    s = stabilized(group, op, x, d, stabilize)
    if division is Division.PROTECTED:
        nothing = (carried == 0) | (s == 0)
        dead = nothing if dead is None else dead | nothing
    by_ratio = division in (Division.COEFFICIENT, Division.REWRITTEN)
    values = carried * (z / s) if by_ratio else carried / s
    return Message(values if dead is None else values.masked_fill(dead, 0), d, s, dead)


Sent = tuple[Group, Message]


def messages(
    groups: Iterable[Group],
    op: Affine,
    x: Tensor,
    z: Tensor,
    carried: Tensor,
    stabilize: Stabilize,
    division: Division,
) -> Iterator[Sent]:
    """Yield each group with its message, without those that propagate nothing."""
    for group in groups:
        sent = message(group, op, x, z, carried, stabilize, division)
        if sent is not None:
            yield group, sent


def relevance(sent: Iterable[Sent], op: Affine, x: Tensor) -> Tensor:
    """Return the relevance of ``x`` from the messages of its layer (relevance form)."""
    total = torch.zeros_like(x)
    for group, message in sent:
        for term in group.terms:
            share = group.share * term.sign
            total = total + share * term.input(x) * op.vjp(message.values, x, term.weight)
    return total


def coefficient(sent: Iterable[Sent], op: Affine, x: Tensor) -> Tensor:
    """Return the coefficient of ``x`` from the messages of its layer (gradient form).

    Where a term has a constant in the place of x there is no coefficient, and the sum is relevance
    instead: a rule has either no constants or is treated as a whole in that way.
    """
    total: Tensor | None = None
    for group, message in sent:
        direct = any(term.constant is not None for term in group.terms)
        for term in group.terms:
            if term.part.is_empty(x):
                continue
            part = op.vjp(message.values, x, term.weight)
            if direct:
                part = part * term.input(x)
            elif term.part is Part.POSITIVE and not Part.NEGATIVE.is_empty(x):
                part = torch.where(x >= 0, part, torch.zeros_like(part))
            elif term.part is Part.NEGATIVE:
                part = torch.where(x < 0, part, torch.zeros_like(part))
            share = group.share * term.sign
            part = part if share == 1 else share * part
            total = part if total is None else total + part
    return torch.zeros_like(x) if total is None else total
