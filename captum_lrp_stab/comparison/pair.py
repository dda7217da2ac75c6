"""Two runs side by side, layer by layer, and the first place at which they part."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_lrp_stab.comparison.agreement import Agreement, agreement
from captum_lrp_stab.comparison.recording import Recording, Use
from captum_lrp_stab.sites import Operation


@dataclass(frozen=True)
class LayerAgreement:
    """One use of one layer on both sides; what either side could not see is None.

    ``output`` compares the relevance of the layer's output, ``input`` what the layer hands down to
    its input, ``value`` is the relative difference of the outputs themselves.
    """

    name: str
    kind: str
    rule: str
    output: Agreement | None
    input: Agreement | None
    value: float | None


@dataclass(frozen=True)
class Divergence:
    """The first place at which two runs part.

    In the forward pass it is the first layer whose output differs although what it reads does not;
    else, in the backward pass from the score, the first that hands down other relevance although
    it was handed the same. Where the reference could not be watched in between, ``candidates``
    are all operations that may be the one.
    """

    name: str
    kind: str
    direction: str  # "forward" or "backward"
    relative_l2: float | None  # None where a side is not finite
    candidates: tuple[str, ...]


class Pair:
    """Two recordings of one attribution.

    Args:
        ours: This package's.
        reference: The other.
        operations: This package's operations, in order of execution, with what each reads.
    """

    def __init__(
        self, ours: Recording, reference: Recording, operations: Sequence[Operation]
    ) -> None:
        self.ours, self.reference, self.operations = ours, reference, operations
        self.overall = agreement(ours.relevances, reference.relevances)
        uses: dict[str, int] = {}
        self.layers = []
        for operation in operations:
            use = uses.get(operation.name, 0)
            uses[operation.name] = use + 1
            self.layers.append(self._compared(operation, use))

    def _compared(self, operation: Operation, use: int) -> LayerAgreement:
        sides = self.ours, self.reference
        outputs = _same_use([side.outputs.get(operation.name, ()) for side in sides], use)
        inputs = _same_use([side.inputs.get(operation.name, ()) for side in sides], use)
        return LayerAgreement(
            operation.name if use == 0 else f"{operation.name}[{use}]",
            operation.kind + (f" + {operation.batch_norm}" if operation.batch_norm else ""),
            operation.treatment if operation.rule is None else repr(operation.rule),
            _relevance_agreement(outputs),
            _relevance_agreement(inputs),
            _value_difference(outputs),
        )

    def divergence(self, tolerance: float) -> Divergence | None:
        """Return the first place at which the runs part by more than a tolerance."""
        return self._forward(tolerance) or self._backward(tolerance)

    def _forward(self, tolerance: float) -> Divergence | None:
        differs = {
            operation: layer.value is not None and not layer.value <= tolerance
            for operation, layer in zip(self.operations, self.layers, strict=True)
        }
        for operation, layer in zip(self.operations, self.layers, strict=True):
            if differs[operation] and not any(differs.get(o) for o in operation.reads):
                return Divergence(layer.name, layer.kind, "forward", layer.value, (layer.name,))
        return None

    def _backward(self, tolerance: float) -> Divergence | None:
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            if layer.output is not None and not layer.output.within(tolerance):
                return self._between(self._readers(self.operations[index]), layer.output, tolerance)
            if layer.input is not None and not layer.input.within(tolerance):
                return Divergence(
                    layer.name, layer.kind, "backward", layer.input.relative_l2, (layer.name,)
                )
        if self.overall.within(tolerance):
            return None
        first = [i for i, operation in enumerate(self.operations) if not operation.reads]
        return self._between(first, self.overall, tolerance)

    def _readers(self, operation: Operation) -> list[int]:
        return [i for i, o in enumerate(self.operations) if operation in o.reads]

    def _between(self, readers: list[int], found: Agreement, tolerance: float) -> Divergence:
        """Return the operations between relevance that differs and relevance that agrees."""
        waiting, candidates = readers, []
        while waiting:
            index = waiting.pop()
            layer = self.layers[index]
            agrees = layer.input is not None and layer.input.within(tolerance)
            if index in candidates or agrees:
                continue
            candidates.append(index)
            if layer.output is None:  # not watched: it may hand down what was wrong before it
                waiting += self._readers(self.operations[index])
        if not candidates:
            return Divergence("the score", "", "backward", found.relative_l2, ())
        candidates.sort(key=self._innocence)
        names = tuple(self.layers[i].name for i in candidates)
        kind = self.layers[candidates[0]].kind
        return Divergence(names[0], kind, "backward", found.relative_l2, names)

    def _innocence(self, index: int) -> tuple[int, int]:
        """Return what sorts the likely culprits first: those that mix values, then by place."""
        operation = self.operations[index]
        mixes = operation.rule is not None or operation.treatment not in ("moved", "passed")
        return (not mixes, -index)

    def layer_of(self, name: str) -> LayerAgreement | None:
        """Return a layer by the name it has in ``layers``."""
        return next((layer for layer in self.layers if layer.name == name), None)


def _same_use(sides: Sequence[Sequence[Use]], use: int) -> tuple[Use, Use] | None:
    """Return one use of a layer on both sides, None if they did not run it equally often."""
    ours, theirs = sides
    if len(ours) != len(theirs) or use >= len(ours):
        return None
    return ours[use], theirs[use]


def _relevance_agreement(uses: tuple[Use, Use] | None) -> Agreement | None:
    return None if uses is None else _if_alike(*(use.relevance for use in uses))


def _if_alike(ours: list[Tensor] | None, theirs: list[Tensor] | None) -> Agreement | None:
    if ours is None or theirs is None:
        return None
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return None
    return agreement(ours, theirs)


def _value_difference(uses: tuple[Use, Use] | None) -> float | None:
    if uses is None:
        return None
    ours, theirs = (use.value for use in uses)
    if ours is None or theirs is None or [t.shape for t in ours] != [t.shape for t in theirs]:
        return None
    a, b = (torch.cat([t.double().flatten() for t in side]) for side in (ours, theirs))
    norm = float(b.norm())
    return float((a - b).norm()) / norm if norm else 0.0 if not float(a.norm()) else float("inf")
