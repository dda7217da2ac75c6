"""The activation that makes a model's output of its logits: found, and left out where wanted.

Propagation should not begin at a softmax or sigmoid that makes the output: its gradient, and with
it all relevance, vanishes as the model becomes certain. Such a head is found in the graph of a
finished pass, before operations that only move or rescale its result; a softmax in the middle of a
model, as in attention or in a gate, is none. To leave it out a second pass runs it as the identity.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import gates
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.operations.table import names_of
from captum_lrp_stab.tensors import graph
from captum_lrp_stab.tensors.graph import before
from captum_lrp_stab.tensors.nested import tensors_in

_ACTIVATIONS = names_of("is_head")
_BEHIND = gates.PRESERVING | names_of("clamps") | frozenset(("log", "log10", "log2"))
"""Operations after which the result of heads still counts as one."""
_MOVING = names_of("moves")


def find(output: Any, planned: Sequence[Operation]) -> dict[Operation, str]:
    """Return the heads of an output, and for each the first operation after it that is no move.

    Args:
        output: What the model returned.
        planned: The operations of the pass, with their nodes of the graph.
    """
    if not any(operation.function in _ACTIVATIONS for operation in planned):
        return {}
    owners: dict[Any, list[Operation]] = {}
    for operation in planned:
        for node in operation.nodes or ():
            owners.setdefault(node, []).append(operation)
    whole = _Graph(owners)
    found: dict[Operation, str] = {}
    waiting = [(tensor.grad_fn, "") for tensor in tensors_in((output,), {})]
    seen = set()
    while waiting:
        node, behind = place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        for head in whole.heads(node):
            found[head] = found.get(head) or head.head or behind
        if not whole.moves(node) and not behind:
            if not whole.is_made_by_heads(node):
                continue
            behind = whole.name(node)
        waiting += [(previous, behind) for previous in whole.before(node)]
    return found


class _Graph:
    """The graph of a pass, and the operations that its nodes belong to.

    Args:
        owners: Of the nodes that an operation's results come from. Nodes inside one have none.
    """

    def __init__(self, owners: dict[Any, list[Operation]]) -> None:
        self._owners = owners

    def heads(self, node: Any) -> list[Operation]:
        """Return the activations that a node is the result of."""
        return [o for o in self._owners.get(node, ()) if o.function in _ACTIVATIONS]

    def name(self, node: Any) -> str:
        """Return the name of the operation that a node is the result of."""
        return next((o.name for o in self._owners.get(node, ())), "")

    def before(self, node: Any) -> list[Any]:
        """Return the nodes that a node's gradient goes to, without those of parameters."""
        if self.heads(node):
            return []
        return [p for p in before(node) if p is not None and not hasattr(p, "variable")]

    def moves(self, node: Any) -> bool:
        """Return whether a node moves values, or is no result of an operation."""
        owners = self._owners.get(node)
        if owners is None:
            return not list(graph.custom_functions([node]))
        return all(o.function in _MOVING for o in owners)

    def is_made_by_heads(self, node: Any) -> bool:
        """Return whether a node only rescales or adds up the results of heads."""
        waiting, seen = [node], {node}
        while waiting:
            node = waiting.pop()
            if self.heads(node):
                continue
            owners = self._owners.get(node, ())
            passes = self.moves(node) or all(o.function in _BEHIND for o in owners)
            previous = self.before(node) if passes else []
            if not previous:
                return False
            waiting += [p for p in previous if p not in seen]
            seen.update(previous)
        return True


def to_skip(planned: Sequence[Operation]) -> frozenset[int]:
    """Return the heads of a pass, by their ordinals.

    Raises:
        ModelError: One cannot be left out.
    """
    heads = [operation for operation in planned if operation.head is not None]
    for head in heads:
        if head.head:
            raise ModelError(
                f"skip_output_activation: between '{head.name}' ({head.kind}) and the output there "
                f"is '{head.head}', which does more than move values, so that the output has no "
                "logits of its own; explain a model that returns what is to be explained"
            )
        if not head.ordinals:
            raise ModelError(
                f"skip_output_activation: '{head.name}' ({head.kind}) runs inside a segment; leave "
                "the segment out of checkpoint, or name one that ends before it"
            )
    return frozenset().union(*(head.ordinals for head in heads))


def check_same(first: Sequence[Operation], second: Sequence[Operation]) -> None:
    """Raise ModelError if a pass without its head ran other operations than the one with it."""
    if [o.name for o in first] != [o.name for o in second]:
        raise ModelError(
            "skip_output_activation: the model looks at the values of its output activation, and "
            "computes something else without it; explain a model that returns the logits"
        )


def left_out(call: TorchCall) -> TorchCall:
    """Return the call that takes the place of a head's: it gives the logits."""
    x = call.x
    given = (*call.args[1:], *call.kwargs.values())
    dtype = next((v for v in given if isinstance(v, torch.dtype)), x.dtype)
    if call.writes:
        return TorchCall(Tensor.mul_, (x, 1), {}, call.data)
    if call.name == "softmin":
        return TorchCall(Tensor.neg, (x.to(dtype),), {}, call.data)
    if dtype == x.dtype:
        return TorchCall(Tensor.clone, (x,), {}, call.data)
    return TorchCall(Tensor.to, (x, dtype), {}, call.data)
