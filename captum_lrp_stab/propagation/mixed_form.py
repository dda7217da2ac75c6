r"""Gradient form above, relevance form below a layer whose rule is not proportional to its input.

The zB, :math:`w^2` and flat rules give the relevance of a layer's input, not a coefficient: an
input of 0 can have relevance, and no coefficient can say so. So the part of the network below such
a layer, the stretch, runs in relevance form: the backward pass carries R instead of c there. Where
an operation without a rule needs the other, R becomes :math:`c = R / x` and c becomes
:math:`R = x c`. 0 / 0 counts as 0.

Which operations are in the stretch is known only when the pass has met such a layer, so that a
first pass, in gradient form, looks for it (:func:`stretch_of`), and a second one follows.

Source: Montavon et al. 2019, ch. 10.2 and Algorithm 8.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.dispatch import treatments
from captum_lrp_stab.dispatch.form import Compute
from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError, RuleError
from captum_lrp_stab.operations.calls import TorchCall, is_in_place, out_of_place
from captum_lrp_stab.propagation.gradient_form import GradientForm, divided, propagated, times
from captum_lrp_stab.propagation.relevance_form import passing
from captum_lrp_stab.rules.kernel import Division
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.tensors import graph, marks
from captum_lrp_stab.tensors.graph import made
from captum_lrp_stab.tensors.nested import mapped, tensors_in
from captum_lrp_stab.tensors.step import Step


@dataclass(frozen=True)
class Stretch:
    """Operations of a pass, by their ordinals."""

    direct: frozenset[int]  # layers whose rule gives relevance
    below: frozenset[int]  # operations that the input of these depends on


def stretch_of(planned: Iterable[Operation], uses: Iterable[LayerUse]) -> Stretch | None:
    """Return the stretch below layers that read no input of the model, None if there are none.

    Args:
        planned: The operations of a pass, with their nodes of the graph.
        uses: The layers of the pass whose rule is not proportional to their input.

    Raises:
        RuleError: An operation of the stretch has no LRP rule.
    """
    deep = [use for use in uses if not use.reads_input]
    if not deep:
        return None
    below: set[int] = set()
    for use in deep:
        nodes = set(graph.graph(use.x))
        for function in graph.custom_functions(nodes):
            raise RuleError(
                f"{_why(use)}, where the custom autograd function {function.__name__} has none; "
                "move the rule to a layer below it, or take a proportional one such as EpsilonRule"
            )
        for operation in planned:
            if operation.nodes is None or not any(node in nodes for node in operation.nodes):
                continue
            if operation.fallback:
                raise RuleError(
                    f"{_why(use)}, where operation {operation.describe_fallback()} has no rule; "
                    "move the rule to a layer below it, or take a proportional one such as "
                    "EpsilonRule"
                )
            below |= operation.ordinals
    direct = frozenset().union(*(use.operation.ordinals for use in uses))
    return Stretch(direct, frozenset(below))


def _why(use: LayerUse) -> str:
    rule = next(rule for rule in use.rules if not rule.proportional)
    return (
        f"{type(rule).__name__} on layer '{use.name}': the rule gives relevance that is not "
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
        """Return whether the backward pass gives this tensor relevance, not a coefficient.

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
        """Return whether an operation propagates relevance, not coefficients."""
        return not operation.ordinals.isdisjoint(self._stretch.below | self._stretch.direct)

    def gathered(self, x: Tensor, operands: Iterable[Tensor]) -> Tensor:
        """Return ``x``, marked if the tensors it is made of carry relevance."""
        return _marked(x) if all(map(self.carries_relevance, operands)) else x

    def carrier_of(self, use: LayerUse) -> Tensor | None:
        """Return the input's carrier, None where relevance goes to the input itself."""
        return None if self.carries_relevance(use.x) else self._beside.of(use.x)

    def on_arguments(self, operation: Operation, call: TorchCall) -> TorchCall:
        """Turn coefficients into relevance where an operation above reads a result of the stretch.

        Raises:
            ModelError: It writes over a result of the stretch.
        """
        call = super().on_arguments(operation, call)
        self._below = not operation.ordinals.isdisjoint(self._stretch.below)
        if self._below or not operation.ordinals.isdisjoint(self._stretch.direct):
            return call
        carrying = [self.carries_relevance(t) for t in call.tensors if made(t)]
        target = call.target
        if target is not None and made(target) and self.carries_relevance(target):
            raise ModelError(
                f"operation '{operation.name}' writes in place over what a layer has read whose "
                "rule is not proportional to its input; make the operation out of place"
            )
        if treatments.of(call.func) in treatments.MOVING and all(carrying) and target is None:
            self._below = True  # moved as it is; a copy would be no view
            return call
        if not any(carrying):
            return call

        def change(t: Tensor) -> Tensor:
            if not self.carries_relevance(t):
                return t
            copy = _from_coefficient(t)
            self.carry(t, copy)
            return copy

        return TorchCall(call.func, mapped(change, call.args), mapped(change, call.kwargs))

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Mark the results of the stretch."""
        if self._below:
            for t in tensors_in((result,), {}):
                _marked(t)
        return super().on_result(operation, output, result)

    def affine(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the layer's output with its rule as backward pass."""
        known = self.carries_relevance(use.x) or self._beside.of(use.x) is not None
        if not use.rule.proportional and not known:
            raise ModelError(
                f"layer '{use.name}': its input is written in place through a view, so that it "
                "cannot be followed below this rule; make that operation out of place"
            )
        if not self._below:
            if use.rule.proportional and self.carries_relevance(use.x):  # of a merged layer
                use = self.cut_after(replace(use, x=_from_coefficient(use.x)))
            return super().affine(use, compute)
        with torch.no_grad():
            z = compute()
        x = use.x.detach()

        def backward(R: Tensor) -> tuple[Tensor]:
            return (propagated(self.observer, use, use.op, x, z, R, Division.PROTECTED),)

        if self.observer is not None:
            self.observer.forward(use.operation, x, z, z)
        out: Tensor = Step.apply(backward, z, use.x)
        use.keep(z)
        return _marked(out)

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)``, in the stretch with relevance passing as it is."""
        if not self._below:
            return super().activation(z, slope, g)
        with torch.no_grad():
            y = g(z)
        return Step.apply(passing(z.detach(), y, slope), y, z)  # type: ignore[no-any-return]

    def rectifier(self, call: TorchCall) -> Any:
        """Run a ReLU or one of its kin, in the stretch with relevance passing as it is."""
        return self.as_activation(call) if self._below else super().rectifier(call)

    def mixing(self, operation: Operation, call: TorchCall) -> Any:
        """Run an operation that mixes its inputs, in the stretch between two changes of form."""
        if not self._below:
            return super().mixing(operation, call)

        def change(t: Tensor) -> Tensor:
            return _from_coefficient(t) if made(t) else t

        args, kwargs = mapped(change, (call.args, call.kwargs))
        result = out_of_place(call.func)(*args, **kwargs)
        out = mapped(lambda t: _to_coefficient(t) if made(t) else t, result)
        return call.args[0].copy_(out) if is_in_place(call.func) else out


def _marked(t: Tensor) -> Tensor:
    marks.put(t, "relevance", True)
    return t


def _from_coefficient(t: Tensor) -> Tensor:
    """Return a copy of ``t`` whose backward pass turns a coefficient into relevance."""
    value = t.detach().clone()
    copy: Tensor = Step.apply(lambda c: (times(value, c),), value, t)
    marks.carry(t, copy, without=("padded", "relevance"))
    return copy


def _to_coefficient(t: Tensor) -> Tensor:
    """Return a copy of ``t`` whose backward pass turns relevance into a coefficient."""
    value = t.detach().clone()
    return Step.apply(lambda R: (divided(R, value),), value, t)  # type: ignore[no-any-return]
