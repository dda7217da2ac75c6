"""What a result can be compared with, by name or as an object.

A new reference is a subclass of ``Reference`` and an entry in ``NAMES``; its name stands in
``names.REFERENCES`` too, for the command line.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum.attr import LayerLRP as CaptumLayerLRP
from torch import Tensor

from captum_lrp_stab.comparison.base import Reference
from captum_lrp_stab.comparison.captum_reference import CaptumReference
from captum_lrp_stab.comparison.recording import Recording, Use, record
from captum_lrp_stab.comparison.zennit_reference import ZennitReference
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import InputError, LRPError, ReferenceFailedError
from captum_lrp_stab.explainer import Explainer
from captum_lrp_stab.propagation.modified_forward import ModifiedForward
from captum_lrp_stab.task import Task


class Float64Reference(Reference):
    """This package's run on a copy of the model in float64."""

    name = "float64"
    is_exact = True

    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Run this package's LRP in float64."""
        return record(task.copied(torch.float64), tuple(o.name for o in operations))


class ModifiedForwardReference(Reference):
    """The same rules by rewriting the forward pass (Montavon et al. 2019, Algorithm 8)."""

    name = "modified_forward"

    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Run this package's LRP as a modified forward pass."""
        changed = replace(task, form=ModifiedForward)
        return record(changed, tuple(o.name for o in operations))


class LRPReference(Reference):
    """Another ``LRP`` of this package: other rules, attention or merging, on its own model."""

    name = "LRP"

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer

    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Run the other ``LRP`` on the task's inputs, with its model in their dtype."""
        rules = self.explainer.current_rules()
        other = Task(
            self.explainer.model,
            task.inputs,
            task.target,
            task.additional_forward_args,
            stabilizer=task.stabilizer,
            attention=rules.attention,
            merge_batch_norm=rules.merge_batch_norm,
            fixed=rules,
        )
        parameters = (p for p in other.model.parameters() if p.is_floating_point())
        if other.model is not task.model and any(p.dtype != task.dtype for p in parameters):
            other = other.copied(task.dtype)
        return record(other, tuple(o.name for o in operations))


class CallableReference(Reference):
    """A function ``(model, inputs, target) -> relevance``.

    It gets a copy of the model. It may return a pair, the second item being the relevance of
    layers' outputs by name.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        inner = function.func if isinstance(function, partial) else function
        self.name = getattr(inner, "__name__", type(inner).__name__)

    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Call the function, and check what it returns.

        Raises:
            InputError: It returned something that is no relevance.
        """
        task = task.copied()
        inputs = task.inputs if len(task.inputs) > 1 else task.inputs[0]
        arguments = [task.model, inputs, task.target]
        if task.additional_forward_args is not None:
            arguments.append(task.additional_forward_args)
        try:
            with torch.enable_grad():
                result = self.function(*arguments)
        except LRPError as error:
            raise ReferenceFailedError(f"the reference {self.name} raised: {error}") from error
        layers: Any = {}
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
            result, layers = result
        relevances = result if isinstance(result, tuple) else (result,)
        device = task.inputs[0].device
        for value in relevances:
            self._check(value)
        shapes = {operation.name: operation.shape for operation in operations}
        for name, value in layers.items():
            self._check(value)
            if name not in shapes:
                raise InputError(
                    f"the reference {self.name} returned relevance of layer {name!r}, but the pass "
                    f"ran no such layer; it ran {', '.join(shapes)}"
                )
            if value.device != device or tuple(value.shape) != shapes[name]:
                raise InputError(
                    f"the reference {self.name} returned relevance of layer '{name}' of shape "
                    f"{tuple(value.shape)} on {value.device}; its output has the shape "
                    f"{shapes[name]}, on {device}"
                )
        outputs = {name: [Use([None], [R.detach().clone()])] for name, R in layers.items()}
        return Recording(tuple(r.detach().clone() for r in relevances), None, outputs)

    def _check(self, value: Any) -> None:
        what = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            if value.is_floating_point() and value.layout is torch.strided:
                return
            what = f"a tensor of {value.dtype} and {value.layout}"
        raise InputError(
            f"the reference {self.name} returned {what}; it must return the relevance of the "
            "inputs, a tensor for each, dense and floating point"
        )


NAMES: dict[str, Callable[[], Reference]] = {
    "zennit": ZennitReference,
    "captum": CaptumReference,
    "captum_driver": lambda: CaptumReference(own_rules=False),
    "float64": Float64Reference,
    "modified_forward": ModifiedForwardReference,
}
"""How each reference that has a name is made."""


def reference_of(reference: Any) -> Reference:
    """Return a reference, given by its name, an ``LRP``, a zennit composite or a function.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(reference, str) and reference.replace("-", "_") in NAMES:
        return NAMES[reference.replace("-", "_")]()
    if isinstance(reference, Reference):
        return reference
    if isinstance(reference, Explainer) and not isinstance(reference, CaptumLayerLRP):
        return LRPReference(reference)
    zennit = sys.modules.get("zennit.core")  # or it cannot be one of zennit's
    if zennit is not None and isinstance(reference, zennit.Composite):
        return ZennitReference(reference)
    if callable(reference) and not isinstance(reference, type):
        return CallableReference(reference)
    raise InputError(
        f"reference is {reference!r}; give one of {', '.join(NAMES)}, an LRP with other rules, a "
        "composite of zennit, or a function (model, inputs, target) -> relevance"
    )
