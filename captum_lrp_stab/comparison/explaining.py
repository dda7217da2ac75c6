"""Which known differences lie between two sides: found by taking them away.

Layer by layer, a difference that is taken away lets the two sides agree further down, up to the
next one. What is left in the end, if anything, is not known.

Each attempt is a trial, for which this package, the reference or both run once more. Only what can
act where the two sides part is tried, and there is an end to it: see ``MOST_TRIALS``.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import reduce
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.comparison.agreement import relative_difference
from captum_lrp_stab.comparison.known_differences import (
    ADDITIONS,
    DOUBLED_ADDITION,
    REMOVALS,
    KnownDifference,
    Trial,
)
from captum_lrp_stab.comparison.pair import Pair
from captum_lrp_stab.comparison.references import ModifiedForwardReference
from captum_lrp_stab.comparison.runs import Runs
from captum_lrp_stab.dispatch.operation import Operation, names_of
from captum_lrp_stab.propagation.modified_forward import ModifiedForward
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.task import Change

MOST_TRIALS = 24
"""So often, at most, this package, the reference or both run again to explain a difference."""

_Found = tuple[KnownDifference, ...]


@dataclass(frozen=True)
class Between:
    """What lies between two sides."""

    differences: _Found
    is_all: bool  # or is there a difference that is not known
    rest: Trial  # with the differences taken away
    is_cut_short: bool = False  # not all was tried


def differences_between(runs: Runs, trial: Trial) -> Between:
    """Return the fewest known differences without which the two sides agree.

    A doubled addition cannot be taken away: it counts where the two sides agree up to there. If the
    two do not agree in the end, what could be taken away is returned.
    """
    search = _Search(runs, trial)
    try:
        return search.run()
    except _EndError:
        return Between(search.found, False, search.without(search.found), True)


class _EndError(Exception):
    """There have been as many trials as there may be."""


class _Search:
    """The search for what lies between two sides.

    Args:
        runs: The runs.
        trial: The comparison as it was asked for.
    """

    def __init__(self, runs: Runs, trial: Trial) -> None:
        self._runs = runs
        self._trials: dict[_Found, Trial] = {(): trial}
        self._tested: set[_Found] = {()}
        self.found: _Found = ()

    def run(self) -> Between:
        """Return what is found.

        Raises:
            _EndError: There have been as many trials as there may be.
        """
        runs = self._runs
        while True:
            current = self.without(self.found)
            addition = doubled_at(runs, current)
            if addition is not None:
                doubled = replace(DOUBLED_ADDITION, where=addition)
                return Between((*self._needed(self.found), doubled), True, current)
            tried = list(self._tried())
            for difference in tried:
                if self._agree((*self.found, difference)):
                    found = self._needed((*self.found, difference))
                    return Between(found, True, self.without((*self.found, difference)))
            here, error = _reach(runs, current), runs.error(current)
            reached = [_reach(runs, self.without((*self.found, one))) for one in tried]
            best = max(range(len(tried)), key=reached.__getitem__, default=None)
            if best is not None and reached[best] > here:
                self.found = (*self.found, tried[best])
                continue
            useful = [one for one, reach in zip(tried, reached, strict=True) if reach >= here]
            useful.sort(key=lambda one: self._error((*self.found, one)))
            watched = runs.divergence(current) is not None
            # unseen layers do not lead from one difference to the next: try three at once too
            for count in (2,) if watched else (2, 3):
                for more in combinations(useful, count):
                    if self._agree((*self.found, *more)):
                        found = (*self.found, *more)
                        return Between(found, True, self.without(found))
            # let the size of the difference decide
            if watched or not useful or self._error((*self.found, useful[0])) > error / 2:
                return Between(self.found, False, current)
            self.found = (*self.found, useful[0])

    def without(self, differences: _Found) -> Trial:
        """Return the trial with differences taken away, one after the other."""
        if differences not in self._trials:
            before = self.without(differences[:-1])
            removed = REMOVALS[differences[-1]](before, self._runs.operations)
            self._trials[differences] = next(iter(removed), before)
        return self._trials[differences]

    def _error(self, differences: _Found) -> float:
        """Return how far apart the sides are without differences."""
        if differences not in self._tested:
            if len(self._tested) > MOST_TRIALS:
                raise _EndError
            self._tested.add(differences)
            names = " and ".join(difference.name for difference in differences)
            count = f"{len(self._tested) - 1} of at most {MOST_TRIALS}"
            self._runs.purpose = f", trial {count}: without {names}"
        return self._runs.error(self.without(differences))

    def _agree(self, differences: _Found) -> bool:
        return self._error(differences) <= self._runs.tolerance

    def _tried(self) -> Iterator[KnownDifference]:
        """Yield what more can be taken away, but for what changes nothing."""
        runs, current = self._runs, self.without(self.found)
        before = runs.error(current)
        for difference in (one for one in REMOVALS if one not in self.found):
            other = self.without((*self.found, difference))
            if other is current or not _acts(runs, current, other):
                continue
            error = self._error((*self.found, difference))
            moves = error != before or _reach(runs, other) != _reach(runs, current)
            if moves and math.isfinite(error):
                yield difference

    def _needed(self, found: _Found) -> _Found:
        """Return the differences without those that others make up for."""
        if len(found) < 2:
            return found
        whole, agree = self.without(found), self._agree(found)
        for difference in found[:-1]:
            fewer = tuple(other for other in found if other is not difference)
            if agree:
                is_enough = self._agree(fewer)
            else:
                self._error(fewer)
                reach = _reach(self._runs, self.without(fewer))
                is_enough = reach >= _reach(self._runs, whole)
            found = fewer if is_enough else found
        return found


def _acts(runs: Runs, trial: Trial, other: Trial) -> bool:
    """Return whether a change of our rules acts where the sides part; any other change may.

    A change that does not leaves them parted there.
    """
    if _differ(trial, other, "ours") or _differ(trial.ours, other.ours, "changes"):
        return True
    first = runs.divergence(trial)
    rewritten = trial.ours.form is ModifiedForward
    if first is None or rewritten or isinstance(trial.reference, ModifiedForwardReference):
        return True  # where they part is not known, or every rule changes the values above it
    if first.direction == "forward":
        return False
    rules = {o.name: o.rule for o in runs.operations if o.rule is not None}
    names = {candidate.partition("[")[0] for candidate in first.candidates}
    before = [_changed(rules[name], trial.ours.changes) for name in names & rules.keys()]
    more = other.ours.changes[len(trial.ours.changes) :]
    return any(_changed(rule, more) is not rule for rule in before)


def _differ(one: Any, other: Any, but: str) -> bool:
    """Return whether two records differ in a field but the one named."""
    names = (field.name for field in fields(one) if field.name != but)
    return any(getattr(one, name) is not getattr(other, name) for name in names)


def _changed(rule: Rule, changes: Iterable[Change]) -> Rule:
    """Return a rule with changes made to it, one after the other."""
    return reduce(lambda changed, change: change(changed), changes, rule)


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
    operations = runs.operations_of(trial.ours)
    named = dict(zip(names_of(operations), operations, strict=True))
    additions = {
        name: named[name]
        for name in first.candidates
        if named[name].kind in ADDITIONS and len(named[name].reads) > 1
    }
    if not additions:
        return None
    pair = runs.pair(trial)
    for name, addition in additions.items():
        sums = pair.ours.outputs.get(addition.name)
        handed = (_handed(pair, summand) for summand in addition.reads)
        if sums and any(_same(h, sums[0].relevance, runs.tolerance) for h in handed):
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
