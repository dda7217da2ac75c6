"""What a form of propagation says of the operations that a pass meets.

The mode (``interception``) decides what each operation gets; how relevance is carried through it is
the matter of ``gradient_form``, ``relevance_form``, ``mixed_form`` and ``modified_forward``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import Site
from captum_lrp_stab.dispatch.operation import Operation

Call = Callable[[], Tensor]


class Carrying(ABC):
    """The steps that carry relevance; those that are not abstract leave it to autograd."""

    @abstractmethod
    def affine(self, site: Site, call: Call) -> Tensor:
        """Return the output of a rule-bearing layer, connected to ``site.x`` by its rule."""

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
        # of a copy, which the backward pass may look at when z has other values
        return z.copy_(self.activation(z.clone(), slope, lambda t: g(t.clone())))

    def rectifier(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an activation that is linear on each side of 0."""
        return func(*args, **kwargs)

    def mixing(self, operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation that mixes its inputs, under LRP-0 or with a surrogate's gradient."""
        return func(*args, **kwargs)

    def moving(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run an operation that moves values, and relevance with them."""
        return func(*args, **kwargs)

    def carries_relevance(self, t: Tensor) -> bool:
        """Return whether the backward pass hands this tensor relevance, not a coefficient."""
        return False

    def reads_relevance(self, operation: Operation) -> bool:
        """Return whether an operation hands down relevance, not coefficients."""
        return False

    def gathered(self, x: Tensor, operands: Iterable[Tensor]) -> Tensor:
        """Return ``x``, which holds copies of what an operation reads."""
        return x

    def following(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Follow | None:
        """Return what is to be called with the result of an operation that reads inputs alone."""
        return None

    def on_operands(
        self, operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, Any]:
        """Return what an operation gets in place of its arguments."""
        return args, kwargs

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Return what an operation gives in place of its output.

        Args:
            operation: The operation.
            output: What it gives.
            result: What it made: the output, or what it wrote to.
        """
        return output


Follow = Callable[[Any], None]
