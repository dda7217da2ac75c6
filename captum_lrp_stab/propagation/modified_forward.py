r"""LRP by rewriting the forward pass, as the first implementations did.

A layer's output z becomes the sum over the rule's groups (see ``kernel``) of
:math:`α_g\, d_g \odot [z / s(d_g)]_{const}`, z being the true output on the input as modified so
far, and relevance is input times gradient. The output keeps its value only where
:math:`s(d) = d`, so that a stabilizer changes the network's score. Nothing is protected: a
denominator of 0 gives NaN in the forward pass, which is what this form is for.

Source: Montavon et al. 2019, ch. 10.3 (implementation by a modified forward pass).
"""

from functools import partial

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.form import Compute
from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.observer import Observer, Passage
from captum_lrp_stab.rules import kernel
from captum_lrp_stab.rules.kernel import Division, Group, Part
from captum_lrp_stab.tensors.complex_values import as_real
from captum_lrp_stab.tensors.step import Step


class ModifiedForward(GradientForm):
    """Change each layer's output so that input times gradient is relevance.

    Constants in a rule's terms, such as box bounds, collect relevance as well.
    """

    float16_scale = 1.0  # unprotected here as well
    has_factors = False

    def relevance_of(self, value: Tensor, carried: Tensor) -> Tensor:
        """Return ``value * gradient``."""
        return (
            (as_real(value) * as_real(carried)).sum(-1) if value.is_complex() else value * carried
        )

    def carrier_of(self, use: LayerUse) -> Tensor:
        """Return the carrier of a layer's input.

        Raises:
            RuleError: The layer does not read the model's input, moved or normalised.
        """
        carrier = super().carrier_of(use)
        if carrier is None:
            raise RuleError(
                f"{type(use.rule).__name__} on layer '{use.name}': the rule gives relevance "
                "that is not proportional to the layer's input, so in this form it serves layers "
                "that read the model's input, moved or normalised; use the gradient form, or a "
                "proportional rule such as EpsilonRule"
            )
        return carrier

    def affine(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the modified output."""
        carrier = None if use.rule.proportional else self.carrier_of(use)
        watch = None if self.observer is None else _Watch(self, self.observer, use)
        x = use.x if watch is None else watch.entering()
        with torch.no_grad():
            # not compute(): with a batch norm merged it would run on a layer modified already
            z = use.op.apply(x, use.op.weight, use.op.bias)
        total: Tensor | None = None
        for group in use.rule.groups(use.op, x.detach()):
            d = _denominators(group, use, x, carrier, watch)
            with torch.no_grad():
                s = kernel.stabilized(group, use.op, x, d.detach(), use.rule.stabilize)
            part = group.share * d * (z / s)
            if group.outputs is not Part.ALL:
                selected = z > 0 if group.outputs is Part.POSITIVE else z < 0
                part = torch.where(selected, part, torch.zeros_like(part))
            total = part if total is None else total + part
        assert total is not None  # a rule has at least one group
        use.keep(total)
        return total if watch is None else watch.leaving(z, total)


def _denominators(
    group: Group, use: LayerUse, x: Tensor, carrier: Tensor | None, watch: "_Watch | None"
) -> Tensor:
    """Return the group's denominators, connected to x, or to its carrier."""
    total: Tensor | None = None
    for term in group.terms:
        source = term.input(x)
        if carrier is not None:
            constant = source.detach().expand_as(x)
            weighted = partial(_weighted, constant, watch)
            if watch is not None:
                watch.terms += 1
            source = Step.apply(weighted, constant, carrier)
        d = term.sign * use.op.apply(source, term.weight, term.bias)
        total = d if total is None else total + d
    assert total is not None  # a group has at least one term
    return total


def _weighted(constant: Tensor, watch: "_Watch | None", gradient: Tensor) -> tuple[Tensor]:
    relevance = constant * gradient
    if watch is not None:
        watch.note(relevance)
    return (relevance,)


class _Watch:
    """Lets an observer see what the backward pass carries into and out of one layer."""

    def __init__(self, form: ModifiedForward, observer: Observer, use: LayerUse) -> None:
        self.beside: Tensor | None = None  # relevance that goes to the carrier
        self.terms = 0  # of the rule, whose relevance goes there
        self._form, self._observer, self._use = form, observer, use
        self._upstream: Tensor | None = None

    def entering(self) -> Tensor:
        """Return a copy of the layer's input."""
        self._x = self._use.x.detach().clone()  # the model may write over its own
        copy: Tensor = Step.apply(self._hand_down, self._x, self._use.x)
        return copy

    def leaving(self, z: Tensor, output: Tensor) -> Tensor:
        """Return a copy of the layer's output."""
        self._z, self._output = z, output.detach().clone()
        self._observer.forward(self._use.operation, self._x, z, self._output)
        copy: Tensor = Step.apply(self._take, self._output, output)
        return copy

    def note(self, relevance: Tensor) -> None:
        """Note the relevance that a term of the rule gives the carrier."""
        self.beside = relevance if self.beside is None else self.beside + relevance
        self.terms -= 1
        if not self.terms:
            self._hand_down(torch.zeros_like(self._x))

    def _take(self, upstream: Tensor) -> tuple[Tensor]:
        self._upstream = upstream
        return (upstream,)

    def _hand_down(self, downstream: Tensor) -> tuple[Tensor]:
        assert self._upstream is not None
        use, how = self._use, Division.REWRITTEN
        sent = use.rule.messages(use.op, self._x, self._z, self._upstream, how)
        passage = Passage(
            use.operation,
            (self._x,),
            self._output,
            self._upstream,
            (downstream,),
            how,
            self._form.relevance_of,
            self._below,
            use,
            list(sent),
            self._z,
        )
        self._observer.backward(passage)
        return (downstream,)

    def _below(self, x: Tensor, carried: Tensor) -> Tensor:
        relevance = self._form.relevance_of(x, carried)
        return relevance if self.beside is None else relevance + self.beside
