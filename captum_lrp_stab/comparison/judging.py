"""From two runs to a verdict: equal, rounding, a known difference, or different."""

from dataclasses import dataclass
from typing import Literal

import torch

from captum_lrp_stab.comparison.explaining import MOST_TRIALS, differences_between
from captum_lrp_stab.comparison.known import KnownDifference
from captum_lrp_stab.comparison.pair import Divergence, Pair
from captum_lrp_stab.comparison.removals import Trial
from captum_lrp_stab.comparison.runs import ROUNDINGS, Runs

_PLAIN = 1e-3
"""A relative difference inside a network that is no rounding, whatever becomes of it."""

Verdict = Literal["equal", "rounding", "known difference", "different", "reference not finite"]


@dataclass(frozen=True)
class Judgement:
    """A verdict, the reasons, and the first place at which the two sides part."""

    verdict: Verdict
    explanation: str
    first: Divergence | None = None
    differences: tuple[KnownDifference, ...] = ()


def judge(runs: Runs, trial: Trial, pair: Pair) -> Judgement:
    """Return what to make of a trial, both sides of which are given."""
    tolerance = runs.tolerance
    overall, name = pair.overall, trial.reference.name
    if overall.reference_nonfinite:
        first = pair.divergence(tolerance)
        text = f"{name} has {overall.reference_nonfinite} values that are NaN or Inf, this package "
        ours = str(overall.nonfinite or "none")
        return Judgement("reference not finite", text + ours + _at(first), first)
    if overall.nonfinite:
        first = pair.divergence(tolerance)
        text = f"this package has {overall.nonfinite} values that are NaN or Inf, {name} none"
        return Judgement("different", text + _at(first), first)
    assert overall.relative_l2 is not None  # both sides are finite
    size = f"relative difference {overall.relative_l2:.2g}"
    if overall.within(tolerance):
        if not any(bool(r.any()) for r in (*pair.ours.relevances, *pair.reference.relevances)):
            return Judgement("equal", "both sides are 0 everywhere: nothing was compared")
        inside = pair.divergence(max(tolerance, _PLAIN))
        cancels = "" if inside is None else f", but what differs inside cancels out{_at(inside)}"
        return Judgement("equal", f"{size}, within {tolerance:.2g}{cancels}", inside)
    exact = runs.in_float64(trial.reference)
    if exact is None:
        if runs.subject.dtype != torch.float64:
            size += " (the reference does not run in float64, so rounding is not ruled out)"
        return _explained(runs, trial, pair, size)
    other = exact.trial(trial.reference)
    error = exact.error(other)
    units = [torch.finfo(runs_.subject.dtype).eps for runs_ in (runs, exact)]
    # rounding shrinks with the unit roundoff, a difference of meaning does not
    shrunk = ROUNDINGS * overall.relative_l2 * units[1] / units[0]
    if error <= max(exact.tolerance, min(shrunk, tolerance)):
        return _rounding(pair, size, tolerance, f"in float64 it is {error:.2g}")
    return _explained(exact, other, None, f"{size}, {error:.2g} in float64")


def _rounding(pair: Pair, size: str, tolerance: float, proof: str) -> Judgement:
    first = pair.divergence(tolerance)
    text = f"{size}, more than {tolerance:.2g}, but {proof}: rounding errors that"
    return Judgement("rounding", f"{text} small denominators amplify{_at(first)}", first)


def _explained(runs: Runs, trial: Trial, pair: Pair | None, size: str) -> Judgement:
    """Return the verdict on a difference that float64 does not take away."""
    usual = runs.tolerance
    runs = runs.loosened()
    if runs.error(trial) <= runs.tolerance:
        proof = "the inputs moved by a unit roundoff make as large a one"
        return _rounding(pair or runs.pair(trial), size, usual, proof)
    between = differences_between(runs, trial)
    found = between.differences
    names = " and ".join(d.name + (f" '{d.where}'" if d.where else "") for d in found)
    if between.is_all:
        first = runs.divergence(trial)
        below = "; below the addition nothing is comparable" if found[-1].where else ""
        return Judgement("known difference", f"{names}; {size}{_at(first)}{below}", first, found)
    first = runs.divergence(between.rest)
    besides = f"besides {names}; " if found else ""
    end = f"; the search for known differences ended after {MOST_TRIALS} trials"
    end = end if between.is_cut_short else ""
    return Judgement("different", f"{besides}{size}{_at(first)}{end}", first, found)


def _at(first: Divergence | None) -> str:
    if first is None:
        return "; its layers were not seen"
    if len(first.candidates) > 1:
        others = ", ".join(first.candidates[1:4])
        return f"; they part at '{first.name}' ({first.kind}) or {others}"
    where = "in the forward pass, at" if first.direction == "forward" else "at"
    kind = f" ({first.kind})" if first.kind else ""
    return f"; they part {where} '{first.name}'{kind}"
