r"""Rules for the first layer, whose relevance is not proportional to the layer's input.

Notation as in ``standard``.
"""

import warnings

import torch
from torch import Tensor

from captum_lrp_stab.errors import InputWarning, RuleError
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.kernel import Group, Term
from captum_lrp_stab.rules.standard import half
from captum_lrp_stab.stabilizers import StabilizerLike


class ZBoxRule(Rule):
    r"""Redistribute relevance onto inputs bounded by a box, such as pixels.

    .. math::
        R_j = \sum_k \frac{x_j w_{jk} - l_j w_{jk}^+ - h_j w_{jk}^-}
        {s(\sum_j (x_j w_{jk} - l_j w_{jk}^+ - h_j w_{jk}^-))} R_k

    For the first layer; at any other what is below it runs in relevance form.

    Args:
        low: Smallest possible input, a number or a tensor that broadcasts to the input's shape
            (per channel of an image: shape ``(1, 3, 1, 1)``), in the units the layer sees.
        high: Largest possible input, likewise.
        stabilizer: See :class:`Rule`.

    Raises:
        RuleError: ``low`` is not below ``high`` everywhere, or a bound does not broadcast.

    Source: Montavon et al. 2017, eq. 13; Montavon et al. 2019, ch. 10.3.2.
    """

    proportional = False

    def __init__(
        self,
        low: Tensor | float,
        high: Tensor | float,
        stabilizer: StabilizerLike = 1e-6,
    ) -> None:
        super().__init__(stabilizer)
        # without a graph of the caller's, with which a tensor cannot be copied
        self.low, self.high = (b.detach() if isinstance(b, Tensor) else b for b in (low, high))
        bounds = []
        for name, bound in (("low", low), ("high", high)):
            try:
                bounds.append(torch.as_tensor(bound).detach().to(torch.float64).cpu())
            except (TypeError, ValueError, RuntimeError) as error:
                raise RuleError(
                    f"ZBoxRule: {name} is {bound!r}; give a number or a tensor"
                ) from error
        try:
            ordered = bool((bounds[0] < bounds[1]).all())
        except RuntimeError as error:
            shapes = tuple(bounds[0].shape), tuple(bounds[1].shape)
            raise RuleError(
                f"ZBoxRule: low and high have shapes {shapes[0]} and {shapes[1]}, which do not "
                "broadcast; give both the shape (1, channels, 1, 1), or numbers"
            ) from error
        if not ordered:
            raise RuleError(
                f"ZBoxRule: low (from {bounds[0].min():g}) must be below high (up to "
                f"{bounds[1].max():g}) everywhere; low >= high or NaN leaves no box"
            )

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return one group: the input less the box's lower and upper corner."""
        low, high = (self._bound(name, op, x) for name in ("low", "high"))
        inside = not bool(((x < low) | (x > high)).any())
        if not inside:
            warnings.warn(
                f"{self._place()}: the layer's input runs from {x.min():g} to {x.max():g}, outside "
                f"the box [{low.min():g}, {high.max():g}], where the zB rule is not defined; give "
                "the smallest and largest possible input, after normalisation",
                InputWarning,
                stacklevel=2,
            )
        w = op.weight
        # b - b^+ - b^- is 0: adding the three would only round what is left of a small sum
        terms = (
            Term(w, None),
            Term(half(op, "+"), None, constant=low, sign=-1.0),
            Term(half(op, "-"), None, constant=high, sign=-1.0),
        )
        return (Group(terms, one_sign=inside),)

    def _bound(self, name: str, op: Affine, x: Tensor) -> Tensor:
        given = torch.as_tensor(getattr(self, name)).detach()
        samples = x if op.has_samples(x) else x[None]
        value = given.to(x)
        if value.dim() < samples.dim():
            value = value.reshape((1,) * (samples.dim() - value.dim()) + value.shape)
        same = value.shape[0] == 1  # for every sample: one constant pass serves all
        try:
            value = value.expand(1 if same else len(samples), *samples.shape[1:])
        except RuntimeError as error:
            raise RuleError(
                f"{self._place()}: {name} has shape {tuple(given.shape)}, which does not broadcast "
                f"to the layer's input {tuple(x.shape)}; for one value per channel give shape "
                f"{(1, samples.shape[1], *(1,) * (samples.dim() - 2))}"
            ) from error
        return value if op.has_samples(x) else value[0]

    def _place(self) -> str:
        return f"ZBoxRule on layer '{self.layer}'" if self.layer else "ZBoxRule"


class WSquareRule(Rule):
    r"""Redistribute relevance by the squared weights, whatever the input.

    .. math:: R_j = \sum_k \frac{w_{jk}^2}{s(\sum_j w_{jk}^2 + b_k^2)} R_k

    For the first layer, when its input is not bounded; at any other what is below it runs in
    relevance form.

    Args:
        stabilizer: See :class:`Rule`.

    Source: Montavon et al. 2017, eq. 11; the bias in the denominator is zennit's.
    """

    proportional = False

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return one group: ones through the squared weights."""
        bias = None if op.bias is None else op.bias.square()
        term = Term(op.weight.square(), bias, constant=_ones(op, x))
        return (Group((term,), one_sign=True),)


class FlatRule(Rule):
    r"""Spread relevance evenly over the inputs a neuron is connected to.

    .. math:: R_j = \sum_k \frac{1}{s(\sum_j 1)} R_k

    For the first layer; at any other what is below it runs in relevance form.

    Args:
        stabilizer: See :class:`Rule`.

    Source: Lapuschkin et al. 2019, supplementary note 1.
    """

    proportional = False

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return one group: ones through weights that are all one."""
        term = Term(torch.ones_like(op.weight), None, constant=_ones(op, x))
        return (Group((term,), one_sign=True),)


def _ones(op: Affine, x: Tensor) -> Tensor:
    """Return ones in the place of an input, the same for every sample."""
    return torch.ones_like(x[:1] if op.has_samples(x) else x)
