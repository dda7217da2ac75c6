"""Which tensors are gates: factors that only scale a signal, and take no relevance from it.

A product gives all its relevance to the signal (Arras et al. 2017). What is a gate follows from the
operations that made it: a sigmoid, also where it has been reshaped, scaled or subtracted from 1; a
sigmoid written out, such as ``1 + tanh(y)`` or ``relu6(y + 3) / 6``; 1 / y.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab import marks
from captum_lrp_stab.operations import MOVING, SELECTING, canonical_name, tensors_in


class Gate(Enum):
    """What is known of a tensor."""

    FACTOR = "a gate"
    SOFTMAX = "weights that sum to 1"
    ODD = "a function that saturates at -1 and 1: a gate once a constant is added"


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
PRESERVING = MOVING | SELECTING | _SHIFTING | _SCALING | _POOLING
"""Operations that give gates where all that they read are gates, and weights where weights."""

_SHAPED_BY_ANOTHER = frozenset("expand_as reshape_as to type_as view_as".split())


def of(t: Tensor) -> Gate | None:
    """Return what is known of a tensor, None for a signal."""
    gate: Gate | None = marks.get(t, "gate")
    return gate


def marked(out: Any, gate: Gate | None) -> Any:
    """Return ``out``, with its tensors marked."""
    for t in tensors_in((out,), {}) if gate is not None else ():
        marks.put(t, "gate", gate)
    return out


class Operands:
    """The tensors among an operation's arguments that depend on the model's input.

    An operation may write over what it reads, and then a mark says nothing any more. So what is
    known of them is gathered before it runs, and treatments do not ask the tensors themselves.

    Args:
        tensors: These tensors.
    """

    def __init__(self, tensors: Sequence[Tensor] = ()) -> None:
        self._kinds = {id(t): of(t) for t in tensors}
        bases = [(t, t._base) for t in tensors if t._is_view()]
        self._bases = [(t, base, of(base)) for t, base in bases if base is not None]

    def has(self, value: object) -> bool:
        """Return whether an argument is one of them."""
        return id(value) in self._kinds

    def gate(self, t: Tensor) -> Gate | None:
        """Return what is known of a tensor, None for a signal."""
        return self._kinds.get(id(t))

    def is_factor(self, t: Tensor) -> bool:
        """Return whether a tensor is a gate, or weights."""
        return self.gate(t) in (Gate.FACTOR, Gate.SOFTMAX)

    def inherited(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Gate | None:
        """Return what a linear operation makes of its arguments."""
        name = canonical_name(func)
        if name not in PRESERVING:
            return None
        given = args[:1] if name in _SHAPED_BY_ANOTHER else args
        kinds = {self.gate(t) for t in tensors_in(given, kwargs) if self.has(t)}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is Gate.ODD and name in _SHIFTING:
            others = [v for v in (*args, kwargs.get("other")) if not self.has(v)]
            return Gate.FACTOR if any(map(_saturates, others)) else Gate.ODD
        return kind

    def keep_bases(self) -> None:
        """Mark again what has been written to by a view, and is what it was before."""
        for view, base, kind in self._bases:
            if kind is not None and of(base) is None and of(view) is kind:
                marked(base, kind)


def _saturates(constant: Any) -> bool:
    """Return whether adding a constant to values from -1 to 1 leaves them on one side of 0."""
    if isinstance(constant, Tensor):
        return constant.dtype != torch.bool and bool((constant.abs() >= 1).all())
    return isinstance(constant, numbers.Real) and abs(float(constant)) >= 1


def note_shift(out: Any, func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Remember the number that was added to make ``out``."""
    name = canonical_name(func)
    if name not in ("add", "sub", "subtract") or kwargs.get("alpha", 1) != 1:
        return
    shifts = [v for v in (*args[:2], kwargs.get("other")) if isinstance(v, numbers.Real)]
    if len(shifts) == 1 and isinstance(out, Tensor):
        marks.put(out, "shift", shifts[0] if name == "add" else -shifts[0])


def of_activation(name: str, x: Tensor, bounds: tuple[Any, Any] | None) -> Gate | None:
    """Return what an activation makes of a signal ``x``.

    Args:
        name: Its canonical name.
        x: Its input.
        bounds: Of a clamp, None for any other function.
    """
    if name in ("erf", "tanh"):
        return Gate.ODD
    shift = marks.get(x, "shift")
    if bounds is None or shift is None:
        return None
    # a hard sigmoid: relu6(x + 3), clamp(x + 0.5, 0, 1), half way up where x is 0
    low, high = bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return Gate.FACTOR if low == 0 and math.isclose(shift, high / 2) else None
