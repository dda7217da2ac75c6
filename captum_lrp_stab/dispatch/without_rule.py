"""Operations without a rule of their own: linear, moving or selecting values, activations.

Source: Bach et al. 2015.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.dispatch import max_pools
from captum_lrp_stab.dispatch.layer_use import keep_order, layer_of, order_of
from captum_lrp_stab.dispatch.operation import Operation, Treatment
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import activations, gates
from captum_lrp_stab.operations.gates import Gate

if TYPE_CHECKING:
    from captum_lrp_stab.dispatch.form import Form
    from captum_lrp_stab.operations.calls import TorchCall

LINEAR_IN_ONE = {
    "cholesky_solve": (0, "input"),
    "cumulative_trapezoid": (0, "y"),
    "deform_conv2d": (0, "input"),
    "grid_sample": (0, "input"),
    "grid_sampler": (0, "input"),
    "grid_sampler_2d": (0, "input"),
    "grid_sampler_3d": (0, "input"),
    "ldexp": (0, "input"),
    "polar": (0, "abs"),
    "ps_roi_align": (0, "input"),
    "ps_roi_pool": (0, "input"),
    "roi_align": (0, "input"),
    "roi_pool": (0, "input"),
    "solve": (1, "B"),
    "solve_triangular": (1, "B"),
    "trapezoid": (0, "y"),
    "trapz": (0, "y"),
    "triangular_solve": (0, "b"),
}
"""The position and the name of the argument that an operation is linear in."""
_REDUCTION = {"index_reduce": 4, "scatter_reduce": 4, "segment_reduce": 1}
"""The position of the argument that names the reduction."""


def unknown(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run an operation of no known kind, under its plain gradient."""
    operation.fallback = "no LRP rule is known for this operation"
    return call.run()


def mixing(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run an operation that is linear, or homogeneous, in what depends on the input."""
    operation.treatment = Treatment.LRP_0
    known = call.gates.inherited(call)
    target = call.target
    use = None if target is None else layer_of(target)
    if use is not None and target is not None:
        use.keep_copy(target)
    out = form.mixing(operation, call)
    gates.note_shift(out, call)
    return gates.marked(out, known)


def moving(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run an operation that moves, repeats, selects or drops values."""
    if call.kind.conjugates and call.x.is_complex():
        return mixing(form, operation, call)
    operation.treatment = Treatment.MOVED
    known = call.gates.inherited(call)
    out = form.moving(call)
    gates.marked(call.result(out), known)
    return out


def max_pool(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a max pool; in half precision ties are broken by the values before rounding."""
    order = None if call.kwargs.get("return_indices") else order_of(call.x)
    pool = None if order is None else max_pools.resolved(call.name, order)
    return moving(form, operation, call if pool is None else call.changed(pool))


def dropout(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a dropout that drops nothing.

    Raises:
        ModelError: It does.
    """
    bound = dict(zip(("input", "p", "training"), call.args, strict=False)) | call.kwargs
    if bound.get("training", bound.get("train", True)) and bound.get("p", 0.5):
        raise ModelError(
            f"dropout '{operation.name}' is active, so that the relevance would be of a random "
            "network; call model.eval()"
        )
    return moving(form, operation, call)


def linear_in_one(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a function that is linear in one argument, such as a grid sample in what it samples."""
    x = call.argument(*LINEAR_IN_ONE[call.name])
    if any(t is not x for t in call.data):
        operation.fallback = "it is not linear in an argument that depends on the input"
        return call.run()
    return mixing(form, operation, call)


def reducing(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a reduction of groups of values: a sum, a mean, or the choice of one of each group."""
    how = call.argument(_REDUCTION[call.name], "reduce")
    if how in ("amax", "amin", "max", "min"):
        return moving(form, operation, call)
    run = mixing if how in ("mean", "sum") else unknown
    return run(form, operation, call)


def rectifier(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run an activation that is linear on each side of 0: relevance passes by its derivative."""
    operation.treatment = Treatment.PASSED
    if call.any_is_data(call.others):
        return unknown(form, operation, call)
    order = order_of(call.x)
    out = _rectified(form, call)
    if order is not None and activations.is_monotone(call):
        keep_order(out, order)
    return gates.marked(out, call.gates.factor(call.x))


def _rectified(form: Form, call: TorchCall) -> Any:
    use = layer_of(call.x)
    if use is None:
        return form.rectifier(call)
    is_relu = call.func in activations.RECTIFIERS
    use.cut_off |= is_relu
    rectified = is_relu and use.is_elementwise
    if call.writes and not (rectified and form.optimize):
        use.keep_copy(call.x)
    # not if a probe has put a copy in the output's place, or another operation has read it
    intact = use.is_output(call.x) if call.writes else use.readers < 2
    serves = form.optimize and rectified and intact
    out = form.rectifier(call)
    if serves:
        use.keep_rectified(out)
    return out


def activation(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run an element-wise activation with g(0) = 0: relevance passes by the factor g(z) / z."""
    x, known = call.x, call.gates.factor(call.x)
    alone = call.is_data(x) and not call.any_is_data(call.others)  # not so 2 ** y
    if alone and known is None and activations.is_inverse(call):
        known = Gate.FACTOR
    slope = activations.slope_at_zero(call) if alone else None
    if slope is None:
        run = choosing if call.kind.clamps or call.kind.chooses else unknown
        return gates.marked(run(form, operation, call), known)
    operation.treatment = Treatment.PASSED
    use = layer_of(x)
    if use is not None:
        use.cut_off |= activations.cuts_off(call)
        use.keeps_sign = activations.keeps_sign(call)
    kind = gates.of_activation(call, activations.bounds_of(call)) if known is None else known
    func, further, options = call.func, call.args[1:], call.options

    def g(z: Tensor) -> Any:
        return func(z, *further, **options)  # not the call, which holds x: see FactorStep

    if not call.writes:
        return gates.marked(form.activation(x, slope, g), kind)
    kept = x.detach().clone() if use is None else use.keep_copy(x)
    return gates.marked(form.activation_in_place(x, slope, g, kept), kind)


def choosing(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a function that chooses between values and bounds: relevance goes to what is chosen."""
    operation.treatment = Treatment.MOVED_BESIDE_CONSTANT
    return form.moving(call)


def gate(form: Form, operation: Operation, call: TorchCall) -> Any:
    """Run a function whose values are gates, and which has no rule where they are not."""
    weights = call.gates.of(call.x) is Gate.SOFTMAX
    known = Gate.SOFTMAX if weights else Gate.FACTOR
    return gates.marked(unknown(form, operation, call), known)
