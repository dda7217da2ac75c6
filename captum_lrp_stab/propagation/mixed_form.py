r"""Gradient form above, relevance form below a layer whose rule is not proportional to its input.

The zB, :math:`w^2` and flat rules give the relevance of a layer's input, not a coefficient: an
input of 0 can have relevance, and no coefficient can say so. So the stretch of the network that
such a layer reads runs in relevance form: the backward pass carries R instead of c there. Where an
operation without a rule needs the other, R becomes :math:`c = R / x` and c becomes :math:`R = x c`.
0 / 0 counts as 0.

Which operations the stretch has is known only when the pass has met such a layer, so that a first
pass, in gradient form, looks for it (``stretch``), and a second one follows.

Source: Montavon et al. 2019, ch. 10.2 and Algorithm 8.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.dispatch import treatments
from captum_lrp_stab.dispatch.form import Call
from captum_lrp_stab.dispatch.layer_use import Site
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError, RuleError
from captum_lrp_stab.operations import calls
from captum_lrp_stab.propagation.gradient_form import GradientForm, divided, times
from captum_lrp_stab.propagation.relevance_form import observed_relevance, passing
from captum_lrp_stab.rules.kernel import Division
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.tensors import graph, marks, nested
from captum_lrp_stab.tensors.step import Step


@dataclass(frozen=True)
class Stretch:
    """Operations of a pass, by their ordinals."""

    direct: frozenset[int]  # layers whose rule gives relevance
    below: frozenset[int]  # what the input of these is made of


def stretch_of(planned: Iterable[Operation], sites: Iterable[Site]) -> Stretch | None:
    """Return the stretch below layers that read no input of the model, None if there are none.

    Args:
        planned: The operations of a pass, with their nodes of the graph.
        sites: The layers of the pass whose rule is not proportional to their input.

    Raises:
        RuleError: An operation of the stretch has no LRP rule.
    """
    deep = [site for site in sites if not site.reads_input]
    if not deep:
        return None
    below: set[int] = set()
    for site in deep:
        nodes = set(graph.graph(site.x))
        for function in graph.custom_functions(nodes):
            raise RuleError(
                f"{_why(site)}, where the custom autograd function {function.__name__} has none; "
                "move the rule to a layer below it, or take a proportional one such as EpsilonRule"
            )
        for operation in planned:
            if operation.nodes is None or not any(node in nodes for node in operation.nodes):
                continue
            if operation.fallback:
                raise RuleError(
                    f"{_why(site)}, where operation {operation.describe_fallback()} has no rule; "
                    "move the rule to a layer below it, or take a proportional one such as "
                    "EpsilonRule"
                )
            below |= operation.ordinals
    direct = frozenset().union(*(site.operation.ordinals for site in sites))
    return Stretch(direct, frozenset(below))


def _why(site: Site) -> str:
    rule = next(rule for rule in site.rules if not rule.proportional)
    return (
        f"{type(rule).__name__} on layer '{site.name}': the rule gives relevance that is not "
        "proportional to the layer's input, so what that input is made of runs in relevance form"
    )


class MixedForm(GradientForm):
    """Carry relevance in the stretch, coefficients elsewhere.

    Args:
        model: See :class:`~captum_lrp_stab.dispatch.mode.Interception`.
        rule_sets: The rule of each operation.
        stretch: Of an earlier pass.
    """

    has_factors = False  # where relevance is carried it passes unchanged

    def __init__(self, model: nn.Module, *rule_sets: RuleSet, stretch: Stretch) -> None:
        super().__init__(model, *rule_sets)
        self._stretch = stretch
        self._below = False  # whether the operation that is running is in the stretch

    def prepare(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Return stand-ins for the inputs, which collect relevance."""
        stand_ins = super().prepare(*arguments)
        for t in (*self.leaves, *stand_ins):
            _marked(t)
        return stand_ins

    def as_data(self, t: Tensor) -> Tensor:
        """Return a copy of a constant that counts as if it came from an input, with relevance."""
        return _marked(super().as_data(t))

    def carries_relevance(self, t: Tensor) -> bool:
        """Return whether the backward pass hands this tensor relevance, not a coefficient.

        Raises:
            ModelError: It did, and the tensor has been written to since, under another name.
        """
        if marks.is_stale(t, "relevance"):
            raise ModelError(
                "the model writes in place, by a view or another name, over what a layer reads "
                "whose rule is not proportional to its input; make that operation out of place"
            )
        return marks.get(t, "relevance") is not None

    def reads_relevance(self, operation: Operation) -> bool:
        """Return whether an operation hands down relevance, not coefficients."""
        return not operation.ordinals.isdisjoint(self._stretch.below | self._stretch.direct)

    def gathered(self, x: Tensor, operands: Iterable[Tensor]) -> Tensor:
        """Return ``x``, marked if it carries relevance as what it is made of does."""
        return _marked(x) if all(map(self.carries_relevance, operands)) else x

    def carrier_of(self, site: Site) -> Tensor | None:
        """Return None where relevance goes to the layer's input itself, what is beside it else."""
        return None if self.carries_relevance(site.x) else self._beside.of(site.x)

    def on_operands(
        self, operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """Turn coefficients into relevance where an operation above reads what the stretch made.

        Raises:
            ModelError: It writes over what the stretch made.
        """
        args, kwargs = super().on_operands(operation, func, args, kwargs)
        self._below = not operation.ordinals.isdisjoint(self._stretch.below)
        if self._below or not operation.ordinals.isdisjoint(self._stretch.direct):
            return args, kwargs
        tensors = list(nested.tensors_in(args, kwargs))
        carrying = [self.carries_relevance(t) for t in tensors if graph.made(t)]
        target = calls.written(func, args, kwargs)
        if target is not None and graph.made(target) and self.carries_relevance(target):
            raise ModelError(
                f"operation '{operation.name}' writes in place over what a layer has read whose "
                "rule is not proportional to its input; make the operation out of place"
            )
        if treatments.of(func) in treatments.MOVING and all(carrying) and target is None:
            self._below = True  # moved as it is; a copy would be no view
            return args, kwargs

        def change(t: Tensor) -> Tensor:
            if not self.carries_relevance(t):
                return t
            copy = _from_coefficient(t)
            self.carry(t, copy)
            return copy

        return nested.mapped(change, args), nested.mapped(change, kwargs)

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Mark what the stretch makes."""
        if self._below:
            for t in nested.tensors_in((result,), {}):
                _marked(t)
        return super().on_result(operation, output, result)

    def affine(self, site: Site, call: Call) -> Tensor:
        """Return the layer's output with its rule as backward pass."""
        known = self.carries_relevance(site.x) or self._beside.of(site.x) is not None
        if not site.rule.proportional and not known:
            raise ModelError(
                f"layer '{site.name}': its input is written in place through a view, so that it "
                "cannot be followed below this rule; make that operation out of place"
            )
        if not self._below:
            if site.rule.proportional and self.carries_relevance(site.x):  # of a merged layer
                site = self.connected(replace(site, x=_from_coefficient(site.x)))
            return super().affine(site, call)
        with torch.no_grad():
            z = call()
        x = site.x.detach()

        def backward(R: Tensor) -> tuple[Tensor]:
            if self.observer is None:
                return (site.rule.relevance(site.op, x, z, R, protected=True),)
            return (observed_relevance(self.observer, site, x, z, R, Division.PROTECTED),)

        if self.observer is not None:
            self.observer.forward(site.operation, x, z, z)
        out: Tensor = Step.apply(backward, z, site.x)
        site.keep(z)
        return _marked(out)

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)``, in the stretch with relevance passing as it is."""
        if not self._below:
            return super().activation(z, slope, g)
        with torch.no_grad():
            y = g(z)
        return Step.apply(passing(z.detach(), y, slope), y, z)  # type: ignore[no-any-return]

    def rectifier(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a ReLU or one of its kin, in the stretch with relevance passing as it is."""
        if not self._below:
            return super().rectifier(func, args, kwargs)
        return self.as_activation(func, args, kwargs)

    def mixing(self, operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation that mixes its inputs, in the stretch between two changes of form."""
        if not self._below:
            return super().mixing(operation, func, args, kwargs)

        def change(t: Tensor) -> Tensor:
            return _from_coefficient(t) if graph.made(t) else t

        plain = calls.out_of_place(func)
        given = nested.mapped(change, args), nested.mapped(change, kwargs)
        result = plain(*given[0], **given[1])
        out = nested.mapped(lambda t: _to_coefficient(t) if graph.made(t) else t, result)
        return out if plain is func else args[0].copy_(out)


def _marked(t: Tensor) -> Tensor:
    marks.put(t, "relevance", True)
    return t


def _from_coefficient(t: Tensor) -> Tensor:
    """Return a copy of ``t`` that turns the coefficient it is handed into relevance."""
    value = t.detach().clone()
    copy: Tensor = Step.apply(lambda c: (times(value, c),), value, t)
    marks.carry(t, copy, without=("padded", "relevance"))
    return copy


def _to_coefficient(t: Tensor) -> Tensor:
    """Return a copy of ``t`` that turns the relevance it is handed into a coefficient."""
    value = t.detach().clone()
    return Step.apply(lambda R: (divided(R, value),), value, t)  # type: ignore[no-any-return]
