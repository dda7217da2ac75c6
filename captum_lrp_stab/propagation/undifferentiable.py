"""Relevance that raises an error when it is differentiated, where the gradient would be silently 0.

A pass returns relevance without the graph of its computation. A loss on it would train nothing, and
its gradient would be 0 without a warning. Whether a result enters a loss cannot be known before: so
if the inputs require a gradient, results get a node of the autograd graph that raises.
"""

from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.dispatch.compiler import uncompiled
from captum_lrp_stab.errors import NotDifferentiableError
from captum_lrp_stab.tensors import graph, nested
from captum_lrp_stab.tensors.nested import tensors_in


class _Refusal(torch.autograd.Function):
    """The identity, which cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, *sources: Tensor) -> Tensor:
        """Return a copy: a view could not be written to."""
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Raise NotDifferentiableError."""
        raise NotDifferentiableError(
            "relevance is returned without the graph of its computation and cannot be "
            "differentiated, so that a loss on it would train nothing; give relevance.detach() "
            "where it is a constant of the loss, or take an explanation that has derivatives, such "
            "as input times torch.autograd.grad(..., create_graph=True)"
        )


@uncompiled
def guarded(results: Any, model: nn.Module, inputs: Any) -> Any:
    """Return results with a node that refuses to be differentiated, if the inputs require it.

    Args:
        results: Tensors without a graph, in lists and tuples.
        model: What they are the relevance of.
        inputs: Its inputs.
    """
    given = [x for x in tensors_in((inputs,), {}) if x.requires_grad]
    if not given or not torch.is_grad_enabled():
        return results
    # what the inputs were made of, not the inputs: they would keep alive all that is in between
    nodes = graph.graph(given)
    made_of = [node.variable for node in nodes if hasattr(node, "variable")]
    sources = [x for x in (*given, *made_of, *model.parameters()) if x.is_leaf and x.requires_grad]
    unique = {id(source): source for source in sources}.values()
    return nested.mapped(lambda t: _Refusal.apply(t, *unique), results)
