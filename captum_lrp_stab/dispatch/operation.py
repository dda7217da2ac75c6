"""The record of one operation of a forward pass, and what happens to relevance there."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.tensors.graph import before, custom_functions


class Treatment(Enum):
    """What happens to relevance at an operation without a rule; the values are words for it."""

    NONE = ""
    LRP_0 = "LRP-0"
    MOVED = "moved"
    MOVED_BESIDE_CONSTANT = "moved, beside a constant"
    PASSED = "passed"
    GATED = "gate held constant"
    SHARED = "1/{factors} to each factor"
    DIVISOR_HELD = "divisor held constant"
    STATISTICS_HELD = "statistics held constant"
    SOFTMAX = "softmax by its gradient"

    @property
    def changes_nothing(self) -> bool:
        """Whether each value keeps its relevance, wherever it is moved to."""
        return self in (Treatment.MOVED, Treatment.PASSED)

    @property
    def mixes(self) -> bool:
        """Whether the relevance of one value goes to several."""
        moves = self.changes_nothing or self is Treatment.MOVED_BESIDE_CONSTANT
        return not moves and self is not Treatment.NONE


@dataclass(eq=False)
class Operation:
    """One operation of a forward pass."""

    name: str
    kind: str
    owner: str = ""  # a layer whose weights it uses without calling it
    probed: tuple[str, ...] = ()  # names under which it is probed, and no module is
    layer: type[nn.Module] | None = None  # the type of layer that it is or stands for
    rule: Rule | None = None  # the active one
    rules: tuple[Rule, ...] = ()  # one for each variant of a pass, where there is one
    treatment: Treatment = Treatment.NONE  # where there is no rule
    factors: int | str = 1  # of a product, which share the relevance
    shape: tuple[int, ...] = ()  # of the first output
    batch_norm: str = ""  # name of the batch norm merged into it
    is_merged: bool = False  # with its batch norm, which stands for both unless others read it too
    is_absorbed: bool = False  # a padding, by the layer that reads it
    fallback: str = ""  # why it gets its plain gradient
    function: str = ""  # the canonical name of what is called
    head: str | None = None  # if it makes the output: the first operation after it that does
    # not only move values, or ""
    reached: bool = True  # whether relevance comes here: not so where a gate is held constant
    nodes: tuple[Any, ...] | None = None  # of the autograd graph, until the pass is over
    ordinals: frozenset[int] = frozenset()  # its place in the pass, and its batch norm's
    reads: tuple["Operation", ...] = ()  # whose results it reads, as far as a plan has asked

    @property
    def treatment_in_words(self) -> str:
        """What happens to relevance here, in words, where there is no rule."""
        return self.treatment.value.format(factors=self.factors)

    @property
    def caveat(self) -> str:
        """Why relevance passes it by its plain gradient, "" if it does not, or does not pass it."""
        if self.head is not None:
            return "it makes the output, and saturates: explain what it reads"
        return self.fallback if self.reached else ""

    def describe_fallback(self) -> str:
        """Return the operation and why it gets its plain gradient, in words."""
        return f"{self.name} ({self.kind}: {self.caveat or self.fallback})"

    def take_over(self, other: "Operation") -> None:
        """Stand for another operation as well, such as a layer that a batch norm is merged with."""
        other.is_merged = True
        self.name, self.kind = other.name, other.kind
        self.layer, self.owner = other.layer, other.owner
        self.ordinals |= other.ordinals

    def note(self, outputs: Sequence[Tensor], inputs: Iterable[Tensor]) -> None:
        """Remember the shape and the graph's nodes of what came out."""
        self.shape = tuple(outputs[0].shape)
        views = {id(t) for t in outputs if t._is_view()}
        if views.isdisjoint(map(id, inputs)):
            self.nodes = tuple([t.grad_fn for t in outputs])
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
    """Return the custom autograd functions in a graph, whose backward pass stays their own."""
    return [
        Operation(function.__name__, "autograd.Function", fallback="a custom backward pass")
        for function in custom_functions(nodes)
    ]
