"""Which values of a pass depend on the model's inputs, and which operations ran out of sight.

A mode sees the torch functions that Python calls in its own thread. A function of ``torch.jit``,
another thread, or an extension in C++ runs where it sees nothing, but leaves nodes in the autograd
graph: between a value and the nodes of the operations that were seen. What ran there gets its plain
gradient, as a custom autograd function does, and is listed.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from captum_lrp_stab.tensors import graph
from captum_lrp_stab.tensors.graph import OPERATORS, OWN, before, library_of, made

_NO_OPERATION = frozenset(("AccumulateGrad", "CopySlices"))
"""Nodes of a write through a view, whose operation was seen, and of parameters."""


UNSEEN = "unseen"
"""The kind of an operation that the mode has not seen."""


class Origins:
    """The nodes of the autograd graph that depend on the model's inputs, as far as asked for."""

    def __init__(self) -> None:
        self._known: set[Any] = set()

    def note(self, results: Iterable[Tensor]) -> None:
        """Note inputs of the model, or results of operations on them."""
        self._known.update(t.grad_fn for t in results)

    def clear(self) -> None:
        """Free the graph."""
        self._known.clear()

    def has(self, t: Tensor, on_unseen: Callable[[Tensor, str], object]) -> bool:
        """Return whether a tensor depends on an input: not so one made of parameters.

        Args:
            t: The tensor.
            on_unseen: Called, once, with the names of operations out of sight that made it, if any.
        """
        if not made(t) or t.grad_fn in self._known:
            return made(t)
        base = t._base  # of a view, which gets a node of its own when something writes to its base
        origin = t if base is None else base
        nodes = list(graph.graph(origin, self._known))
        reads = [origin.grad_fn, *(p for node in nodes for p in before(node))]
        if not any(p in self._known for p in reads):
            return False
        self._count_readers(nodes)
        names = _names(nodes)
        if names:
            on_unseen(t, ", ".join(names))
        self._known |= {t.grad_fn, origin.grad_fn}
        return True

    def _count_readers(self, nodes: Iterable[Any]) -> None:
        """Note which layers have an output that is read out of sight."""
        for node in nodes:
            for p in () if library_of(node).startswith(OWN) else before(node):
                use = getattr(p, "layer_use", None)  # of a node that is the output of a layer
                if use is not None and p in self._known:
                    use.readers += 1


def _names(nodes: Iterable[Any]) -> list[str]:
    """Return the names of the functions of nodes, each once, without custom functions."""
    of_torch = (n for n in nodes if (library_of(n) or OPERATORS).startswith(OPERATORS))
    names = [n.name().rpartition("::")[2] for n in of_torch]
    return list(dict.fromkeys(name for name in names if name not in _NO_OPERATION))
