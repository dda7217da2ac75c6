"""Operations of a forward pass, and what the backward pass of a rule-bearing layer needs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_lrp_stab import marks
from captum_lrp_stab.affine import Affine, Convolution, Dense
from captum_lrp_stab.captum_bridge import Rule


@dataclass(eq=False)
class Operation:
    """What one operation of a forward pass got."""

    name: str
    kind: str
    rule: Rule | None = None
    treatment: str = ""  # what relevance does here, where there is no rule
    shape: tuple[int, ...] = ()  # of the first output
    batch_norm: str = ""  # name of the batch norm merged into it
    is_merged: bool = False  # with its batch norm, which stands for both unless others read it too
    is_absorbed: bool = False  # a padding, by the layer that reads it
    fallback: str = ""  # why it gets its plain gradient
    reached: bool = True  # whether relevance comes here: not so where a gate is held constant
    nodes: tuple[Any, ...] | None = None  # of the autograd graph, until the pass is over
    ordinals: frozenset[int] = frozenset()  # its place in the pass, and its batch norm's
    reads: tuple["Operation", ...] = ()  # whose results it reads, as far as a plan has asked

    def describe_fallback(self) -> str:
        """Return the operation and why it gets its plain gradient, in words."""
        return f"{self.name} ({self.kind}: {self.fallback})"

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
        waiting = [p for node in operation.nodes or () if node for p, _ in node.next_functions]
        seen = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if owner.get(node, operation) is not operation:
                found[owner[node]] = None
            else:
                waiting.extend(previous for previous, _ in node.next_functions)
        operation.reads = tuple(found)


@dataclass(eq=False)
class Site:
    """One use of a rule-bearing layer: the map, the rule, and what the backward pass needs."""

    operation: Operation
    op: Affine
    rule: Rule
    x: Tensor
    z: Tensor = field(init=False)  # an alias of the output's memory
    version: int = field(init=False)  # of z, as long as it is the pre-activation where it matters
    rectified: bool = False  # an in-place ReLU has written over z
    reads_input: bool = False  # whether x is an input of the model as it is, or only moved

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.operation.name

    def keep(self, z: Tensor) -> None:
        """Remember the output, without a copy."""
        self.z = z.detach()
        self.version = self.z._version

    def pre_activation(self, x: Tensor, c: Tensor) -> Tensor:
        """Return z, computed again if something has written over it that matters."""
        intact = self.z._version == self.version
        if intact and self.rectified:
            # where z was negative its coefficient is 0, unless the model read z before the ReLU
            intact = not bool(((self.z == 0) & (c != 0)).any())
        return self.z if intact else self.op.apply(x, self.op.weight, self.op.bias)


def current_site(x: Tensor) -> Site | None:
    """Return the layer whose output ``x`` is, if nothing has written to it since."""
    site: Site | None = marks.get(x, "site")
    return site


def is_mergeable(site: Site, x: Tensor) -> bool:
    """Return whether a batch norm of ``x``, the site's output, can be one layer with it."""
    dense_on_vectors = isinstance(site.op, Dense) and x.dim() == 2
    batched = isinstance(site.op, Convolution) and x.dim() == site.op.dims + 2
    return not site.operation.batch_norm and (dense_on_vectors or batched)
