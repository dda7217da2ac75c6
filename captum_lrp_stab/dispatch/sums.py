"""Sums with a rule, which is set on them by name or on the module that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrp_stab.dispatch.in_place import written_over
from captum_lrp_stab.dispatch.layer_use import LayerUse, layer_of
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.operations import gates
from captum_lrp_stab.operations.calls import TorchCall, out_of_place
from captum_lrp_stab.rules import sums
from captum_lrp_stab.rules.affine import Sum
from captum_lrp_stab.rules.sums import Bias, Serving, Terms

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Form


def ruled_sum(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a sum under its rule."""
    known, target = call.gates.inherited(call), call.target
    compute = call.changed(out_of_place(call.func)).run
    if sums.serving(call) is Serving.JOINED:
        joined = compute()
        terms, bias = [sums.joined(joined)], None
        sources = list(call.data)
        compute = joined.detach().clone
    else:
        terms, bias = sums.of_call(call)
        terms, bias = _flattened(form, operation, terms, bias)
        sources = [t.source for t in terms]
    op, x = sums.affine(terms, bias)
    x = form.gathered(x, sources)
    use = form.layer_use(operation, op, form.assignment.of_sum(operation.name), x)
    out = form.serve(use, compute)
    gates.note_shift(out, call)
    gates.marked(out, known)
    return out if target is None else written_over(target, out)


def _flattened(
    form: Form, operation: Operation, terms: list[Terms], bias: Bias
) -> tuple[list[Terms], Bias]:
    """Return the terms of a sum, with those of sums among them that the same module computed.

    ``x + y + z`` is one sum of three terms for the rule of the module.
    """
    flat: list[Terms] = []
    size = max(term.x[0].numel() for term in terms)
    for term in terms:
        inner = layer_of(term.source)
        grows = term.x[0].numel() < size
        if inner is None or not _is_part(form, operation, term, inner, grows):
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


def _is_part(form: Form, operation: Operation, term: Terms, inner: LayerUse, grows: bool) -> bool:
    """Return whether an operand is a sum of the same run of a module, and has its rule."""
    if not isinstance(inner.affine, Sum) or (inner.affine.reduces and grows):
        return False  # each element of a broadcast mean would have all its terms
    one = inner.run is form.naming.run and inner.operation.name == operation.name
    alike = form.carries_relevance(inner.x) == form.reads_relevance(operation)
    return one and alike and len(term.x) == 1
