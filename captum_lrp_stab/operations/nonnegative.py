"""Which tensors are known to have no negative element, so that a rule's other half is empty.

What is known follows from the operations that made a tensor: a ReLU gives no negative values, a max
pool of such gives none either. Rules that treat inputs by their sign (gamma, z+, alpha-beta) then
need half the work, and nobody has to look at the values.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_lrp_stab.operations import activations
from captum_lrp_stab.operations.calls import argument
from captum_lrp_stab.operations.table import MOVING, SELECTING, canonical_name
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.nested import tensors_in

_GIVING = frozenset(
    """
    abs absolute exp expit hardsigmoid norm relu sigmoid softmax softmin sqrt square vector_norm
    """.split()
)
_FILLING = frozenset(
    """
    constant_pad_nd copy fill fill_diagonal index_fill masked_fill nan_to_num pad_packed_sequence
    pad_sequence put scatter setitem where
    """.split()
)
_OF_COMPLEX = frozenset("complex imag real view_as_complex view_as_real".split())
_PICKING = (MOVING | SELECTING) - _FILLING - _OF_COMPLEX
"""Operations whose values are values that they read, or 0."""

_KEEPING = _PICKING | frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add avg_pool1d avg_pool2d avg_pool3d
    cumsum div mean mul multiply sum truediv
    """.split()
)
_INDEXED = frozenset(
    """
    gather getitem index index_select masked_select max_unpool1d max_unpool2d max_unpool3d
    pack_padded_sequence repeat_interleave take take_along_dim
    """.split()
)
_WITH_CONSTANTS = frozenset("add div mul multiply truediv".split())


def is_nonnegative(t: Tensor) -> bool:
    """Return whether a tensor is known to have no negative element."""
    return marks.get(t, "nonnegative") is not None


def gives_nonnegative(func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Return whether what a call makes is known to have no negative element.

    To be asked before it runs: it may write over its arguments.
    """
    name = canonical_name(func)
    if name in _GIVING:
        return True
    if name in activations.CLAMPS or name == "relu6":
        bounds = activations.bounds_of(func, args, kwargs) or (None, None)
        return all(isinstance(bound, (int, float)) and bound >= 0 for bound in bounds)
    if name not in _KEEPING:
        return False
    if name in _WITH_CONSTANTS:
        numbers = [v for v in (*args, *kwargs.values()) if not isinstance(v, Tensor)]
        if not all(isinstance(v, (int, float)) and math.copysign(1.0, v) > 0 for v in numbers):
            return False
    if name == "pad" and (argument(args, kwargs, 3, "value") or 0) < 0:
        return False
    if name.startswith("avg_pool") and (argument(args, kwargs, 6, "divisor_override") or 1) < 0:
        return False
    tensors = tensors_in(args, kwargs)
    if name in _INDEXED:
        tensors = tensors[:1]  # the others are indices and masks
    return all(map(is_nonnegative, tensors))


def mark(result: Any) -> None:
    """Remember that the tensors of a result have no negative element."""
    for t in tensors_in((result,), {}):
        marks.put(t, "nonnegative", True)
