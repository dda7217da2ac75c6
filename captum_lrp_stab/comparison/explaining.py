"""Which known differences lie between two sides: found by taking them away.

Layer by layer, a difference that is taken away lets the two sides agree further down, up to the
next one. What is left in the end, if anything, is not known.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from captum_lrp_stab.comparison.agreement import relative_difference
from captum_lrp_stab.comparison.known import DOUBLED_ADDITION, KnownDifference
from captum_lrp_stab.comparison.pair import Pair
from captum_lrp_stab.comparison.removals import ADDITIONS, REMOVALS, Trial
from captum_lrp_stab.comparison.runs import Runs
from captum_lrp_stab.sites import Operation

_Found = tuple[KnownDifference, ...]


@dataclass(frozen=True)
class Between:
    """What lies between two sides."""

    differences: _Found
    is_all: bool  # or is there a difference that is not known
    rest: Trial  # with the differences taken away


def differences_between(runs: Runs, trial: Trial) -> Between:
    """Return the fewest known differences without which the two sides agree.

    A doubled addition cannot be taken away: it counts where the two sides agree up to there. If the
    two do not agree in the end, what could be taken away is returned.
    """
    found: _Found = ()
    current = trial
    while True:
        addition = doubled_at(runs, current)
        if addition is not None:
            doubled = replace(DOUBLED_ADDITION, where=addition)
            return Between((*_needed(runs, trial, found), doubled), True, current)
        tried = list(_tried(runs, current, found))
        for difference, other in tried:
            if runs.error(other) <= runs.tolerance:
                return Between(_needed(runs, trial, (*found, difference)), True, other)
        here, error = _reach(runs, current), runs.error(current)
        reached = [_reach(runs, other) for _, other in tried]
        best = max(range(len(tried)), key=reached.__getitem__, default=None)
        if best is None or not reached[best] > here:
            useful = [one for one, reach in zip(tried, reached, strict=True) if reach >= here]
            watched = runs.pair(current).was_watched
            # unseen layers do not lead from one difference to the next: try three at once too
            for count in (2,) if watched else (2, 3):
                for more in combinations([difference for difference, _ in useful], count):
                    other = _without(runs, trial, (*found, *more))
                    if runs.error(other) <= runs.tolerance:
                        return Between((*found, *more), True, other)
            useful = [one for one in useful if runs.error(one[1]) <= error / 2]
            if not useful or watched:
                return Between(found, False, current)
            # let the size of the difference decide
            difference, current = min(useful, key=lambda one: runs.error(one[1]))
        else:
            difference, current = tried[best]
        found = (*found, difference)


def _without(runs: Runs, trial: Trial, differences: _Found) -> Trial:
    for difference in differences:
        trial = next(iter(REMOVALS[difference](trial, runs.operations)), trial)
    return trial


def _needed(runs: Runs, trial: Trial, found: _Found) -> _Found:
    """Return the differences without those that others make up for."""
    whole = _without(runs, trial, found)
    agree = runs.error(whole) <= runs.tolerance
    for difference in found[:-1]:
        fewer = tuple(other for other in found if other is not difference)
        without = _without(runs, trial, fewer)
        if (
            runs.error(without) <= runs.tolerance
            if agree
            else (_reach(runs, without) >= _reach(runs, whole))
        ):
            found = fewer
    return found


def _tried(runs: Runs, trial: Trial, found: _Found) -> Iterator[tuple[KnownDifference, Trial]]:
    """Yield each trial with one more difference taken away, but for those that change nothing."""
    before = runs.error(trial)
    for difference, removal in REMOVALS.items():
        for other in () if difference in found else removal(trial, runs.operations):
            moves = runs.error(other) != before or _reach(runs, other) != _reach(runs, trial)
            if moves and math.isfinite(runs.error(other)):
                yield difference, other


def _reach(runs: Runs, trial: Trial) -> tuple[int, float]:
    """Return how far two sides agree: through the forward pass, then back from the score."""
    first = runs.divergence(trial)
    if first is None:
        return (2, 0.0)
    index = runs.index_of(first.name)
    if first.direction == "forward":
        return (0, index)
    return (1, -math.inf if index < 0 else -index)


def doubled_at(runs: Runs, trial: Trial) -> str | None:
    """Return the addition at which the two sides part, if the reference doubles relevance there.

    That is, if it hands all the relevance of the sum to a summand, as it does to each.
    """
    first = runs.divergence(trial)
    if first is None or first.direction != "backward":
        return None
    pair = runs.pair(trial)
    for name in first.candidates:
        addition = pair.operations[pair.index_of(name)]
        sums = pair.ours.outputs.get(addition.name)
        if addition.kind not in ADDITIONS or len(addition.reads) < 2 or not sums:
            continue
        handed = (_handed(pair, summand) for summand in addition.reads)
        if any(_same(h, sums[0].relevance, runs.tolerance) for h in handed):
            return name
    return None


def _handed(pair: Pair, operation: Operation) -> list[Tensor] | None:
    """Return the reference's relevance of a result, or of what only passed on its way to it."""
    uses = pair.reference.outputs.get(operation.name)
    if uses:
        return uses[0].relevance
    if operation.treatment in ("moved", "passed") and len(operation.reads) == 1:
        return _handed(pair, operation.reads[0])
    return None


def _same(handed: list[Tensor] | None, sums: list[Tensor] | None, tolerance: float) -> bool:
    """Return whether all the relevance of a sum was handed down, where any was (not so by ReLU)."""
    if handed is None or sums is None or [t.shape for t in handed] != [t.shape for t in sums]:
        return False
    if not any(bool(t.any()) for t in handed):
        return False
    expected = [torch.where(h != 0, s, 0.0) for h, s in zip(handed, sums, strict=True)]
    difference = relative_difference(handed, expected)
    return difference is not None and difference <= tolerance
