"""What the graph of a finished pass says of its operations: which of them relevance reaches."""

from collections.abc import Sequence
from typing import Any

from captum_lrp_stab.dispatch import output_activation
from captum_lrp_stab.dispatch.operation import Operation, hidden_fallbacks, link
from captum_lrp_stab.tensors import graph


def settled(ran: Sequence[Operation], output: Any, whole: bool = False) -> list[Operation]:
    """Return the operations of a pass, with what the way from its output to the inputs says.

    Args:
        ran: Those that were seen, with their nodes of the graph, which they let go of.
        output: What the model returned.
        whole: Ask of every operation whether relevance reaches it, not of fallbacks alone, and
            what it reads.
    """
    reached = dict.fromkeys(graph.graph(output))
    for operation in ran:
        in_question = whole or operation.fallback or operation.is_merged
        if in_question and operation.nodes is not None:
            found = any(node in reached for node in operation.nodes)
            operation.reached = found or operation.is_absorbed
    behind = output_activation.find(output, ran)
    for operation in ran:
        operation.head = behind.get(operation)
    listed = [o for o in ran if o.reached or not o.is_merged]
    listed += hidden_fallbacks(reached)
    if whole:
        link(listed)
    for operation in ran:  # also of those left out: their nodes would keep the pass alive
        operation.nodes = None
    return listed
