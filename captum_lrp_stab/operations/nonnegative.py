"""Which tensors are known to have no negative element, so that a rule's other half is empty.

What is known follows from the operations that made a tensor: a ReLU gives no negative values, a max
pool of such gives none either. Rules that treat inputs by their sign (gamma, z+, alpha-beta) then
need half the work, and the values need not be read.
"""

import math
from typing import Any

from torch import Tensor

from captum_lrp_stab.operations import activations
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.nested import tensors_in


def is_nonnegative(t: Tensor) -> bool:
    """Return whether a tensor is known to have no negative element."""
    return marks.get(t, "nonnegative") is not None


def gives_nonnegative(call: TorchCall) -> bool:
    """Return whether the result of a call is known to have no negative element.

    Ask before the call runs: it may write over its arguments.
    """
    kind = call.kind
    if kind.nonnegative:
        return True
    if kind.clamps or kind.name == "relu6":
        bounds = activations.bounds_of(call) or (None, None)
        return all(isinstance(bound, (int, float)) and bound >= 0 for bound in bounds)
    if not (kind.keeps_nonnegative or kind.gives_inputs):
        return False
    tensors = call.tensors[:1] if kind.indexed else call.tensors  # not indices and masks
    if not all(map(is_nonnegative, tensors)):
        return False
    if kind.keeps_nonnegative and (kind.adds or kind.scales):
        numbers = [v for v in (*call.args, *call.kwargs.values()) if not isinstance(v, Tensor)]
        if not all(isinstance(v, (int, float)) and math.copysign(1.0, v) > 0 for v in numbers):
            return False
    if kind.name == "pad" and (call.argument(3, "value") or 0) < 0:
        return False
    is_pool = kind.name.startswith("avg_pool")
    return not (is_pool and (call.argument(6, "divisor_override") or 1) < 0)


def mark(result: Any) -> None:
    """Remember that the tensors of a result have no negative element."""
    for t in tensors_in((result,), {}):
        marks.put(t, "nonnegative", True)
