"""Products, gates, divisions, softmax and normalisation.

Sources: Arras et al. 2017 (gates); Ali et al. 2022 (normalisation, CP-LRP); Achtibat et al. 2024
(products, softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation, Treatment
from captum_lrp_stab.dispatch.without_rule import mixing
from captum_lrp_stab.operations import gates, linearized
from captum_lrp_stab.operations.calls import TorchCall, out_of_place
from captum_lrp_stab.operations.gates import Gate, Known
from captum_lrp_stab.rules import affine_builders

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Form

Function = Callable[..., Any]


def product(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a product: gates are held constant, other factors share the relevance equally.

    What attention weights multiply is the signal, even if it would be a gate elsewhere.
    """
    added: Any = None
    if call.kind.summand:
        added = call.x
    elif call.func in affine_builders.BUILDERS:  # a layer whose weights depend on the input
        added = call.argument(2, "bias")
    place = next((i for i, t in enumerate(call.tensors) if t is added), None)
    factors = [t for i, t in enumerate(call.tensors) if i != place]
    live = list(filter(call.is_data, factors))
    kinds = set(map(call.gates.of, live))
    if len(live) > 1:
        held = _held(form, kinds, call)
    elif _is_gate_of_zeros(factors, call):
        held = {Gate.FACTOR, Gate.SOFTMAX}
    else:
        return mixing(form, operation, call)
    count = sum(call.gates.of(t) not in held for t in live)

    def share(t: Tensor) -> float | None:
        if not call.is_data(t):
            return None
        return linearized.HELD if call.gates.of(t) in held else 1 / count if count > 1 else None

    shares = list(map(share, factors))
    if place is not None:
        shares.insert(place, None)
    operation.treatment = Treatment.GATED if count < 2 else Treatment.SHARED
    operation.factors = count
    out = with_surrogate(form, operation, call, _sharing(shares))
    if kinds == {Gate.SOFTMAX}:  # such as a product of stochastic matrices
        return gates.marked(out, Gate.SOFTMAX)
    gate_of_gates = kinds == {Gate.FACTOR} and call.kind.by_element
    return gates.marked(out, Gate.FACTOR) if gate_of_gates else out


def _is_gate_of_zeros(factors: Sequence[Tensor], call: TorchCall) -> bool:
    """Return whether a gate multiplies a constant of zeros, as the first state of an LSTM is one.

    The gate then gets no relevance through the product.
    """
    if not call.kind.by_element or not any(map(call.gates.factor, factors)):
        return False
    return not all(call.is_data(t) or bool(t.any()) for t in factors)


def _held(form: Form, kinds: set[Known | None], call: TorchCall) -> set[Known | None]:
    """Return which kinds of factors are held constant, where there are others.

    Args:
        form: The pass.
        kinds: All that there are.
        call: The product.
    """
    held: set[Known | None] = set()
    if call.kind.by_element or form.rule_set.attention == "cp":
        held.add(Gate.SOFTMAX)
    if kinds != {Gate.FACTOR, Gate.SOFTMAX}:
        held.add(Gate.FACTOR)
    return held if kinds - held else set()


def quotient(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a division: a divisor is held constant, as the statistics of a normalisation are."""
    if call.kwargs.get("rounding_mode"):
        operation.fallback = "rounding has no gradient"
        return call.run()
    numerator: Any = call.x
    divisor = call.argument(1, "other")
    if call.name.startswith("r"):
        numerator, divisor = divisor, numerator
    if not call.is_data(divisor):
        return mixing(form, operation, call)
    if not call.is_data(numerator):
        operation.fallback = "a division by a value that depends on the input"
        return gates.marked(call.run(), Gate.FACTOR)
    operation.treatment = Treatment.DIVISOR_HELD
    shares = [linearized.HELD if t is divisor else None for t in call.tensors]
    if numerator is divisor:
        shares[0] = None
    out = with_surrogate(form, operation, call, _sharing(shares))
    return gates.marked(out, call.gates.of(numerator))


def _sharing(shares: Sequence[float | None]) -> Callable[[Function], Function]:
    return lambda plain: linearized.product(plain, shares)


def with_surrogate(
    form: Form, operation: Operation, call: TorchCall, change: Callable[[Function], Function]
) -> Any:
    """Run a function with the gradient of another one, in place where it is.

    Args:
        form: The pass.
        operation: Its record.
        call: The call.
        change: From its function, out of place, to the one whose gradient is taken.
    """
    if not call.writes:
        return form.mixing(operation, call.changed(change(call.func)))
    target: Tensor = call.args[0]
    # a copy, because the backward pass needs what is written over here
    copied = form.known(target.clone()), *call.args[1:]
    out = form.mixing(operation, call.changed(change(out_of_place(call.func)), copied))
    if not target._is_view():
        target.detach_()  # its former value keeps its relevance through ``out``, if at all
    return target.copy_(out)


def normalisation(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a layer, group, instance or rms norm with its statistics held constant."""
    if call.any_is_data(call.others):
        operation.fallback = "its scale or its shift depend on the input"
        return call.run()
    operation.treatment = Treatment.STATISTICS_HELD
    kwargs = {k: v for k, v in call.kwargs.items() if not k.startswith("cudnn_enable")}
    surrogate = linearized.NORMALISATIONS[call.func]
    return form.mixing(operation, call.changed(surrogate, kwargs=kwargs))


def softmax(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a softmax, through which relevance passes by its gradient.

    CP-LRP holds attention weights constant; a softmax whose values are a signal has no rule there.
    """
    operation.treatment = Treatment.SOFTMAX
    if form.rule_set.attention == "cp":
        operation.fallback = "its values are neither attention weights nor a gate"
    return gates.marked(form.mixing(operation, call), Gate.SOFTMAX)
