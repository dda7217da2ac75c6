"""From two runs to a verdict: equal, rounding, a known difference, or different."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

from torch import Tensor

from captum_lrp_stab.comparison.agreement import relative_difference
from captum_lrp_stab.comparison.known import (
    DOUBLED_ADDITION,
    REMOVALS,
    KnownDifference,
    Trial,
)
from captum_lrp_stab.comparison.pair import Divergence, Pair
from captum_lrp_stab.comparison.references import Float64Reference
from captum_lrp_stab.comparison.runs import Runs

Verdict = Literal["equal", "rounding", "known difference", "different", "reference not finite"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Judgement:
    """A verdict, the reasons, and the first place at which the two sides part."""

    verdict: Verdict
    explanation: str
    first: Divergence | None = None
    differences: tuple[KnownDifference, ...] = ()


def judge(runs: Runs, trial: Trial) -> Judgement:
    """Return what to make of a trial."""
    pair, tolerance = runs.pair(trial), runs.tolerance
    overall, name = pair.overall, trial.reference.name
    if overall.reference_nonfinite:
        first = pair.divergence(tolerance)
        text = f"{name} has {overall.reference_nonfinite} values that are NaN or Inf, "
        ours = f"{overall.nonfinite} of them" if overall.nonfinite else "none"
        return Judgement("reference not finite", f"{text}this package {ours}{_at(first)}", first)
    if overall.nonfinite:
        first = pair.divergence(tolerance)
        text = f"this package has {overall.nonfinite} values that are NaN or Inf, {name} none"
        return Judgement("different", text + _at(first), first)
    assert overall.relative_l2 is not None  # both sides are finite
    size = f"relative difference {overall.relative_l2:.2g}"
    if overall.within(tolerance):
        return Judgement("equal", f"{size}, within {tolerance:.2g}")
    exact = runs.in_float64(trial.reference)
    if exact is None:
        if isinstance(trial.reference, Float64Reference):
            return _rounding(pair, size, tolerance, "the same run in float64")
        return _explained(runs, trial, size)
    other = exact.trial(trial.reference)
    error = exact.error(other)
    if isinstance(trial.reference, Float64Reference) or error <= exact.tolerance:
        return _rounding(pair, size, tolerance, f"in float64 it is {error:.2g}")
    return _explained(exact, other, f"{size}, {error:.2g} in float64")


def _rounding(pair: Pair, size: str, tolerance: float, proof: str) -> Judgement:
    first = pair.divergence(tolerance)
    text = f"{size}, more than {tolerance:.2g}, but {proof}: rounding errors that"
    return Judgement("rounding", f"{text} small denominators amplify{_at(first)}", first)


def _explained(runs: Runs, trial: Trial, size: str) -> Judgement:
    """Return the verdict on a difference that is not rounding."""
    first = runs.pair(trial).divergence(runs.tolerance)
    found = removed(runs, trial)
    if found:
        names = " and ".join(d.name + (f" '{d.where}'" if d.where else "") for d in found)
        return Judgement("known difference", f"{names}; {size}{_at(first)}", first, found)
    return Judgement("different", f"{size}{_at(first)}", first)


def removed(runs: Runs, trial: Trial) -> tuple[KnownDifference, ...]:
    """Return the fewest known differences without which the two sides agree, none if no such.

    Each is tried alone and with each other, because two may partly cancel out; to more than two it
    comes only as long as each halves what the others leave. A doubled addition cannot be removed:
    it counts if the two sides agree up to there, at once or with one difference removed.
    """
    addition = doubled_at(runs, trial)
    if addition is not None:
        return (replace(DOUBLED_ADDITION, where=addition),)
    tolerance, before = runs.tolerance, runs.error(trial)
    errors: dict[tuple[KnownDifference, ...], float] = {}

    def agree(differences: tuple[KnownDifference, ...]) -> bool:
        errors[differences] = runs.error(without(runs, trial, differences))
        return errors[differences] <= tolerance

    possible = [d for d in REMOVALS if any(True for _ in REMOVALS[d](trial, runs.operations))]
    for difference in possible:
        if agree((difference,)):
            return (difference,)
    effective = [d for d in possible if errors[d,] != before and math.isfinite(errors[d,])]
    for difference in effective:
        addition = doubled_at(runs, without(runs, trial, (difference,)))
        if addition is not None:
            return difference, replace(DOUBLED_ADDITION, where=addition)
    for two in combinations(effective, 2):
        if agree(two):
            return two
    while errors:
        best = min(errors, key=lambda differences: errors[differences])
        more = [(*best, d) for d in effective if d not in best]
        left = errors[best]
        for differences in more:
            if agree(differences):
                return differences
        if not more or min(errors[differences] for differences in more) > left / 2:
            break
    return ()


def without(runs: Runs, trial: Trial, differences: Sequence[KnownDifference]) -> Trial:
    """Return a trial with differences removed."""
    for difference in differences:
        trial = next(iter(REMOVALS[difference](trial, runs.operations)), trial)
    return trial


def doubled_at(runs: Runs, trial: Trial) -> str | None:
    """Return the addition at which the two sides part, if the reference doubles relevance there.

    That is, if it hands all the relevance of the sum to a summand, as it does to each.
    """
    pair = runs.pair(trial)
    first = pair.divergence(runs.tolerance)
    if first is None or first.direction != "backward":
        return None
    for name in first.candidates:
        addition = pair.operation_of(name)
        if addition is None or addition.kind not in ("add", "sub"):
            continue
        sums = pair.ours.outputs.get(addition.name)
        summands = [pair.reference.outputs.get(o.name) for o in addition.reads]
        handed = [uses[0].relevance for uses in summands if uses]
        if sums and any(_same(h, sums[0].relevance, runs.tolerance) for h in handed):
            return name
    return None


def _same(one: list[Tensor] | None, other: list[Tensor] | None, tolerance: float) -> bool:
    if one is None or other is None or [t.shape for t in one] != [t.shape for t in other]:
        return False
    difference = relative_difference(one, other)
    return difference is not None and difference <= tolerance


def _at(first: Divergence | None) -> str:
    if first is None:
        return ""
    if len(first.candidates) > 1:
        others = ", ".join(first.candidates[1:4])
        return f"; they part at '{first.name}' ({first.kind}) or {others}"
    where = "in the forward pass, at" if first.direction == "forward" else "at"
    kind = f" ({first.kind})" if first.kind else ""
    return f"; they part {where} '{first.name}'{kind}"
