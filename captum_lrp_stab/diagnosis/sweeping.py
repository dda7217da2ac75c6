"""``sweep``: how relevance depends on epsilon or gamma, and where that changes.

Relevance is compared by its direction: maps of one shape and of different scale count as equal.
Near 0 most parameters do nothing, near infinity nothing more; the *knees* are where a map leaves
the one of the smallest value, and where it reaches the one of the largest.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.propagation import checks, forms
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.propagation.forms import Form
from captum_lrp_stab.reporting.tables import number, to_text, without_nonfinite
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule
from captum_lrp_stab.stabilizers import Signed
from captum_lrp_stab.task import Task, remade, run_each

Parameter = Literal["epsilon", "gamma"]
_TOGETHER = 8
"""Values whose attributions share a forward pass: the relevance of all of them is held at once."""
KNEE = 0.1
"""The difference of direction at which a map counts as another one."""


@dataclass(frozen=True)
class Point:
    """What one value of the parameter gives.

    ``from_first`` and ``from_last`` are :math:`|a / |a| - b / |b||` to the maps of the smallest and
    the largest value; None where either is not finite or 0.
    """

    value: float
    finite: bool
    sum_over_score: float | None
    l1: float | None
    peak_over_median: float | None
    from_first: float | None
    from_last: float | None


@dataclass(frozen=True)
class Sweep:
    """Relevance against a parameter.

    ``leaves`` is the first value whose map is another one than that of the smallest value;
    ``reaches`` the first from which on all maps are that of the largest value. None where there is
    no such value.
    """

    parameter: Parameter
    points: tuple[Point, ...]
    leaves: float | None
    reaches: float | None

    def facts(self) -> dict[str, Any]:
        """Return everything as values for JSON; no number is NaN or Inf."""
        clean: dict[str, Any] = without_nonfinite(asdict(self))
        return clean

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return a header and rows of text."""
        header = (self.parameter, "sum/score", "L1", "peak/median", "from first", "from last")
        rows = [
            (
                f"{p.value:g}",
                *(number(v, 3) for v in (p.sum_over_score, p.l1, p.peak_over_median)),
                *(number(v) for v in (p.from_first, p.from_last)),
            )
            for p in self.points
        ]
        return header, rows

    def explanation(self) -> str:
        """Return the knees in words."""
        name = self.parameter
        if self.leaves is None:
            return f"the heatmap is the same for every {name} tried"
        text = f"the heatmap is that of the smallest {name} below {self.leaves:g}"
        if self.reaches is None:
            return f"{text}, and still changes at the largest"
        return f"{text}, and that of the largest from {self.reaches:g}"

    def __str__(self) -> str:
        """Return the knees and a table."""
        return "\n".join([self.explanation(), "", to_text(*self.table(), words=0)])


def sweep(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    rules: Rules = None,
    parameter: Parameter = "epsilon",
    values: Sequence[float] | None = None,
    *,
    form: str | Form = "gradient",
    additional_forward_args: Any = None,
    attention: Attention = "attnlrp",
    merge_batch_norm: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> Sweep:
    """Attribute once for each value of a parameter of all rules.

    Args:
        model: See :func:`captum_lrp_stab.diagnose`; likewise the arguments not listed here.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        target: The output to explain.
        rules: A name_map, a preset, or None for the rules set on the modules.
        parameter: ``"epsilon"`` of the epsilon rule, and of a signed stabilizer in every other
            rule; or ``"gamma"`` of the gamma rule.
        values: In increasing order; None for 1e-9 to 10 (epsilon) or 1e-3 to 100 (gamma), two for
            each power of ten.
        form: How relevance is carried.
        additional_forward_args: Further arguments of the model.
        attention: ``"attnlrp"`` or ``"cp"``.
        merge_batch_norm: Treat batch norm after a linear layer as one layer with it.
        progress: Called with each value before its turn.

    Raises:
        InputError: The parameter is unknown, no rule has it, or the values are no increasing
            numbers >= 0.
        LRPError: As :meth:`captum_lrp_stab.LRP.attribute`.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import presets
        >>> from captum_lrp_stab.diagnosis import sweep
        >>> found = sweep(torch.nn.Linear(2, 1), torch.ones(1, 2), 0, presets.epsilon())
        >>> found.explanation()  # one layer: epsilon changes the scale alone
        'the heatmap is the same for every epsilon tried'
    """
    wanted = _checked(parameter, values)
    task = Task(
        model,
        as_tuple(inputs),
        target,
        additional_forward_args,
        rules,
        None,
        attention,
        merge_batch_norm,
        form=forms.form_of(form) if isinstance(form, str) else form,
    )
    checks.check_model(model)
    checks.check_parameters(model)
    checks.check_inputs(task.inputs)
    if parameter == "gamma" and not any(isinstance(o.rule, GammaRule) for o in task.operations()):
        raise InputError("parameter is 'gamma', but no layer has a gamma rule; give epsilon")
    maps, scores = [], []
    for start in range(0, len(wanted), _TOGETHER):
        together = wanted[start : start + _TOGETHER]
        for value in together:
            progress(f"{parameter} {value:g}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an epsilon too small for the dtype
            settings = (_setting(parameter, value) for value in together)
            found = run_each([task.changing(setting) for setting in settings])
        for done in found:
            maps.append(torch.cat([r.double().flatten() for r in done.relevances]).cpu())
            scores.append(float(done.score.double().sum()))
    first, last = maps[0], maps[-1]
    points = tuple(
        _point(value, relevance, score, first, last)
        for value, relevance, score in zip(wanted, maps, scores, strict=True)
    )
    return Sweep(parameter, points, *_knees(points))


def _checked(parameter: str, values: Sequence[float] | None) -> list[float]:
    if parameter not in ("epsilon", "gamma"):
        raise InputError(f"parameter is {parameter!r}; give 'epsilon' or 'gamma'")
    if values is None:
        low, high = (-9, 1) if parameter == "epsilon" else (-3, 2)
        return [float(10 ** (n / 2)) for n in range(2 * low, 2 * high + 1)]
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    increasing = all(a < b for a, b in itertools.pairwise(found))
    if len(found) < 2 or not increasing or not all(0 <= v < math.inf for v in found):
        raise InputError(
            f"values is {values!r}; give at least two numbers >= 0, in increasing order"
        )
    return found


def _setting(parameter: str, value: float) -> Callable[[Rule], Rule]:
    """Return what gives a rule a value of the parameter."""

    def change(rule: Rule) -> Rule:
        if parameter == "gamma":
            return remade(rule, gamma=value) if isinstance(rule, GammaRule) else rule
        if isinstance(rule, EpsilonRule):
            other = EpsilonRule(value)
            other.layer = rule.layer
            return other
        return rule.with_stabilizer(Signed(value))

    return change


def _point(value: float, relevance: Tensor, score: float, first: Tensor, last: Tensor) -> Point:
    finite = bool(relevance.isfinite().all())
    if not finite:
        return Point(value, False, None, None, None, None, None)
    total, sizes = float(relevance.sum()), relevance.abs()
    median = float(np.median(sizes.numpy())) if sizes.numel() else 0.0
    return Point(
        value,
        True,
        total / score if score and math.isfinite(score) else None,
        float(sizes.sum()),
        float(sizes.max()) / median if median else None,
        _direction(relevance, first),
        _direction(relevance, last),
    )


def _direction(a: Tensor, b: Tensor) -> float | None:
    norms = float(a.norm()), float(b.norm())
    if not all(math.isfinite(n) and n > 0 for n in norms):
        return None
    return float((a / norms[0] - b / norms[1]).norm())


def _knees(points: Sequence[Point]) -> tuple[float | None, float | None]:
    leaves = next((p.value for p in points if p.from_first is None or p.from_first > KNEE), None)
    if leaves is None:
        return None, None
    reaches = None
    for point in reversed(points[:-1]):
        if point.from_last is None or point.from_last > KNEE:
            break
        reaches = point.value
    return leaves, reaches
