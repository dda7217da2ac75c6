"""Products, gates, divisions, softmax and normalisation.

Sources: Arras et al. 2017 (gates); Ali et al. 2022 (normalisation, CP-LRP); Achtibat et al. 2024
(products, softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.without_rule import mixing
from captum_lrp_stab.operations import calls, gates, linearized, table
from captum_lrp_stab.operations.calls import first, others
from captum_lrp_stab.operations.gates import Gate, Kind
from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.rules import affine_builders
from captum_lrp_stab.tensors.nested import tensors_in

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.mode import Interception


Function = Callable[..., Any]


def product(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a product: gates are held constant, other factors share the relevance equally.

    What attention weights multiply is the signal, also where it would be a gate elsewhere.
    """
    tensors, operands = tensors_in(args, kwargs), operation.operands
    added: Any = None
    if canonical_name(func) in table.SUMMANDS:
        added = first(args, kwargs)
    elif func in affine_builders.BUILDERS:  # a layer whose weights depend on the input
        added = kwargs.get("bias", args[2] if len(args) > 2 else None)
    place = next((i for i, t in enumerate(tensors) if t is added), None)
    factors = tensors if place is None else [*tensors[:place], *tensors[place + 1 :]]
    live = list(filter(operands.has, factors))
    kinds = set(map(operands.gate, live))
    if len(live) > 1:
        held = _held(mode, kinds, func)
    elif _is_gate_of_zeros(factors, operands, func):
        held = {Gate.FACTOR, Gate.SOFTMAX}
    else:
        return mixing(mode, operation, func, args, kwargs)
    count = sum(operands.gate(t) not in held for t in live)

    def share(t: Tensor) -> float | None:
        if not operands.has(t):
            return None
        return linearized.HELD if operands.gate(t) in held else 1 / count if count > 1 else None

    shares = list(map(share, factors))
    if place is not None:
        shares.insert(place, None)
    operation.treatment = "gate held constant" if count < 2 else f"1/{count} to each factor"
    out = with_surrogate(mode, operation, func, _sharing(shares), args, kwargs)
    if kinds == {Gate.SOFTMAX}:  # such as a product of stochastic matrices
        return gates.marked(out, Gate.SOFTMAX)
    gate_of_gates = kinds == {Gate.FACTOR} and canonical_name(func) in table.ELEMENTWISE
    return gates.marked(out, Gate.FACTOR) if gate_of_gates else out


def _is_gate_of_zeros(factors: Sequence[Tensor], operands: gates.Operands, func: Function) -> bool:
    """Return whether a gate multiplies a constant of zeros, as the first state of an LSTM is one.

    What made the gate then has no part in the product, and gets no relevance by it.
    """
    by_element = canonical_name(func) in table.ELEMENTWISE
    if not by_element or not any(map(operands.is_factor, factors)):
        return False
    return not all(operands.has(t) or bool(t.any()) for t in factors)


def _held(mode: Interception, kinds: set[Kind | None], func: Function) -> set[Kind | None]:
    """Return which kinds of factors are held constant, where there are others.

    Args:
        mode: The mode.
        kinds: All that there are.
        func: The product.
    """
    by_element = canonical_name(func) in table.ELEMENTWISE
    held: set[Kind | None] = set()
    if by_element or mode.rule_set.attention == "cp":
        held.add(Gate.SOFTMAX)
    if kinds != {Gate.FACTOR, Gate.SOFTMAX}:
        held.add(Gate.FACTOR)
    return held if kinds - held else set()


def quotient(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a division: a divisor is held constant, as the statistics of a normalisation are."""
    if kwargs.get("rounding_mode"):
        operation.fallback = "rounding has no gradient"
        return func(*args, **kwargs)
    numerator = first(args, kwargs)
    divisor = calls.argument(args, kwargs, 1, "other")
    if func.__name__.strip("_").startswith("r"):
        numerator, divisor = divisor, numerator
    operands = operation.operands
    if not isinstance(divisor, Tensor) or not operands.has(divisor):
        return mixing(mode, operation, func, args, kwargs)
    if not isinstance(numerator, Tensor) or not operands.has(numerator):
        operation.fallback = "a division by a value that depends on the input"
        return gates.marked(func(*args, **kwargs), Gate.FACTOR)
    operation.treatment = "divisor held constant"
    shares = [linearized.HELD if t is divisor else None for t in tensors_in(args, kwargs)]
    if numerator is divisor:
        shares[0] = None
    out = with_surrogate(mode, operation, func, _sharing(shares), args, kwargs)
    return gates.marked(out, operands.gate(numerator))


def _sharing(shares: Sequence[float | None]) -> Callable[[Function], Function]:
    return lambda plain: linearized.product(plain, shares)


def with_surrogate(
    mode: Interception,
    operation: Operation,
    func: Function,
    change: Callable[[Function], Function],
    args: Any,
    kwargs: Any,
) -> Any:
    """Run a function with the gradient of another one, in place where it is.

    Args:
        mode: The mode.
        operation: Its record.
        func: The function.
        change: From it, or from the same out of place, to a surrogate.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    if not calls.writes(func, args, kwargs):
        return mode.mixing(operation, change(func), args, kwargs)
    surrogate = change(calls.out_of_place(func))
    # a copy, because the backward pass needs what is written over here
    out = mode.mixing(operation, surrogate, (mode.known(args[0].clone()), *args[1:]), kwargs)
    target: Tensor = args[0]
    if not target._is_view():
        target.detach_()  # what it was is reached through ``out``, or not at all
    return target.copy_(out)


def normalisation(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a layer, group, instance or rms norm with its statistics held constant."""
    if any(map(operation.operands.has, others(args, kwargs))):
        operation.fallback = "its scale or its shift depend on the input"
        return func(*args, **kwargs)
    operation.treatment = "statistics held constant"
    kwargs = {key: value for key, value in kwargs.items() if not key.startswith("cudnn_enable")}
    return mode.mixing(operation, linearized.NORMALISATIONS[func], args, kwargs)


def softmax(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a softmax, which hands relevance down by its gradient.

    CP-LRP holds attention weights constant; a softmax whose values are a signal has no rule there.
    """
    operation.treatment = "softmax by its gradient"
    if mode.rule_set.attention == "cp":
        operation.fallback = "its values are neither attention weights nor a gate"
    return gates.marked(mode.mixing(operation, func, args, kwargs), Gate.SOFTMAX)
