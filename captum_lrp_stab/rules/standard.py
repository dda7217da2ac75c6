r"""The propagation rules: parameters and formulas, nothing else; ``input_layer`` has the others.

Notation as in the papers: x the layer's input, w and b its weights and bias,
:math:`z_k = \sum_j x_j w_{jk} + b_k`, :math:`v^+ = \max(v, 0)`, :math:`v^- = \min(v, 0)`, s the
stabilizer. Every rule works in stock ``captum.attr.LRP`` and in :class:`captum_lrp_stab.LRP`.
"""

import math
import numbers
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.kernel import Group, Part, Term
from captum_lrp_stab.stabilizers import Additive, Identity, Signed, StabilizerLike
from captum_lrp_stab.tensors.step import Backward

__all__ = [
    "Affine",
    "AlphaBetaRule",
    "EpsilonRule",
    "GammaRule",
    "Group",
    "Part",
    "PassRule",
    "Rule",
    "Term",
    "ZPlusRule",
    "ZeroRule",
]


class EpsilonRule(Rule):
    r"""Redistribute relevance with the epsilon rule.

    .. math:: R_j = \sum_k \frac{x_j w_{jk}}{s(z_k + ε\,\mathrm{sign}(z_k))} R_k

    Args:
        epsilon: :math:`ε \ge 0`, absorbs relevance where :math:`|z|` is small.
        signed: Add epsilon with the sign of z (sign(0) = +1), or as it is: :math:`z + ε`.
        stabilizer: Applied to the result; None for nothing more.

    Raises:
        RuleError: ``epsilon`` is negative or not finite.

    Source: Bach et al. 2015, eq. 58; Montavon et al. 2019, ch. 10.2.2.
    """

    def __init__(
        self,
        epsilon: float = 1e-6,
        signed: bool = True,
        stabilizer: StabilizerLike | None = None,
    ) -> None:
        super().__init__(Identity() if stabilizer is None else stabilizer)
        self.epsilon = _non_negative("EpsilonRule", "epsilon", epsilon)
        self.signed = signed
        self.shift = Signed(epsilon) if signed else Additive(epsilon)

    @property
    def moves_away_from_0(self) -> bool:
        """Whether no denominator ever comes nearer to 0 by epsilon or the stabilizer."""
        return super().moves_away_from_0 and (self.signed or not self.epsilon)

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return one group with the layer's own weights."""
        return (Group((Term(op.weight, op.bias),)),)

    def stabilize(self, z: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
        """Return ``stabilizer(z + epsilon)``."""
        return super().stabilize(self.shift(z) if self.epsilon else z, magnitude)


class ZeroRule(EpsilonRule):
    r"""Redistribute relevance in proportion to the contributions: LRP-0.

    .. math:: R_j = \sum_k \frac{x_j w_{jk}}{s(z_k)} R_k

    Without a stabilizer, the default, stock Captum divides by zero where z is 0;
    :class:`captum_lrp_stab.LRP` does not (0/0 is 0 in gradient form).

    Source: Bach et al. 2015, eq. 56; Montavon et al. 2019, ch. 10.2.1.
    """

    def __init__(self, stabilizer: StabilizerLike | None = None) -> None:
        super().__init__(epsilon=0.0, stabilizer=stabilizer)


class GammaRule(Rule):
    r"""Favour contributions of the sign of the output with the generalized gamma rule.

    For outputs :math:`z_k > 0`, with :math:`w^{\pmγ} = w + γ w^\pm`,

    .. math::
        R_j = \sum_k \frac{x_j^+ w_{jk}^{+γ} + x_j^- w_{jk}^{-γ}}
        {s(\sum_j (x_j^+ w_{jk}^{+γ} + x_j^- w_{jk}^{-γ}) + b_k^{+γ})} R_k

    and for :math:`z_k < 0` with the signs exchanged. For inputs that are not negative this is the
    gamma rule of Montavon et al.

    Args:
        gamma: :math:`γ \ge 0`.
        stabilizer: See :class:`Rule`.
        bias: ``"scaled"`` gives the bias the same treatment as the weights (zennit), ``"captum"``
            leaves it as it is.

    Raises:
        RuleError: ``gamma`` is negative or not finite, or ``bias`` is none of the two.

    Source: Montavon et al. 2019, ch. 10.2.3; Andéol et al. 2021 for signed inputs.
    """

    def __init__(
        self,
        gamma: float = 0.25,
        stabilizer: StabilizerLike = 1e-6,
        bias: Literal["scaled", "captum"] = "scaled",
    ) -> None:
        super().__init__(stabilizer)
        self.gamma = _non_negative("GammaRule", "gamma", gamma)
        if bias not in ("scaled", "captum"):
            raise RuleError(f"GammaRule: bias is {bias!r}; give 'scaled' or 'captum'")
        self.bias = bias

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return a group for positive and one for negative outputs."""
        w, b, gamma = op.weight, op.bias, self.gamma
        if gamma == 0:
            # one denominator, z itself; outputs that are exactly 0 have no sign and get nothing
            term = (Term(w, b),)
            return Group(term, outputs=Part.POSITIVE), Group(term, outputs=Part.NEGATIVE)
        up, down = _favoured(op, gamma, "+"), _favoured(op, gamma, "-")
        b_up, b_down = b, b
        if b is not None and self.bias == "scaled":
            b_up, b_down = b + gamma * b.clamp(min=0), b + gamma * b.clamp(max=0)
        return (
            Group(
                (Term(up, b_up, Part.POSITIVE), Term(down, None, Part.NEGATIVE)),
                outputs=Part.POSITIVE,
            ),
            Group(
                (Term(down, b_down, Part.POSITIVE), Term(up, None, Part.NEGATIVE)),
                outputs=Part.NEGATIVE,
            ),
        )


class AlphaBetaRule(Rule):
    r"""Treat positive and negative contributions apart, with weights alpha and beta.

    .. math::
        R_j = \sum_k \left( α \frac{(x_j w_{jk})^+}{s(\sum_j (x_j w_{jk})^+ + b_k^+)}
        - β \frac{(x_j w_{jk})^-}{s(\sum_j (x_j w_{jk})^- + b_k^-)} \right) R_k

    Args:
        alpha: Weight of the positive contributions, :math:`α - β = 1`.
        beta: Weight of the negative contributions, :math:`β \ge 0`.
        stabilizer: See :class:`Rule`.

    Raises:
        RuleError: A parameter is negative, or :math:`α - β \ne 1`.

    Source: Bach et al. 2015, eq. 60.
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 1.0, stabilizer: StabilizerLike = 1e-6
    ) -> None:
        super().__init__(stabilizer)
        name = type(self).__name__
        self.alpha = _non_negative(name, "alpha", alpha)
        self.beta = _non_negative(name, "beta", beta)
        if not math.isclose(alpha - beta, 1.0, rel_tol=1e-9):
            raise RuleError(
                f"{name}: alpha - beta is {alpha - beta:g}; it must be 1 to conserve relevance, "
                f"as with alpha={beta + 1:g}, beta={beta:g}"
            )

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return a group of the positive and one of the negative contributions."""
        b = op.bias
        w_plus, w_minus = half(op, "+"), half(op, "-")
        b_plus = None if b is None else b.clamp(min=0)
        b_minus = None if b is None else b.clamp(max=0)
        positive = (
            Term(w_plus, b_plus, Part.POSITIVE),
            Term(w_minus, None, Part.NEGATIVE),
        )
        negative = (
            Term(w_minus, b_minus, Part.POSITIVE),
            Term(w_plus, None, Part.NEGATIVE),
        )
        if self.beta == 0:
            return (Group(positive, one_sign=True),)
        return (
            Group(positive, share=self.alpha, one_sign=True),
            Group(negative, share=-self.beta, one_sign=True),
        )


class ZPlusRule(AlphaBetaRule):
    r"""Redistribute relevance over the positive contributions only: alpha-beta with (1, 0).

    .. math:: R_j = \sum_k \frac{(x_j w_{jk})^+}{s(\sum_j (x_j w_{jk})^+ + b_k^+)} R_k

    Args:
        stabilizer: See :class:`Rule`.

    Source: Montavon et al. 2017, eq. 9, for inputs of either sign.
    """

    def __init__(self, stabilizer: StabilizerLike = 1e-6) -> None:
        super().__init__(alpha=1.0, beta=0.0, stabilizer=stabilizer)


class PassRule(Rule):
    r"""Propagate relevance unchanged, element by element: :math:`R_j = R_k`.

    For activations, where it is what happens without a rule too, and for layers that keep the
    shape of their input.

    Raises:
        RuleError: (when used) the layer's output has another shape than its input.

    Source: Bach et al. 2015, for element-wise activations.
    """

    proportional = False

    def __init__(self) -> None:
        super().__init__(Identity())

    def with_stabilizer(self, stabilizer: StabilizerLike) -> Rule:
        """Return the rule itself: it divides by nothing."""
        return self

    def backward_of(self, module: nn.Module, inputs: tuple[Tensor, ...], z: Tensor) -> Backward:
        """Return the identity."""
        if len(inputs) != 1 or inputs[0].shape != z.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise RuleError(
                f"{self.describe_place(module)}: it turns {shapes} into {tuple(z.shape)}; PassRule "
                "needs one input of the output's shape"
            )
        return lambda R: (R,)

    def relevance(
        self, op: Affine, x: Tensor, z: Tensor, R: Tensor, protected: bool = False
    ) -> Tensor:
        """Return ``R``."""
        return R

    def coefficient(self, op: Affine, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Return the relevance ``z * c`` (the rule is not proportional to its input).

        Raises:
            RuleError: The layer's output has another shape than its input.
        """
        if x.shape != z.shape:
            raise RuleError(
                f"PassRule on layer '{self.layer}': it turns {tuple(x.shape)} into "
                f"{tuple(z.shape)}; PassRule needs one input of the output's shape"
            )
        return (z * c).masked_fill((z == 0) | (c == 0), 0)


Sign = Literal["+", "-"]


def half(op: Affine, sign: Sign) -> Callable[[], Tensor]:
    """Return a function that computes the positive or the negative part of the weights."""
    return cache(lambda: op.weight.clamp(min=0) if sign == "+" else op.weight.clamp(max=0))


def _favoured(op: Affine, gamma: float, sign: Sign) -> Callable[[], Tensor]:
    """Return a function that computes the weights with more of one part, by its sign."""
    return cache(lambda: torch.add(op.weight, half(op, sign)(), alpha=gamma))


def _non_negative(rule: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise RuleError(f"{rule}: {name} is {value!r}; give a number >= 0")
    if not (math.isfinite(value) and value >= 0):
        raise RuleError(f"{rule}: {name} is {value!r}; give a finite number >= 0")
    return float(value)
