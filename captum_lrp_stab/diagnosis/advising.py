"""``advise``: the least change of the rules under which an attribution is stable and exact.

Three checks name the first layer at fault: one that is unstable; one that is unstable in float64;
one that propagates other relevance than in float64. The layer gets the least stabilizer under which
the check no longer names it, and so on, until all is well or no layer is left to try. What moves
only denominators that are rounding noise (``RoundingAware``) is tried before an epsilon. Each claim
is the result of a run: the advice that is returned has been followed.
"""

import bisect
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.comparison.agreement import relative_difference
from captum_lrp_stab.comparison.pair import Pair
from captum_lrp_stab.comparison.recording import record
from captum_lrp_stab.diagnosis.advice import Advice, Change
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.ledger.locating import check_threshold, locate
from captum_lrp_stab.ledger.watching import watch
from captum_lrp_stab.names import THRESHOLD
from captum_lrp_stab.propagation import checks, forms
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.propagation.forms import Form
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.captum_rules import ManipulatedWeightsRule
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.rules.standard import EpsilonRule, PassRule
from captum_lrp_stab.stabilizers import RoundingAware, Signed, Stabilizer, StabilizerLike
from captum_lrp_stab.task import Task, on

_FACTORS = (8.0, 64.0, 512.0)
_Result = TypeVar("_Result")
Check = Callable[[Task], str | None]
"""From a task to the first layer with a fault of one kind, None if there is none."""


def advise(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    rules: Rules = None,
    *,
    tolerance: float = 1e-3,
    form: str | Form = "gradient",
    stabilizer: StabilizerLike | None = None,
    additional_forward_args: Any = None,
    attention: Attention = "attnlrp",
    merge_batch_norm: bool = True,
    threshold: float = THRESHOLD,
) -> Advice:
    """Find the least change under which an attribution is stable, and agrees with float64.

    Args:
        model: See :func:`captum_lrp_stab.diagnose`; likewise the arguments not listed here.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        target: The output to explain.
        rules: A name_map, a preset, or None for the rules set on the modules.
        tolerance: Largest relative L2 difference from float64 (of the sample that differs most).
        form: How relevance is carried.
        stabilizer: Takes the place of every rule's stabilizer.
        additional_forward_args: Further arguments of the model.
        attention: ``"attnlrp"`` or ``"cp"``.
        merge_batch_norm: Treat batch norm after a linear layer as one layer with it.
        threshold: See :func:`captum_lrp_stab.diagnose`.

    Raises:
        InputError: ``tolerance`` is no positive number, or ``threshold`` none above 1.
        LRPError: As :meth:`captum_lrp_stab.LRP.attribute`.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import presets
        >>> from captum_lrp_stab.diagnosis import advise
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> advise(model, torch.ones(1, 4), 1, presets.epsilon()).changes
        ()
    """
    check_tolerance(tolerance)
    check_threshold(threshold)
    task = Task(
        model,
        as_tuple(inputs),
        target,
        additional_forward_args,
        rules,
        stabilizer,
        attention,
        merge_batch_norm,
        form=forms.form_of(form, stabilizer) if isinstance(form, str) else form,
    )
    checks.check_model(model)
    checks.check_parameters(model)
    checks.check_inputs(task.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stabilizers that are tried
        return _Adviser(_explicit(task), float(tolerance), threshold).advise()


def check_tolerance(tolerance: float) -> None:
    """Raise InputError unless ``tolerance`` is a positive number."""
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number or not 0 < tolerance < math.inf:
        raise InputError(f"tolerance is {tolerance!r}; give a positive number, such as 1e-3")


def _explicit(task: Task) -> Task:
    """Return the task with a rule of its own for each layer that has one in all of its uses."""
    rule_set, uses = task.rule_set(), dict[str, list[Rule]]()
    for operation in task.operations():
        if operation.rule is not None:
            uses.setdefault(operation.name, []).append(on(operation.rule, operation.name))
    named = {name: rules[0] for name, rules in uses.items() if len(set(map(_key, rules))) == 1}
    fixed = replace(rule_set, named={**rule_set.named, **named})
    return replace(task, rules=None, stabilizer=None, changes=(), fixed=fixed)


class _Adviser:
    """The search; ``task`` has the changes made so far.

    Args:
        task: With a rule of its own for each layer.
        tolerance: See :func:`advise`.
        threshold: Likewise.
    """

    def __init__(self, task: Task, tolerance: float, threshold: float) -> None:
        self.first, self.task = task, task
        self.tolerance, self.threshold = tolerance, threshold
        self.operations = task.operations()
        self.names = tuple(dict.fromkeys(o.name for o in self.operations))
        self._in_float64 = task.copied(torch.float64)
        try:
            self.exactly(record, task)
        except RuntimeError as error:
            raise ModelError(
                f"{type(task.model).__name__} cannot run in float64, with which advice is "
                f"checked: {error}. Make what its forward creates in the dtype of its input"
            ) from error
        # each names the first layer with a fault of one kind; the cheapest comes first
        self.checks = self.unstable, self.unstable_in_float64, self.inexact

    def advise(self) -> Advice:
        before, first = self.error(self.task), self.unstable(self.task)
        if first is not None and self._is_drawn_to_0(first):
            # such stabilizers are wrong in kind, not in size
            self.task = self._with(
                {name: RoundingAware() for name in self.rules if self._is_drawn_to_0(name)}
            )
        tried = set[tuple[str, int]]()
        while not self.is_good(self.task) and (culprit := self._culprit(tried)):
            tried.add(culprit)
            layer, n = culprit
            self.task = self._least(layer, self.checks[: n + 1]) or self.task
        error, dtype = self.error(self.task), None
        if not self.is_within(error):
            self.task, error, dtype = self._wider()
        return Advice(
            self.tolerance,
            before,
            error,
            first is None,
            self.unstable(self.task) is None,
            tuple(self._changes()),
            _name_map(self.rules),
            dtype,
            record(self.task).relevances,
        )

    @property
    def rules(self) -> Mapping[str, Rule]:
        """The rule of each layer, with the changes made so far."""
        return self.task.rule_set().named

    # what a task is like ----------------------------------------------------------------------

    def exactly(self, run: Callable[..., _Result], task: Task, *args: Any) -> _Result:
        """Return what a function gives for a task in float64."""
        with torch.autocast(task.inputs[0].device.type, enabled=False):
            return run(replace(self._in_float64, fixed=task.fixed), *args)

    def error(self, task: Task) -> float | None:
        """Return how far a task is from float64; None if either is not finite."""
        exact = self.exactly(record, task).relevances
        return relative_difference(record(task).relevances, exact)

    def is_within(self, error: float | None) -> bool:
        """Return whether a difference is small enough."""
        return error is not None and error <= self.tolerance

    def is_good(self, task: Task) -> bool:
        """Return whether a task is stable and agrees with float64."""
        return self.unstable(task) is None and self.is_within(self.error(task))

    def unstable(self, task: Task) -> str | None:
        """Return the layer where a task's trouble starts, None if it is stable."""
        origin = locate(watch(task, self.operations).records, self.threshold)
        return None if origin is None else origin.layer

    def unstable_in_float64(self, task: Task) -> str | None:
        """Return the same in float64: rounding can hide a 0 that float64 then divides by."""
        return self.exactly(self.unstable, task)

    def inexact(self, task: Task) -> str | None:
        """Return the first layer at which a task differs from float64, None if there is none."""
        exact = self.exactly(record, task, self.names)
        pair = Pair(record(task, self.names), exact, self.operations)
        parted = pair.divergence(self.tolerance)
        return None if parted is None else parted.name.partition("[")[0]

    # the search ----------------------------------------------------------------------------------

    def _is_drawn_to_0(self, layer: str) -> bool:
        """Return whether a layer's stabilizer moves denominators towards 0."""
        return layer in self.rules and not self.rules[layer].moves_away_from_0

    def _culprit(self, tried: set[tuple[str, int]]) -> tuple[str, int] | None:
        """Return the next layer to change with the number of the check that names it."""
        for n, check in enumerate(self.checks):
            layer = check(self.task)
            if layer is not None and layer in self.rules and (layer, n) not in tried:
                return layer, n
        return None

    def _least(self, layer: str, checks: Sequence[Check]) -> Task | None:
        """Return the task with the least stabilizer of a layer that helps; None if none does."""
        if _stabilized(self.rules[layer], RoundingAware()) is None:
            return None

        def helps(task: Task) -> bool:
            return all(check(task) != layer for check in checks)

        for factor in _FACTORS:
            task = self._with({layer: RoundingAware(factor)})
            if helps(task):
                return task
        # an epsilon that is large enough helps, and so does a larger one
        largest = torch.finfo(self.task.dtype).max / 10
        epsilons = (e for e in _ladder(self.medians.get(layer, 1.0)) if e < largest)
        ladder = [self._with({layer: Signed(epsilon)}) for epsilon in epsilons]
        index = bisect.bisect_left(ladder, True, key=helps)
        return ladder[index] if index < len(ladder) else None

    def _wider(self) -> tuple[Task, float | None, str | None]:
        """Return the task in the narrowest dtype that agrees with float64.

        As it was, if that is stable, or else with the changes made; these alone if no dtype helps.
        """
        for task in (self.first, self.task):
            for dtype in (torch.bfloat16, torch.float32, torch.float64):
                if _holds_all_of(dtype, self.first.dtype):
                    wide = task.copied(dtype)
                    with torch.autocast(wide.inputs[0].device.type, enabled=False):
                        error = self.error(wide)
                    if self.is_within(error):
                        return wide, error, str(dtype).removeprefix("torch.")
        return self.task, self.error(self.task), None

    # rules ---------------------------------------------------------------------------------------

    def _with(self, stabilizers: Mapping[str, Stabilizer]) -> Task:
        """Return the task with other stabilizers, where a layer's rule takes one."""
        rule_set = self.task.rule_set()
        changed = {n: _stabilized(rule_set.named[n], s) for n, s in stabilizers.items()}
        named = {**rule_set.named, **{n: rule for n, rule in changed.items() if rule is not None}}
        return replace(self.task, fixed=replace(rule_set, named=named))

    @cached_property
    def medians(self) -> dict[str, float]:
        """The median denominator of each layer."""
        found = {}
        for one in watch(self.first, self.operations).records:
            median = one.denominators and one.denominators.sizes.quantile(0.5)
            if one.has_rule and median:
                found[one.layer] = median
        return found

    def _changes(self) -> Iterator[Change]:
        before = self.first.rule_set().named
        for layer, rule in self.rules.items():
            if _key(rule) != _key(before[layer]):
                yield Change(layer, repr(before[layer]), repr(rule))


def _holds_all_of(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Return whether a dtype has a larger range or finer steps than another."""
    a, b = torch.finfo(dtype), torch.finfo(other)
    return a.max > b.max or a.eps < b.eps


def _ladder(scale: float) -> list[float]:
    """Return epsilons of one digit, two for each power of ten, around a median denominator."""
    middle = math.floor(math.log10(scale))
    return [float(f"{digit}e{n}") for n in range(middle - 8, middle + 4) for digit in (1, 3)]


def _stabilized(rule: Rule, stabilizer: Stabilizer) -> Rule | None:
    """Return a rule with another stabilizer; None if it takes none, or cannot be written down."""
    if isinstance(rule, (PassRule, ManipulatedWeightsRule)):
        return None
    if not isinstance(rule, EpsilonRule):
        return rule.with_stabilizer(stabilizer)
    if isinstance(stabilizer, Signed):
        changed = EpsilonRule(stabilizer.epsilon)
    else:
        changed = EpsilonRule(rule.epsilon if rule.signed else 0.0, stabilizer=stabilizer)
    return on(changed, rule.layer)


def _name_map(rules: Mapping[str, Rule]) -> NameMap:
    """Return rules as a name_map, equal ones in one entry."""
    entries: dict[Any, tuple[list[str], type[PropagationRule], dict[str, Any]]] = {}
    for layer, rule in rules.items():
        kind, parameters = type(rule), rule.parameters()
        if isinstance(rule, ManipulatedWeightsRule):
            kind = type(rule.rule)
            given = inspect.signature(kind).parameters  # Captum keeps them under their own names
            parameters = {n: v for n, v in vars(rule.rule).items() if n in given}
        entries.setdefault(_key(rule), ([], kind, parameters))[0].append(layer)
    return list(entries.values())


def _key(rule: Rule) -> tuple[Any, ...]:
    """Return what is equal for equal rules."""
    values = [
        (name, str(v.dtype), repr(v.tolist())) if isinstance(v, Tensor) else (name, repr(v))
        for name, v in rule.parameters().items()
    ]
    if isinstance(rule, ManipulatedWeightsRule):
        return repr(rule), rule.layer
    return repr(rule), *values
