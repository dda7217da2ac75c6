"""Which tensors hold values of the model's inputs: a layer that reads one is a first layer.

Presets give a first layer a rule of its own, and a network can have several (two inputs, a siamese
network, stems side by side). On the way there values may be moved, picked, resampled, normalised
and passed through activations, by operations of which each has an LRP rule. A sum over all of an
input, such as its mean, is no longer a value of it; subtracting that from the input is a
normalisation.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.operations.table import Kind
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.graph import graph
from captum_lrp_stab.tensors.nested import tensors_in


def is_read_by_first(x: Tensor, ran: Iterable[Operation]) -> bool:
    """Return whether a layer that reads a tensor is a first layer.

    Args:
        x: The tensor.
        ran: The operations before it; if relevance would pass one without a rule on its way from x,
            the layer is no first layer.
    """
    if not marks.get(x, "input"):
        return False
    without_rule = {node for o in ran if o.fallback for node in o.nodes or ()}
    return not without_rule or without_rule.isdisjoint(graph(x))


def mark(inputs: Sequence[Tensor], holds: bool = True) -> None:
    """Remember that tensors are made of the inputs, without a layer.

    Args:
        inputs: These tensors.
        holds: Whether they hold values of the inputs.
    """
    for t in inputs:
        marks.put(t, "input", holds)


def keeps(kind: Kind) -> bool:
    """Return whether an operation on values of the inputs gives such."""
    moves = kind.moves or kind.selects or kind.resamples
    scales = kind.adds or kind.scales or kind.shifts_and_scales or kind.normalises
    activates = kind.activation or kind.clamps or kind.chooses or kind.power or kind.rectifies
    return moves or scales or activates


def among(data: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
    """Return what an operation reads that is made of the inputs, and whether it holds their values.

    Ask before the operation runs: it may write over them. The bases of views are among them.

    Args:
        data: The tensors it reads that depend on the inputs.

    Returns:
        Nothing if one of them is computed by a layer.
    """
    known = []
    for t in data:
        holds = marks.get(t, "input")
        if holds is None:
            return []
        known.append((t, holds))
    bases = [t._base for t in data if t._is_view() and t._base is not None]
    known += [(base, marks.get(base, "input")) for base in bases]
    return [(t, holds) for t, holds in known if holds is not None]


def note(
    operation: Operation,
    kind: Kind,
    result: Any,
    read: Sequence[tuple[Tensor, bool]],
) -> None:
    """Remember that the result of an operation is made of the inputs, unless it is a layer's.

    Args:
        operation: Its record.
        kind: What is known of its function.
        result: What it made.
        read: What it has read, as :func:`among` gives it; where it has written over that, it is
            what it was.
    """
    is_layer = operation.layer is not None and issubclass(operation.layer, types.Linear)
    if is_layer or not read:
        return
    for t, holds in read:
        marks.put(t, "input", holds)
    mark(tensors_in((result,), {}), keeps(kind) and any(holds for _, holds in read))
