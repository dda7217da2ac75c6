"""One use of a rule-bearing layer, and what its backward pass needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.rules.affine import Affine, Convolution, Dense, Scale
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.tensors import marks

_HALF = (torch.float16, torch.bfloat16)


@dataclass
class Turn:
    """The variant of the rules that is active: variants share one forward pass."""

    variant: int = 0


@dataclass(eq=False)
class LayerUse:
    """One use of a rule-bearing layer: the map, the rule, and what the backward pass needs."""

    operation: Operation
    affine: Affine  # what the operation itself computes
    rules: tuple[Rule, ...]  # one for each variant of a pass
    x: Tensor
    scale: Scale | None = None  # a batch norm that is one layer with it
    nonnegative: bool = False  # whether x is known to have no negative element
    turn: Turn = field(default_factory=Turn)
    z: Tensor | None = None  # an alias of the output's memory
    version: int = 0  # of z, as long as it is the pre-activation where it matters
    rectified: bool = False  # z is the ReLU of the output
    cut_off: bool = False  # an activation that is 0 below 0 reads the output
    keeps_sign: bool = False  # an activation that keeps the sign of the output reads it
    activation: Tensor | None = None  # its values, where c is still that of the activation
    _op: Affine | None = None
    readers: int = 0  # operations that read the output
    reads_input: bool = False  # whether x is an input of the model, moved or normalised at most
    run: object = None  # the one of a module that it is part of

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.operation.name

    @property
    def rule(self) -> Rule:
        """The active rule."""
        return self.rules[self.turn.variant]

    @property
    def op(self) -> Affine:
        """The layer's map, its batch norm included.

        It is computed on first use and freed by ``release``: the weights of all layers merged with
        their batch norms would take as much memory as the model.
        """
        if self._op is None:
            op: Affine | None = self.affine
            if self.scale is not None and self.scale.bias is not None:
                op = self.affine.scaled(self.scale.weight, self.scale.bias)
            assert op is not None  # is_mergeable has been asked
            self._op = op
        return self._op

    def is_wide(self, c: Tensor) -> bool:
        """Return whether a merged layer has more weights than outputs, and its output is kept."""
        intact = self.z is not None and self.z._version == self.version
        certain = not self.rectified or self.readers < 2
        more = self.affine.weight.numel() > c.numel()
        return more and intact and certain and self.scale is not None

    def through_batch_norm(self, c: Tensor) -> Tensor:
        """Return the coefficient of the batch norm's input, where the two are not merged."""
        assert self.scale is not None
        return c * self.affine.offset(self.scale.weight, c)

    @property
    def is_cut(self) -> bool:
        """Whether the coefficient is 0 wherever the output is not positive."""
        return self.cut_off and self.readers < 2

    def keep(self, z: Tensor) -> None:
        """Remember the output, without a copy."""
        self.z = z.detach()
        self.version = self.z._version
        self.rectified = False

    def keep_copy(self, output: Tensor) -> Tensor:
        """Remember and return a copy of the output, which is about to be written over.

        It costs less than to compute it again.
        """
        copy = output.detach().clone()
        self.keep(copy)
        return copy

    def is_output(self, t: Tensor) -> bool:
        """Return whether a tensor has the memory of the output."""
        return self.z is not None and self.z.data_ptr() == t.data_ptr()

    @property
    def is_elementwise(self) -> bool:
        """Whether under each rule a denominator of one output does not depend on the others."""
        return all(rule.is_elementwise for rule in self.rules)

    def keep_rectified(self, y: Tensor) -> None:
        """Remember the ReLU of the output in its place: where they differ, c is 0."""
        self.keep(y)
        self.rectified = True

    def pre_activation(self, op: Affine, x: Tensor, c: Tensor) -> tuple[Tensor, bool]:
        """Return z, and whether c is known to be 0 where it is.

        z is computed again if something has written over it that matters.
        """
        z = self.z
        if z is not None and z._version == self.version:
            # where z was negative its coefficient is 0, unless another operation has read it
            if not self.rectified or self.readers < 2:
                return z, self.rectified
            if not bool(((z == 0) & (c != 0)).any()):
                return z, True
        return op.apply(x, op.weight, op.bias), False

    def release(self, retains: bool = False) -> None:
        """Free the tensors, after the backward pass of the layer.

        Args:
            retains: Keep those that another backward pass needs.
        """
        self._op = self.activation = None
        if not retains:
            del self.x
            self.z = None


def layer_of(x: Tensor) -> LayerUse | None:
    """Return the layer whose output ``x`` is, if nothing has written to it since."""
    use: LayerUse | None = marks.get(x, "layer")
    return use


def count_readers(tensors: Iterable[Tensor]) -> None:
    """Note that an operation reads tensors, some of which may be outputs of layers."""
    for t in tensors:
        use = layer_of(t)
        if use is not None:
            use.readers += 1


def is_mergeable(use: LayerUse, x: Tensor) -> bool:
    """Return whether a batch norm of ``x``, the use's output, can be one layer with it."""
    dense_on_vectors = isinstance(use.affine, Dense) and x.dim() == 2
    batched = isinstance(use.affine, Convolution) and x.dim() == use.affine.dims + 2
    return not use.operation.batch_norm and (dense_on_vectors or batched)


Order = tuple[LayerUse, int]
"""A layer, and the version of its input."""


def keep_order(out: Tensor, order: Order | None) -> None:
    """Remember the layer whose output, or a non-decreasing function of it, is ``out``.

    In half precision, where rounding makes different values equal (``max_pools``).
    """
    if order is not None and out.dtype in _HALF:
        marks.put(out, "order", order)


def order_of(x: Tensor) -> Order | None:
    """Return the layer that knows the order of the values of ``x``, None if there is none."""
    order: Order | None = marks.get(x, "order") if x.dtype in _HALF else None
    return order
