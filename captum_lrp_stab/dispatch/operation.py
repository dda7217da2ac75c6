"""The record of one operation of a forward pass."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from captum_lrp_stab.operations.gates import Operands
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.tensors.graph import before, custom_functions


@dataclass(eq=False)
class Operation:
    """What one operation of a forward pass got."""

    name: str
    kind: str
    owner: str = ""  # a layer whose weights it uses without calling it
    places: tuple[str, ...] = ()  # names under which it is looked at, and no module is
    layer: type[nn.Module] | None = None  # the type of layer that it is or stands for
    rule: Rule | None = None  # the one whose turn it is
    rules: tuple[Rule, ...] = ()  # one for each variant of a pass, where there is one
    treatment: str = ""  # what relevance does here, where there is no rule
    shape: tuple[int, ...] = ()  # of the first output
    batch_norm: str = ""  # name of the batch norm merged into it
    is_merged: bool = False  # with its batch norm, which stands for both unless others read it too
    is_absorbed: bool = False  # a padding, by the layer that reads it
    fallback: str = ""  # why it gets its plain gradient
    function: str = ""  # the canonical name of what is called
    head: str | None = None  # it makes the output; the first that is no move behind it, or ""
    reached: bool = True  # whether relevance comes here: not so where a gate is held constant
    nodes: tuple[Any, ...] | None = None  # of the autograd graph, until the pass is over
    ordinals: frozenset[int] = frozenset()  # its place in the pass, and its batch norm's
    reads: tuple["Operation", ...] = ()  # whose results it reads, as far as a plan has asked
    operands: Operands = field(default_factory=Operands)  # what it reads, while it runs

    @property
    def caveat(self) -> str:
        """Why relevance passes it by its plain gradient, "" if it does not, or does not pass it."""
        if self.head is not None:
            return "it makes the output, and saturates: explain what it reads"
        return self.fallback if self.reached else ""

    def describe_fallback(self) -> str:
        """Return the operation and why it gets its plain gradient, in words."""
        return f"{self.name} ({self.kind}: {self.caveat or self.fallback})"

    def note(self, outputs: Sequence[Tensor], inputs: Iterable[Tensor]) -> None:
        """Remember the shape and the graph's nodes of what came out."""
        self.shape = tuple(outputs[0].shape)
        written = {id(t) for t in inputs}
        if not any(t._is_view() and id(t) in written for t in outputs):
            self.nodes = tuple(t.grad_fn for t in outputs)
        # else a view was written to, which rewrites the graph: count it as reached


def names_of(operations: Sequence[Operation]) -> list[str]:
    """Return a name for each use of each layer: ``relu``, ``relu[1]``, ..."""
    counted: Counter[str] = Counter()
    names = []
    for operation in operations:
        use = counted[operation.name]
        counted[operation.name] += 1
        names.append(f"{operation.name}[{use}]" if use else operation.name)
    return names


def link(operations: Sequence[Operation]) -> None:
    """Note whose results each operation reads, from the graph of the pass."""
    owner = {node: o for o in operations for node in o.nodes or ()}
    for operation in operations:
        found: dict[Operation, None] = {}
        waiting = [p for node in operation.nodes or () if node for p in before(node)]
        seen = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if owner.get(node, operation) is not operation:
                found[owner[node]] = None
            else:
                waiting.extend(before(node))
        operation.reads = tuple(found)


def hidden_fallbacks(nodes: Iterable[Any]) -> list[Operation]:
    """Return the custom autograd functions in a graph, which get the backward they bring."""
    return [
        Operation(function.__name__, "autograd.Function", fallback="a custom backward pass")
        for function in custom_functions(nodes)
    ]
