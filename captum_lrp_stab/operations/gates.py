"""Which tensors are gates: factors that only scale a signal, and take no relevance from it.

A product gives all its relevance to the signal (Arras et al. 2017). What is a gate follows from the
operations that made it: a sigmoid, also where it has been reshaped, scaled or subtracted from 1; a
sigmoid written out, such as ``1 + tanh(y)`` or ``relu6(y + 3) / 6``; 1 / y.
"""

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.operations.table import names_of
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


Known = Gate | Saturating

_BOUNDS = {"arctan": math.pi / 2, "atan": math.pi / 2, "erf": 1.0, "softsign": 1.0, "tanh": 1.0}
"""Activations that saturate, and where."""

_ROUNDING = 1e-6  # of a bound that is written as a number

PRESERVING = names_of("moves", "selects", "adds", "scales", "averages", "sums")
"""Operations that give gates where all that they read are gates, and weights where weights."""


def of(t: Tensor) -> Known | None:
    """Return what is known of a tensor, None for a signal."""
    gate: Known | None = marks.get(t, "gate")
    return gate


def marked(out: Any, gate: Known | None) -> Any:
    """Return ``out``, with its tensors marked."""
    if gate is not None:
        for t in tensors_in((out,), {}):
            marks.put(t, "gate", gate)
    return out


class Gates:
    """What is known of the tensors that an operation reads and that depend on the model's input.

    An operation may write over what it reads, and then a mark says nothing any more. So what is
    known is gathered before it runs.

    Args:
        call: The call of the operation.
    """

    def __init__(self, call: TorchCall) -> None:
        self._known = {id(t): known for t in call.data if (known := of(t)) is not None}
        self._bases: list[tuple[Tensor, Tensor, Known | None]] = []
        if call.writes:
            views = [(t, t._base) for t in call.data]
            self._bases = [(t, base, of(base)) for t, base in views if base is not None]

    def of(self, t: object) -> Known | None:
        """Return what is known of a tensor, None for a signal."""
        return self._known.get(id(t))

    def factor(self, t: object) -> Gate | None:
        """Return whether a tensor is a gate, or weights, None for a signal."""
        known = self._known.get(id(t))
        return known if isinstance(known, Gate) else None

    def inherited(self, call: TorchCall) -> Known | None:
        """Return what is known of the result of a linear operation."""
        kind = call.kind
        if not self._known or kind.name not in PRESERVING:
            return None
        given = call.args[:1] if kind.shaped_by_another else call.args
        live = [t for t in tensors_in(given, call.kwargs) if call.is_data(t)]
        kinds = set(map(self.of, live))
        known = kinds.pop() if len(kinds) == 1 else None
        if not isinstance(known, Saturating):
            return known
        values = (*call.args, call.kwargs.get("other"))
        constants = [v for v in values if not call.is_data(v)]
        if kind.adds:
            return _shifted(known, len(live), constants, call.kwargs.get("alpha", 1))
        if kind.scales:
            return _rescaled(known, kind.name, constants)
        return None if kind.sums else known

    def keep_bases(self) -> None:
        """Mark again what was written to through a view, and has the values it had before."""
        for view, base, known in self._bases:
            if known is not None and of(base) is None and of(view) is known:
                marked(base, known)


def _shifted(kind: Saturating, count: int, constants: Iterable[Any], alpha: Any) -> Known | None:
    """Return what is known of saturating values plus a constant, or plus each other."""
    if alpha != 1 or count > 1:
        return None
    ranges = [r for r in map(_range, constants) if r is not None]
    is_one_sided = any(low >= kind.bound * (1 - _ROUNDING) for low, _ in ranges)
    return Gate.FACTOR if is_one_sided else kind


def _rescaled(kind: Saturating, name: str, constants: Iterable[Any]) -> Known | None:
    """Return what is known of saturating values times or over a constant."""
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


def note_shift(out: Any, call: TorchCall) -> None:
    """Remember the number that was added to make ``out``."""
    if call.name not in ("add", "sub", "subtract") or call.kwargs.get("alpha", 1) != 1:
        return
    values = (*call.args[:2], call.kwargs.get("other"))
    constants = [v for v in values if not call.is_data(v)]
    shifts = [float(v) for v in constants if isinstance(v, numbers.Real) or _is_number(v)]
    if len(shifts) == 1 and isinstance(out, Tensor):
        marks.put(out, "shift", shifts[0] if call.name == "add" else -shifts[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()


def of_activation(call: TorchCall, bounds: tuple[Any, Any] | None) -> Known | None:
    """Return what is known of the values of an activation of a signal.

    Args:
        call: The activation.
        bounds: Of a clamp, None for any other function.
    """
    if call.kind.saturates:
        return Saturating(_BOUNDS[call.name])
    if bounds is None or any(isinstance(bound, Tensor) for bound in bounds):
        return None
    low, high = bounds
    if low == -high and math.isfinite(high):  # a hard tanh
        return Saturating(float(high))
    shift = marks.get(call.x, "shift")
    if shift is None:
        return None
    # a hard sigmoid: relu6(x + 3), clamp(x + 0.5, 0, 1), half way up where x is 0
    return Gate.FACTOR if low == 0 and math.isclose(shift, high / 2) else None
