"""What a treatment may ask of a pass, and how the pass carries relevance.

The mode (``mode``) sees the operations and decides which treatment each gets; a treatment knows the
mode by this class alone. The subclasses in ``propagation`` say how relevance is carried: the
gradient form, the relevance form, the mixed form and the modified forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import LayerUse, Turn
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.rules.affine import Affine, Scale
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import RuleSet

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.naming import Naming
    from captum_lrp_stab.dispatch.rule_assignment import Assignment

Compute = Callable[[], Tensor]
"""Computes the output of a layer."""
Follow = Callable[[Any], None]
"""Called with the result of an operation that reads inputs of the model alone."""


class Form(ABC):
    """One pass of a model, as treatments see it."""

    optimize: bool  # whether faster computations are allowed
    turn: Turn  # which variant of the rules is active
    naming: Naming  # which module is running
    assignment: Assignment  # which rule each operation gets

    # the pass ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def rule_set(self) -> RuleSet:
        """What the user chose; of several variants the first."""

    @abstractmethod
    def depends_on_input(self, t: Tensor) -> bool:
        """Return whether a tensor depends on the model's input: not so one made of parameters."""

    @abstractmethod
    def is_weights(self, t: Tensor) -> bool:
        """Return whether a tensor is a parameter of the model, or made of parameters."""

    @abstractmethod
    def known(self, t: Tensor) -> Tensor:
        """Return a tensor that a treatment computed from data, noted as data too."""

    @abstractmethod
    def cut_after(self, one: Any) -> Any:
        """Return what keeps a tensor ``x`` of the graph, to be cut from it after the pass."""

    @abstractmethod
    def rules_of(self, operation: Operation, call: TorchCall, x: Tensor) -> tuple[Rule, ...]:
        """Return the rules of a layer, one for each variant; none if no variant has one."""

    @abstractmethod
    def layer_use(
        self,
        operation: Operation,
        op: Affine,
        rules: tuple[Rule, ...],
        x: Tensor,
        scale: Scale | None = None,
    ) -> LayerUse:
        """Return the use of a layer under its rule.

        Args:
            operation: Its record.
            op: Its map.
            rules: One for each variant.
            x: Its input.
            scale: A batch norm that is one layer with it.
        """

    @abstractmethod
    def serve(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the output of a layer, with its rule as backward pass."""

    @abstractmethod
    def serve_merged(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the output of a layer that its batch norm or its bias is one layer with."""

    # how relevance is carried --------------------------------------------------------------------

    @abstractmethod
    def affine(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the output of a layer, connected to ``use.x`` by its rule."""

    @abstractmethod
    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)``, connected to ``z`` so that relevance passes unchanged.

        Args:
            z: Where it is evaluated.
            slope: Of ``g`` at 0.
            g: The activation, out of place.
        """

    def activation_in_place(
        self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor], kept: Tensor
    ) -> Tensor:
        """Write ``g(z)`` over ``z`` and return it, connected as by :meth:`activation`.

        Args:
            z: Where it is evaluated.
            slope: Of ``g`` at 0.
            g: The activation, in place.
            kept: A copy of ``z``.
        """
        # of a copy, which the backward pass may read when z has other values
        return z.copy_(self.activation(z.clone(), slope, lambda t: g(t.clone())))

    def rectifier(self, call: TorchCall) -> Any:
        """Run an activation that is linear on each side of 0."""
        return call.run()

    def mixing(self, operation: Operation, call: TorchCall) -> Any:
        """Run an operation that mixes its inputs: LRP-0, or a linearized function's gradient."""
        return call.run()

    def moving(self, call: TorchCall) -> Any:
        """Run an operation that moves values, and relevance with them."""
        return call.run()

    def carries_relevance(self, t: Tensor) -> bool:
        """Return whether the backward pass gives this tensor relevance, not a coefficient."""
        return False

    def reads_relevance(self, operation: Operation) -> bool:
        """Return whether an operation propagates relevance, not coefficients."""
        return False

    def gathered(self, x: Tensor, sources: Iterable[Tensor]) -> Tensor:
        """Return ``x``, which holds copies of what an operation reads."""
        return x

    def following(self, call: TorchCall) -> Follow | None:
        """Return what is to be called with the result of an operation that reads inputs alone."""
        return None

    def on_arguments(self, operation: Operation, call: TorchCall) -> TorchCall:
        """Return the call with what an operation gets in place of its arguments."""
        return call

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Return what an operation gives in place of its output.

        Args:
            operation: The operation.
            output: What it gives.
            result: What it made: the output, or what it wrote to.
        """
        return output
