"""Which tensors are gates: factors that only scale a signal, and take no relevance from it.

A product gives all its relevance to the signal (Arras et al. 2017). What is a gate follows from the
operations that made it: a sigmoid, also where it has been reshaped, scaled or subtracted from 1; a
sigmoid written out, such as ``1 + tanh(y)`` or ``relu6(y + 3) / 6``; 1 / y.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.operations.table import MOVING, REDUCING, SELECTING, canonical_name
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.nested import tensors_in


class Gate(Enum):
    """What is known of a tensor."""

    FACTOR = "a gate"
    SOFTMAX = "weights that sum to 1"


@dataclass(frozen=True)
class Saturating:
    """What is known of values of a function that saturates: a gate once its bound is added.

    Args:
        bound: Saturates at it, and at minus it.
    """

    bound: float


Kind = Gate | Saturating

FUNCTIONS = frozenset("erfc expit hardsigmoid ndtr reciprocal rsqrt sgn sigmoid sign".split())
"""Functions whose values are factors wherever they are multiplied by something."""

_SHIFTING = frozenset("add rsub sub subtract".split())
_SCALING = frozenset("div divide mul multiply neg negative rmul true_divide truediv".split())
_AVERAGING = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d
    grid_sample interpolate mean nanmean upsample upsample_bilinear upsample_nearest
    """.split()
)
_SUMMING = REDUCING.keys() | frozenset(
    "cumsum fold index_add index_put nansum scatter_add sum sum_to_size".split()
)
PRESERVING = MOVING | SELECTING | _SHIFTING | _SCALING | _AVERAGING | _SUMMING
"""Operations that give gates where all that they read are gates, and weights where weights."""

_BOUNDS = {"arctan": math.pi / 2, "atan": math.pi / 2, "erf": 1.0, "softsign": 1.0, "tanh": 1.0}
"""Activations that saturate, and where."""

_ROUNDING = 1e-6  # of a bound that is written as a number

_SHAPED_BY_ANOTHER = frozenset("expand_as reshape_as to type_as view_as".split())


def of(t: Tensor) -> Kind | None:
    """Return what is known of a tensor, None for a signal."""
    gate: Kind | None = marks.get(t, "gate")
    return gate


def marked(out: Any, gate: Kind | None) -> Any:
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

    def gate(self, t: Tensor) -> Kind | None:
        """Return what is known of a tensor, None for a signal."""
        return self._kinds.get(id(t))

    def is_factor(self, t: Tensor) -> bool:
        """Return whether a tensor is a gate, or weights."""
        return self.gate(t) in (Gate.FACTOR, Gate.SOFTMAX)

    def inherited(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Kind | None:
        """Return what a linear operation makes of its arguments."""
        name = canonical_name(func)
        if name not in PRESERVING:
            return None
        given = args[:1] if name in _SHAPED_BY_ANOTHER else args
        live = [t for t in tensors_in(given, kwargs) if self.has(t)]
        kinds = set(map(self.gate, live))
        kind = kinds.pop() if len(kinds) == 1 else None
        if not isinstance(kind, Saturating):
            return kind
        constants = [v for v in (*args, kwargs.get("other")) if not self.has(v)]
        if name in _SHIFTING:
            return _shifted(kind, len(live), constants, kwargs.get("alpha", 1))
        if name in _SCALING:
            return _rescaled(kind, name, constants)
        return None if name in _SUMMING else kind

    def keep_bases(self) -> None:
        """Mark again what has been written to by a view, and is what it was before."""
        for view, base, kind in self._bases:
            if kind is not None and of(base) is None and of(view) is kind:
                marked(base, kind)


def _shifted(kind: Saturating, count: int, constants: Iterable[Any], alpha: Any) -> Kind | None:
    """Return what a constant makes of saturating values, or adding them to each other."""
    if alpha != 1 or count > 1:
        return None
    ranges = [r for r in map(_range, constants) if r is not None]
    is_one_sided = any(low >= kind.bound * (1 - _ROUNDING) for low, _ in ranges)
    return Gate.FACTOR if is_one_sided else kind


def _rescaled(kind: Saturating, name: str, constants: Iterable[Any]) -> Kind | None:
    """Return what a constant factor or divisor makes of saturating values."""
    bound = kind.bound
    for low, high in filter(None, map(_range, constants)):
        bound *= high if "div" not in name else 1 / low if low else math.inf
    return Saturating(bound)


def _range(constant: Any) -> tuple[float, float] | None:
    """Return the least and the largest absolute value of a constant, None if it is no number."""
    if isinstance(constant, Tensor) and constant.numel() and constant.dtype != torch.bool:
        low, high = torch.aminmax(constant.detach().abs())
        return float(low), float(high)
    is_number = isinstance(constant, numbers.Real) and not isinstance(constant, bool)
    return (abs(float(constant)),) * 2 if is_number else None


def note_shift(
    out: Any, func: Callable[..., Any], args: Any, kwargs: Any, operands: Operands
) -> None:
    """Remember the number that was added to make ``out``."""
    name = canonical_name(func)
    if name not in ("add", "sub", "subtract") or kwargs.get("alpha", 1) != 1:
        return
    constants = [v for v in (*args[:2], kwargs.get("other")) if not operands.has(v)]
    shifts = [float(v) for v in constants if isinstance(v, numbers.Real) or _is_number(v)]
    if len(shifts) == 1 and isinstance(out, Tensor):
        marks.put(out, "shift", shifts[0] if name == "add" else -shifts[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()


def of_activation(name: str, x: Tensor, bounds: tuple[Any, Any] | None) -> Kind | None:
    """Return what an activation makes of a signal ``x``.

    Args:
        name: Its canonical name.
        x: Its input.
        bounds: Of a clamp, None for any other function.
    """
    if name in _BOUNDS:
        return Saturating(_BOUNDS[name])
    if bounds is None or any(isinstance(bound, Tensor) for bound in bounds):
        return None
    low, high = bounds
    if low == -high and math.isfinite(high):  # a hard tanh
        return Saturating(float(high))
    shift = marks.get(x, "shift")
    if shift is None:
        return None
    # a hard sigmoid: relu6(x + 3), clamp(x + 0.5, 0, 1), half way up where x is 0
    return Gate.FACTOR if low == 0 and math.isclose(shift, high / 2) else None
