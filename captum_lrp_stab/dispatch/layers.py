"""Layers with a rule: linear layers, convolutions, average pools and batch norm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import is_mergeable, layer_of
from captum_lrp_stab.dispatch.operation import Operation, Treatment
from captum_lrp_stab.dispatch.products import product
from captum_lrp_stab.dispatch.without_rule import mixing, moving
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import gates, linearized
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.rules import affine_builders, complex_layers
from captum_lrp_stab.rules.affine import Affine, Convolution, Pad, Scale
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.tensors import marks

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Compute, Form


@dataclass(eq=False)
class Padded:
    """The tensor that another one is a padding of, and the padding."""

    x: Tensor
    version: int  # of x
    pad: Pad
    operations: tuple[Operation, ...]


_BATCH_NORM_ARGUMENTS = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def affine(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a linear layer, a convolution or an average pool under its rule."""
    x = call.x
    if not call.is_data(x) or len(call.data) > 1:
        return product(form, operation, call)
    padded = _padded(x)
    rules = form.rules_of(operation, call, x if padded is None else padded.x)
    if not rules:
        return mixing(form, operation, call)
    op = affine_builders.of_call(call.func, call.args, call.kwargs)
    # padded elements have relevance under these rules, and are no part of the layer's input
    direct = not all(rule.proportional for rule in rules)
    if padded is not None and direct and isinstance(op, Convolution) and op.can_pad(padded.pad):
        x, op = padded.x, replace(op, pad=padded.pad)
        for absorbed in padded.operations:
            operation.ordinals |= absorbed.ordinals
            absorbed.is_absorbed = True
    known = call.gates.inherited(call)
    return gates.marked(served(form, operation, op, rules, x, call.run), known)


def _padded(x: Tensor) -> Padded | None:
    """Return what a tensor is a padding of, None if it is none, or that has been written over."""
    padded: Padded | None = marks.get(x, "padded")
    return None if padded is None or padded.x._version != padded.version else padded


def served(
    form: Form,
    operation: Operation,
    op: Affine,
    rules: tuple[Rule, ...],
    x: Tensor,
    compute: Compute,
) -> Tensor:
    """Return the output of a layer; one of complex numbers is a layer of their parts."""
    if not op.weight.is_complex():
        return form.serve(form.layer_use(operation, op, rules, x), compute)
    pairs = complex_layers.split(x, op)
    marks.carry(x, pairs, without=("nonnegative", "order", "padded", "layer"))
    use = form.layer_use(operation, complex_layers.on_pairs(op), rules, pairs)
    out = form.serve(use, lambda: complex_layers.split(compute(), op))
    return complex_layers.join(out, op)


def batch_norm(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a batch norm as one layer with the linear layer before it, or under its own rule.

    Raises:
        ModelError: It normalises by the statistics of the batch.
    """
    x, name = call.x, operation.name
    bound = dict(zip(_BATCH_NORM_ARGUMENTS, call.args, strict=False)) | call.kwargs
    if bound.get("training"):
        raise ModelError(
            f"batch norm '{name}' normalises by the statistics of the batch, so that one "
            "sample's relevance would depend on the others; call model.eval(), or give it "
            "running statistics"
        )
    if call.any_is_data(call.others):
        operation.fallback = "its scale or its shift depend on the input"
        return linearized.batch_norm_by_data(**bound)
    use = layer_of(x)
    if use is not None and use.turn is not form.turn:
        use = None  # of an earlier pass
    cut = marks.get(x, "cut")
    if form.rule_set.merge_batch_norm and cut is not None:
        raise ModelError(
            f"checkpoint: batch norm '{name}' and the layer before it are one layer, and segment "
            f"'{cut}' has one of them alone; name the module around both, or set "
            "merge_batch_norm=False"
        )
    if form.rule_set.merge_batch_norm and use is not None and is_mergeable(use, x):
        scale = affine_builders.of_call(call.func, call.args, call.kwargs)
        assert isinstance(scale, Scale)
        operation.take_over(use.operation)
        operation.batch_norm = name
        merged = form.layer_use(operation, use.affine, use.rules, use.x, scale)
        use.z = None  # another reader of the layer without its batch norm is rare
        return form.serve_merged(merged, call.run)
    rules = form.rules_of(operation, call, x)
    if not rules:
        return mixing(form, operation, call.changed(linearized.batch_norm))
    op = affine_builders.of_call(call.func, call.args, call.kwargs)
    return form.serve(form.layer_use(operation, op, rules, x), call.run)


def native_batch_norm(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run ``torch.batch_norm``, which has its arguments in another order."""
    names = "input weight bias running_mean running_var training momentum eps cudnn_enabled"
    bound = dict(zip(names.split(), call.args, strict=False)) | call.kwargs
    bound.pop("cudnn_enabled", None)
    return batch_norm(form, operation, call.changed(F.batch_norm, (), bound))


def pad(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a padding, which may become part of the convolution that follows."""
    x, out = call.x, moving(form, operation, call)
    bound = dict(zip(("input", "pad", "mode", "value"), call.args, strict=False)) | call.kwargs
    padding = bound.get("mode", "constant")
    if padding != "constant" or not bound.get("value"):
        own, before = Pad(tuple(bound["pad"]), padding), _padded(x)
        both = None if before is None else before.pad.then(own)
        if before is None or both is None:
            padded = Padded(x, x._version, own, (operation,))
        else:
            padded = replace(before, pad=both, operations=(*before.operations, operation))
        marks.put(out, "padded", form.cut_after(padded))
    else:
        operation.treatment = Treatment.MOVED_BESIDE_CONSTANT
    return out
