r"""LRP in relevance form: the backward pass carries relevance, as in Captum and zennit.

Operations that mix values propagate :math:`R_{in} = x \odot J^T (R / s(z))`, by their rule or,
without one, as LRP-0 (+, mean, batch norm on its own, ...); operations that move or select values
move relevance back; activations pass relevance unchanged. The division is not protected: a
denominator of 0 gives NaN, which is what this form is for; but a part of a complex number that is 0
without relevance, as where a real one became complex, has none to divide. An operation of no known
kind is an error, because its gradient, taken for relevance, would be wrong without a warning.

Source: Bach et al. 2015.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import captum_lrp_stab.stabilizers as stabilizers
from captum_lrp_stab.dispatch.form import Compute
from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import activations
from captum_lrp_stab.operations.calls import TorchCall, is_in_place, out_of_place
from captum_lrp_stab.propagation.gradient_form import GradientForm, divided, propagated, times
from captum_lrp_stab.propagation.observer import Passage, as_it_is
from captum_lrp_stab.rules.kernel import Division
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.stabilizers import Identity, StabilizerLike
from captum_lrp_stab.tensors import graph
from captum_lrp_stab.tensors.complex_values import as_real, like, total
from captum_lrp_stab.tensors.nested import mapped, tensors_in
from captum_lrp_stab.tensors.step import Backward, Step


class RelevanceForm(GradientForm):
    """Carry relevance itself in the backward pass; see the module's docstring.

    Args:
        model: See :class:`~captum_lrp_stab.dispatch.mode.Interception`.
        rule_set: The rule of each operation.
        stabilizer: Of every other operation that mixes values (+, mean, batch norm on its own,
            ...); None for none.
    """

    float16_scale = 1.0  # unprotected here as well
    has_factors = False

    def __init__(
        self, model: nn.Module, rule_set: RuleSet, stabilizer: StabilizerLike | None = None
    ) -> None:
        super().__init__(model, rule_set)
        self.stabilizer = Identity() if stabilizer is None else stabilizers.ensure(stabilizer)

    def seed(self, score: Tensor) -> Tensor:
        """Return the score: its relevance."""
        return score.detach()

    def relevance_of(self, value: Tensor, carried: Tensor) -> Tensor:
        """Return what is carried."""
        return total(carried)

    def settle(self, output: Any, whole: bool = False) -> None:
        """Note which operations relevance reaches.

        Raises:
            ModelError: It reaches one of which nothing is known.
        """
        super().settle(output, whole)
        for operation in self.operations:
            if operation.fallback and operation.reached:
                self._refuse(operation, operation.fallback)

    def affine(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the layer's output with its rule as backward pass."""
        x = use.x.detach().clone()  # the model may write over its own
        with torch.no_grad():
            z = compute()
        use.keep(z)

        def backward(R: Tensor) -> tuple[Tensor]:
            return (propagated(self.observer, use, use.op, x, z, R, Division.BARE),)

        if self.observer is not None:
            self.observer.forward(use.operation, x, z, z)
        carrier = None if use.rule.proportional else self._beside.of(use.x)
        below = use.x if carrier is None else carrier
        return Step.apply(backward, z, below)  # type: ignore[no-any-return]

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)``; relevance passes unchanged."""
        with torch.no_grad():
            y = g(z)
        return Step.apply(passing(z.detach(), y, slope), y, z)  # type: ignore[no-any-return]

    def mixing(self, operation: Operation, call: TorchCall) -> Any:
        """Return the output of an operation without a rule: ``x * VJP(R / s(z))`` for each x."""
        if call.kwargs.get("out") is not None:
            self._refuse(operation, "it writes to 'out'")
        inputs = {id(t): t for t in call.tensors if self.depends_on_input(t)}
        values = {key: t.detach().clone() for key, t in inputs.items()}

        def stand_in(t: Tensor) -> Tensor:
            return values[id(t)] if id(t) in values else t.detach()

        # not the arguments themselves: where one is written to it would hold its own graph
        standing = mapped(stand_in, (call.args, call.kwargs))
        points = {id(v): as_real(v).detach().requires_grad_() for v in values.values()}
        plain, in_place = out_of_place(call.func), is_in_place(call.func)

        def run(others: Mapping[int, Tensor]) -> Any:
            """Return the result with others in the place of the points."""

            def change(t: Tensor) -> Tensor:
                return like(others[id(t)], t) if id(t) in others else t

            with torch.enable_grad():
                args, kwargs = mapped(change, standing)
                return plain(*args, **kwargs)

        given_back = run(points)
        # a linearized function may hold all of them constant
        if not any(t.requires_grad for t in tensors_in((given_back,), {})):
            return call.args[0].copy_(given_back) if in_place else given_back
        result = self._one_of(given_back, operation)
        z, values_of_z = as_real(result), result.detach()
        nodes = graph.graph(z)
        taking = {id(node.variable) for node in nodes if hasattr(node, "variable")}
        # without those that a linearized function holds constant
        places = {key: points[id(value)] for key, value in values.items()}
        inputs = {key: t for key, t in inputs.items() if id(places[key]) in taking}
        xs = tuple(places[key] for key in inputs)
        kinds = tuple(values[key] for key in inputs)

        def magnitude() -> Tensor:
            nothing = {key: torch.zeros_like(x) for key, x in points.items()}
            each = (run(nothing | {key: x.detach().abs()}) for key, x in points.items())
            ones = (as_real(self._one_of(one, operation)) for one in each)
            return torch.stack([one.abs() for one in ones]).sum(0)

        def backward(R: Tensor) -> tuple[Tensor, ...]:
            s = stabilizers.apply(self.stabilizer, z.detach(), magnitude)
            R = as_real(R)
            if values_of_z.is_complex():  # a part that is 0 whatever the input, as of a real number
                s = s.masked_fill((R == 0) & (s == 0), 1)
            message = R / s
            gradients = torch.autograd.grad(z, xs, message)
            results = tuple(x.detach() * g for x, g in zip(xs, gradients, strict=True))
            if self.observer is not None:
                self.observer.backward(
                    Passage(
                        operation,
                        tuple(x.detach() for x in xs),
                        z.detach(),
                        R,
                        results,
                        Division.BARE,
                        as_it_is,
                        as_it_is,
                        stabilized=s,
                        magnitude=magnitude,
                    )
                )
            return tuple(like(r, kind) for r, kind in zip(results, kinds, strict=True))

        out = Step.apply(backward, values_of_z, *inputs.values())
        if in_place:
            return call.args[0].copy_(out)
        return mapped(lambda t: out if t is result else t, given_back)

    def _one_of(self, given_back: Any, operation: Operation) -> Tensor:
        """Return the one result that depends on the input, among others such as indices."""
        found = tensors_in((given_back,), {})
        results = [t for t in found if t.is_floating_point() or t.is_complex()]
        if len(results) != 1:
            self._refuse(operation, "it gives several results")
        return results[0]

    def rectifier(self, call: TorchCall) -> Any:
        """Return a ReLU, or one of its kin; relevance passes unchanged."""
        return self.as_activation(call)

    def _refuse(self, operation: Operation, reason: str) -> None:
        raise ModelError(
            f"operation '{operation.name}' ({operation.kind}) has no rule in relevance form: "
            f"{reason}, and passing its gradient on as relevance would be wrong; use the gradient "
            "form"
        )


def passing(z: Tensor, y: Tensor, slope: float) -> Backward:
    """Return the function from the relevance of an activation's value to that of its input.

    Relevance passes unchanged. Of a complex number its sum over both parts does, and the
    coefficient says how it is divided between them.

    Args:
        z: The input.
        y: The value.
        slope: At 0.
    """
    if not z.is_complex():
        return lambda R: (R,)
    return lambda R: (times(z, activations.scaled(divided(R, y), z, y, slope)),)
