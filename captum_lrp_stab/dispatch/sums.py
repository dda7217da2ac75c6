"""Sums with a rule, which is set on them by name or on the module that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from captum_lrp_stab.dispatch.in_place import written_over
from captum_lrp_stab.dispatch.layer_use import Site, current_site
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.operations import calls, gates
from captum_lrp_stab.rules import sums
from captum_lrp_stab.rules.affine import Sum
from captum_lrp_stab.rules.sums import Bias, Serving, Terms
from captum_lrp_stab.tensors import nested

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.mode import Interception


Function = Callable[..., Any]


def ruled_sum(
    mode: Interception, operation: Operation, func: Function, args: Any, kwargs: Any
) -> Any:
    """Run a sum under its rule."""
    operands = operation.operands
    inherited = operands.inherited(func, args, kwargs)
    target = calls.written(func, args, kwargs)
    plain = calls.out_of_place(func)

    def call() -> Any:
        return plain(*args, **kwargs)

    if sums.serving(func, args, kwargs, operands.has) is Serving.JOINED:
        joined = call()
        terms, bias = [sums.joined(joined)], None
        sources = [t for t in nested.tensors_in(args, kwargs) if operands.has(t)]
        call = joined.detach().clone
    else:
        terms, bias = sums.of_call(func, args, kwargs, operands.has)
        terms, bias = _flattened(mode, operation, terms, bias)
        sources = [t.source for t in terms]
    op, x = sums.affine(terms, bias)
    x = mode.gathered(x, sources)
    out = mode.serve(mode.site(operation, op, mode.assignment.of_sum(operation.name), x), call)
    gates.note_shift(out, func, args, kwargs, operation.operands)
    gates.marked(out, inherited)
    return out if target is None else written_over(target, out)


def _flattened(
    mode: Interception, operation: Operation, terms: list[Terms], bias: Bias
) -> tuple[list[Terms], Bias]:
    """Return the terms of a sum with those of the sums among them, which one module has added.

    ``x + y + z`` is one sum of three terms for the rule of the module.
    """
    flat: list[Terms] = []
    size = max(term.x[0].numel() for term in terms)
    for term in terms:
        inner = current_site(term.source)
        grows = term.x[0].numel() < size
        if inner is None or not _is_part(mode, operation, term, inner, grows):
            flat.append(term)
            continue
        assert isinstance(inner.affine, Sum)
        inner.operation.is_merged = True
        operation.ordinals |= inner.operation.ordinals
        parts, constant = sums.scaled(inner.affine, inner.x, term)
        flat.append(parts)
        if constant is not None:
            bias = constant if bias is None else bias + constant
    return flat, bias


def _is_part(
    mode: Interception, operation: Operation, term: Terms, inner: Site, grows: bool
) -> bool:
    """Return whether an operand is a sum of the same run of a module, and has its rule."""
    if not isinstance(inner.affine, Sum) or (inner.affine.reduces and grows):
        return False  # a mean that is broadcast would be all its terms for each element
    one = inner.run is mode.places.run and inner.operation.name == operation.name
    alike = mode.carries_relevance(inner.x) == mode.reads_relevance(operation)
    return one and alike and len(term.x) == 1
