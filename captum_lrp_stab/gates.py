"""Which tensors are gates: factors that only scale a signal, and take no relevance from it.

A product gives all its relevance to the signal (Arras et al. 2017). What is a gate follows from the
operations that made it: a sigmoid, also where it has been reshaped, scaled or subtracted from 1; a
sigmoid written out, such as ``1 + tanh(y)`` or ``relu6(y + 3) / 6``; 1 / y. Tensors carry the mark
as an attribute, with the version of the tensor it holds for.
"""

import numbers
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from torch import Tensor

from captum_lrp_stab.operations import MOVING, SELECTING, canonical_name, made, tensors_in


class Gate(Enum):
    """What is known of a tensor."""

    FACTOR = "a gate"
    SOFTMAX = "weights that sum to 1"
    ODD = "a function that saturates at -1 and 1: a gate once a number is added"
    SHIFTED = "a number was added: a gate once it is clamped"


FUNCTIONS = frozenset("expit hardsigmoid reciprocal rsqrt sgn sigmoid sign".split())
"""Functions whose values are factors wherever they are multiplied by something."""

_SHIFTING = frozenset("add rsub sub subtract".split())
_SCALING = frozenset("div divide mul multiply neg negative rmul true_divide truediv".split())
_POOLING = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d
    interpolate mean sum upsample
    """.split()
)
_PRESERVING = MOVING | SELECTING | _SHIFTING | _SCALING | _POOLING
_SHAPED_BY_ANOTHER = frozenset("expand_as reshape_as to type_as view_as".split())


def of(t: Tensor) -> Gate | None:
    """Return what is known of a tensor, None for a signal."""
    gate, version = getattr(t, "_lrp_gate", (None, -1))
    return gate if version == t._version else None


def marked(out: Any, gate: Gate | None) -> Any:
    """Return ``out``, with its tensors marked."""
    for t in tensors_in((out,), {}) if gate is not None else ():
        t._lrp_gate = (gate, t._version)  # type: ignore[attr-defined]
    return out


def inherited(out: Any, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return ``out`` of a linear operation, marked by what it was made of, besides constants."""
    name = canonical_name(func)
    if name not in _PRESERVING:
        return out
    given = args[:1] if name in _SHAPED_BY_ANOTHER else args
    kinds = {of(t) for t in tensors_in(given, kwargs) if made(t)}
    if len(kinds) != 1:
        return out
    kind = kinds.pop()
    if name in _SHIFTING and any(isinstance(a, numbers.Real) and a != 0 for a in args[:2]):
        kind = {None: Gate.SHIFTED, Gate.ODD: Gate.FACTOR}.get(kind, kind)
    elif kind is Gate.SHIFTED and name not in MOVING:
        kind = None
    return marked(out, kind)


def is_factor(t: Tensor) -> bool:
    """Return whether a tensor is a gate, or weights."""
    return of(t) in (Gate.FACTOR, Gate.SOFTMAX)


def of_product(factors: Iterable[Tensor]) -> Gate:
    """Return what a product of gates is."""
    return Gate.SOFTMAX if Gate.SOFTMAX in map(of, factors) else Gate.FACTOR


def of_activation(name: str, x: Tensor) -> Gate | None:
    """Return what an activation makes of a signal ``x``."""
    if name in ("erf", "tanh"):
        return Gate.ODD
    clamps = name in ("clamp", "clip", "hardtanh", "relu6")
    return Gate.FACTOR if clamps and of(x) is Gate.SHIFTED else None
