"""The nodes of the autograd graph whose backward pass is this package's own, in gradient form.

Nodes keep detached tensors only. A tensor that the model writes over in place, as in ``x += f(x)``,
is afterwards a result of the nodes that have read it: if one of them kept it undetached, the two
would hold each other, and all the activations of the pass, for ever, because the garbage collector
does not see what the graph holds. A detached tensor shares the version by which autograd notices
such a write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import activations

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Compute
    from captum_lrp_stab.propagation.gradient_form import GradientForm


class RuleStep(torch.autograd.Function):
    """A layer's output whose backward pass is the coefficient of its rule."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        carrier: Tensor | None,
        compute: Compute,
        use: LayerUse,
        form: GradientForm,
    ) -> Tensor:
        """Return the layer's own output."""
        z = compute()
        if z._is_view():  # an in-place operation on the output of a Function must not meet a view
            z = z.clone()
        use.keep(z)
        ctx.save_for_backward(x.detach())
        ctx.layer_use, ctx.form, ctx.has_carrier = use, form, carrier is not None
        return z

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Return the coefficient for x, or the relevance for the carrier."""
        use, c = ctx.layer_use, upstream[0]
        try:
            (x,) = ctx.saved_tensors
        except RuntimeError as error:
            raise ModelError(
                f"layer '{use.name}': the model writes over the layer's input, in place, after "
                "the layer has read it; make that operation out of place"
            ) from error
        form: GradientForm = ctx.form
        result = form.propagated(use, x, c)
        direct = ctx.has_carrier and not use.rule.proportional
        gradients = (None, result) if direct else (result, None)
        return *gradients, None, None, None


class FactorStep(torch.autograd.Function):
    """An activation whose backward pass multiplies by g(z) / z; ``g`` must not hold z."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        slope: float,
        g: Callable[[Tensor], Tensor],
        kept: Tensor | None,
        use: LayerUse | None,
    ) -> Tensor:
        """Return ``g(z)``."""
        y = g(z)
        if kept is not None:  # g has written over z
            ctx.mark_dirty(z)
        ctx.save_for_backward(z.detach() if kept is None else kept)
        ctx.y, ctx.version, ctx.in_place = y.detach(), y._version, kept is not None
        ctx.slope, ctx.g, ctx.use = slope, g, use
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Return ``c * g(z) / z``."""
        try:
            (z,) = ctx.saved_tensors
        except RuntimeError as error:
            raise ModelError(
                "the model writes over the input of an activation, in place, after the activation "
                "has read it; make that operation out of place"
            ) from error
        y = ctx.y
        if y._version != ctx.version:  # written over since
            y = ctx.g(z.clone() if ctx.in_place else z)
        c, use = upstream[0], ctx.use
        if use is not None and use.readers < 2 and c.shape == y.shape:
            use.activation = y  # the layer before it divides by z in the same step
        else:
            c = activations.scaled(c, z, y, ctx.slope)
        return c, None, None, None, None
