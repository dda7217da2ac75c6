"""Reading the autograd graph."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.tensors.nested import tensors_in


def is_transformed() -> bool:
    """Return whether a transformation of torch.func is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def made(tensor: Tensor) -> bool:
    """Return whether a tensor is the result of a differentiable operation."""
    return tensor.requires_grad and not tensor.is_leaf


OWN = "captum_lrp_stab."
OPERATORS = "torch._library."
"""Where the functions of a library's operators come from, which a mode sees like any other."""


def library_of(node: Any) -> str:
    """Return the module that brings a node of a graph, "" if it is torch's own.

    Example:
        >>> import torch
        >>> library_of(torch.ones(1, requires_grad=True).exp().grad_fn)
        ''
    """
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return ""
    module: str = node._forward_cls.__module__  # type: ignore[attr-defined]
    return module


def custom_functions(nodes: Iterable[Any]) -> Iterator[type[torch.autograd.Function]]:
    """Yield the custom autograd functions among the nodes of a graph, this package's aside.

    They are no torch functions, so that only the finished graph shows them.
    """
    for node in nodes:
        library = library_of(node)
        if library and not library.startswith((OWN, OPERATORS)):
            function: type[torch.autograd.Function] = node._forward_cls
            if function.__name__ != "BackwardHookFunction":  # a module's full hook
                yield function


def graph(output: Any, known: set[Any] | None = None) -> Iterator[Any]:
    """Yield the nodes of the autograd graph that the tensors in ``output`` come from.

    Args:
        output: A tensor, or tensors in lists, tuples and dicts.
        known: Nodes where to go no further.
    """
    seen: set[Any] = set() if known is None else set(known)
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors_in((output,), {})]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(before(node))
            yield node


def before(node: Any) -> list[Any]:
    """Return the nodes of the autograd graph that a node's gradient goes to, None among them."""
    try:
        return [previous for previous, _ in node.next_functions]
    except RuntimeError:  # PyTorch 2.4, of a custom function whose graph has been freed
        return []
