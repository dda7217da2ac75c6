"""Linear layers in another spelling: products with weights, and biases added to a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch.in_place import written_over
from captum_lrp_stab.dispatch.layer_use import LayerUse, layer_of
from captum_lrp_stab.dispatch.layers import served
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.without_rule import mixing
from captum_lrp_stab.operations.calls import TorchCall, out_of_place
from captum_lrp_stab.rules import contractions

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Form


def contraction(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a product with weights under its rule, as a linear layer."""
    op, x = contractions.of_call(call)
    rules = form.rules_of(operation, call, x)
    if not rules:
        return mixing(form, operation, call)
    return served(form, operation, op, rules, x, call.run)


def shift(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run an addition; it may add the bias of a layer that the same module has run.

    ``x @ w + b`` is one layer if ``b`` is made of parameters and has one number for each unit.
    """
    use, bias = _biased(form, call)
    if use is None or bias is None:
        return mixing(form, operation, call)
    target, plain = call.target, call.changed(out_of_place(call.func))
    operation.take_over(use.operation)
    biased = form.layer_use(operation, replace(use.affine, bias=bias), use.rules, use.x)
    use.z = None  # another reader of the layer without its bias is rare
    out = form.serve_merged(biased, plain.run)
    return out if target is None else written_over(target, out)


def _biased(form: Form, call: TorchCall) -> tuple[LayerUse | None, Tensor | None]:
    """Return the layer that an addition adds a bias to, and the bias."""
    y, b = call.argument(0, "input"), call.argument(1, "other")
    factor = call.kwargs.get("alpha", 1)
    if call.name != "add":
        factor = -factor
    elif factor == 1 and not call.is_data(y):
        y, b = b, y
    if not call.is_data(y) or not isinstance(b, Tensor) or call.kwargs.get("out") is not None:
        return None, None
    use = layer_of(y)
    if use is None or use.run is not form.naming.run or use.turn is not form.turn:
        return None, None
    if use.affine.bias is not None or use.scale is not None or not form.is_weights(b):
        return None, None
    values = use.affine.as_bias(b.detach(), y)
    return use, None if values is None else values * factor
