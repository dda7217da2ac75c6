"""``advise``: the least change of the rules under which an attribution is stable and exact.

Layer by layer, from the output down: at the first layer that is in trouble, or that hands down
something else than in float64, the least stabilizer is looked for under which neither is so. What
moves only denominators that are rounding noise (``RoundingAware``) is tried before an epsilon.
Every claim is the result of a run: the advice that is returned has been followed.
"""

import bisect
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

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
from captum_lrp_stab.ledger.locating import Origin, check_threshold, locate
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
from captum_lrp_stab.task import Subject, on

_FACTORS = (8.0, 64.0, 512.0)


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
    subject = Subject(
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
    checks.check_inputs(subject.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stabilizers that are tried
        return _Adviser(_explicit(subject), float(tolerance), threshold).advise()


def check_tolerance(tolerance: float) -> None:
    """Raise InputError unless ``tolerance`` is a positive number."""
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number or not 0 < tolerance < math.inf:
        raise InputError(f"tolerance is {tolerance!r}; give a positive number, such as 1e-3")


def _explicit(subject: Subject) -> Subject:
    """Return the subject with a rule of its own for each layer that has one in all of its uses."""
    rule_set, uses = subject.rule_set(), dict[str, list[Rule]]()
    for operation in subject.operations():
        if operation.rule is not None:
            uses.setdefault(operation.name, []).append(on(operation.rule, operation.name))
    named = {name: rules[0] for name, rules in uses.items() if len(set(map(_key, rules))) == 1}
    fixed = replace(rule_set, named={**rule_set.named, **named})
    return replace(subject, rules=None, stabilizer=None, changes=(), fixed=fixed)


class _Adviser:
    """The search; ``subject`` has the changes made so far.

    Args:
        subject: With a rule of its own for each layer.
        tolerance: See :func:`advise`.
        threshold: Likewise.
    """

    def __init__(self, subject: Subject, tolerance: float, threshold: float) -> None:
        self.first, self.subject = subject, subject
        self.tolerance, self.threshold = tolerance, threshold
        self.operations = subject.operations()
        self.names = tuple(dict.fromkeys(o.name for o in self.operations))
        self._in_float64 = subject.copied(torch.float64)
        try:
            with torch.autocast(subject.inputs[0].device.type, enabled=False):
                record(self._in_float64)
        except RuntimeError as error:
            raise ModelError(
                f"{type(subject.model).__name__} cannot run in float64, with which advice is "
                f"checked: {error}. Make what its forward creates in the dtype of its input"
            ) from error

    def advise(self) -> Advice:
        before, origin = self.error(self.subject), self.origin(self.subject)
        was_stable, tried = origin is None, set[str]()
        if origin is not None and self._is_drawn_to_0(origin.layer):
            self.subject = self._repaired()
            origin = self.origin(self.subject)
        while not (origin is None and self.is_within(self.error(self.subject))):
            layer = self._culprit(origin, tried)
            if layer is None:
                break
            tried.add(layer)
            self.subject = self._least(layer) or self.subject
            origin = self.origin(self.subject)
        error, dtype = self.error(self.subject), None
        if not self.is_within(error):
            self.subject, error, dtype = self._wider()
        return Advice(
            self.tolerance,
            before,
            error,
            was_stable,
            self.origin(self.subject) is None,
            tuple(self._changes()),
            _name_map(self.subject.rule_set().named),
            dtype,
            record(self.subject).relevances,
        )

    # what a subject is like ----------------------------------------------------------------------

    def exact(self, subject: Subject) -> Subject:
        """Return a subject in float64."""
        return replace(self._in_float64, fixed=subject.fixed)

    def error(self, subject: Subject) -> float | None:
        """Return how far a subject is from float64; None if either is not finite."""
        ours = record(subject).relevances
        with torch.autocast(ours[0].device.type, enabled=False):
            return relative_difference(ours, record(self.exact(subject)).relevances)

    def is_within(self, error: float | None) -> bool:
        """Return whether a difference is small enough."""
        return error is not None and error <= self.tolerance

    def origin(self, subject: Subject) -> Origin | None:
        """Return where a subject's trouble starts."""
        return locate(watch(subject, self.operations).records, self.threshold)

    def _agrees_below(self, subject: Subject, layer: str) -> bool:
        """Return whether a layer hands down what it does in float64."""
        found = [
            record(one, (layer,)).inputs.get(layer, []) for one in (subject, self.exact(subject))
        ]
        if len(found[0]) != len(found[1]):
            return False
        pairs = list(zip(*found, strict=True))
        if not any(bool(t.any()) for _, b in pairs for t in b.relevance or ()):
            return False  # nothing comes down any more: that is no cure
        differences = [relative_difference(a.relevance or (), b.relevance or ()) for a, b in pairs]
        return all(map(self.is_within, differences))

    # the search ----------------------------------------------------------------------------------

    def _is_drawn_to_0(self, layer: str) -> bool:
        """Return whether a layer's stabilizer moves denominators towards 0."""
        rule = self.subject.rule_set().named.get(layer)
        return rule is not None and not rule.moves_away_from_0

    def _repaired(self) -> Subject:
        """Return the subject without such stabilizers: they are wrong in kind, not in size."""
        layers = self.subject.rule_set().named
        repairs = {name: RoundingAware() for name in layers if self._is_drawn_to_0(name)}
        return self._with(repairs) or self.subject

    def _culprit(self, origin: Origin | None, tried: set[str]) -> str | None:
        """Return the next layer to change, None if there is none."""
        rules = self.subject.rule_set().named
        # rounding can hide an exact 0, which float64 then divides by
        for found in (origin, self.origin(self.exact(self.subject))):
            if found is not None and found.layer in rules and found.layer not in tried:
                return found.layer
        ours = record(self.subject, self.names)
        exact = record(self.exact(self.subject), self.names)
        parted = Pair(ours, exact, self.operations).divergence(self.tolerance)
        if parted is None:
            return None
        layer = parted.name.partition("[")[0]
        return layer if layer in rules and layer not in tried else None

    def _least(self, layer: str) -> Subject | None:
        """Return the subject with the least stabilizer of a layer that helps; None if none does."""
        rounding = [self._with({layer: RoundingAware(f)}) for f in _FACTORS]
        scale = self._medians().get(layer, 1.0)
        largest = torch.finfo(self.subject.dtype).max / 10
        ladder = [self._with({layer: Signed(e)}) for e in _ladder(scale) if e < largest]
        if any(subject is None for subject in (*rounding, *ladder)):
            return None  # a rule that takes no stabilizer

        def is_cured(subject: Subject | None) -> bool:
            assert subject is not None
            origin = self.origin(subject)
            return self._agrees_below(subject, layer) and (origin is None or origin.layer != layer)

        def agrees(subject: Subject | None) -> bool:
            assert subject is not None
            return self._agrees_below(subject, layer)

        # where it agrees already, there is nothing to gain by agreement alone
        for helps in (is_cured,) if agrees(self.subject) else (is_cured, agrees):
            for subject in rounding:
                if helps(subject):
                    return subject
            # an epsilon that is large enough helps, and so does a larger one
            index = bisect.bisect_left(ladder, True, key=helps)
            if index < len(ladder):
                return ladder[index]
        return None

    def _wider(self) -> tuple[Subject, float | None, str | None]:
        """Return the subject in the narrowest dtype that agrees with float64.

        As it was, if that is stable, or else with the changes made; these alone if no dtype helps.
        """
        for subject in (self.first, self.subject):
            for dtype in (torch.bfloat16, torch.float32, torch.float64):
                if _holds_all_of(dtype, self.first.dtype):
                    wide = subject.copied(dtype)
                    with torch.autocast(wide.inputs[0].device.type, enabled=False):
                        error = self.error(wide)
                    if self.is_within(error):
                        return wide, error, str(dtype).removeprefix("torch.")
        return self.subject, self.error(self.subject), None

    # rules ---------------------------------------------------------------------------------------

    def _with(self, stabilizers: Mapping[str, Stabilizer]) -> Subject | None:
        """Return the subject with other stabilizers; None if a layer's rule takes none."""
        rule_set = self.subject.rule_set()
        named = dict(rule_set.named)
        for layer, stabilizer in stabilizers.items():
            other = _stabilized(named[layer], stabilizer)
            if other is None and len(stabilizers) == 1:
                return None
            named[layer] = other or named[layer]
        return replace(self.subject, fixed=replace(rule_set, named=named))

    def _medians(self) -> dict[str, float]:
        """Return the median denominator of each layer."""
        found = {}
        for one in watch(self.first, self.operations).records:
            median = one.denominators and one.denominators.sizes.quantile(0.5)
            if one.has_rule and median:
                found[one.layer] = median
        return found

    def _changes(self) -> Iterator[Change]:
        before, after = (s.rule_set().named for s in (self.first, self.subject))
        for layer, rule in after.items():
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
