"""The search for the known differences between two sides: take some away, and run both again.

The first place at which two sides part tells how far they agree. Without a difference they agree
further, up to the next one. So one known difference is taken away, or where that is to no avail two
or three at once, and the search goes on from where they agree furthest.
"""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

from captum_lrp_stab.comparison.known_differences import (
    DOUBLED_ADDITION,
    REMOVALS,
    KnownDifference,
    Trial,
    doubled_at,
)
from captum_lrp_stab.comparison.pair import Divergence
from captum_lrp_stab.comparison.references import ModifiedForwardReference
from captum_lrp_stab.comparison.runs import Runs
from captum_lrp_stab.dispatch.operation import names_of
from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.propagation.modified_forward import ModifiedForward

MOST_TRIALS = 24
"""The most trials in which both sides are compared again to explain a difference."""

_Differences = tuple[KnownDifference, ...]


@dataclass(frozen=True)
class Between:
    """The known differences between two sides.

    ``first`` is the place at which the sides part; where these differences are not all there is,
    at which they part without them.
    """

    differences: _Differences
    first: Divergence | None
    is_all: bool
    is_cut_short: bool = False


@dataclass(frozen=True)
class _Attempt:
    """Two sides compared without some differences: how far apart they are, and where they part."""

    differences: _Differences
    trial: Trial
    error: float
    first: Divergence | None
    agree_up_to: tuple[int, float]
    addition: str | None  # where they part because the reference doubles relevance

    @property
    def rank(self) -> tuple[tuple[int, float], float]:
        """How far the sides agree; where no layer is seen, the error alone tells."""
        return self.agree_up_to, -self.error if self.first is None else 0.0

    def is_better_than(self, other: "_Attempt") -> bool:
        """Return whether the sides agree further; where no layer is seen, twice as well."""
        closer = self.first is None and self.error <= other.error / 2
        return self.agree_up_to > other.agree_up_to or closer


def differences_between(runs: Runs, trial: Trial, tolerance: float) -> Between:
    """Return the known differences without which two sides agree.

    A doubled addition cannot be taken away: it counts where the two sides agree up to there. If the
    two do not agree in the end, the differences are returned without which they agree furthest.
    """
    return _Search(runs, trial, tolerance).run()


class _Search:
    def __init__(self, runs: Runs, trial: Trial, tolerance: float) -> None:
        self._runs, self._tolerance = runs, tolerance
        self._places = {name: i for i, name in enumerate(names_of(runs.operations))}
        self._trials: dict[_Differences, Trial] = {(): trial}
        self._attempts: dict[frozenset[KnownDifference], _Attempt] = {}
        self._is_cut_short = False

    def run(self) -> Between:
        start = best = self._compared(())
        if self._agree(start):
            return self._all(start, start.first)
        candidates, count = list(REMOVALS), 1
        while count <= (3 if best.first is None else 2):  # at once
            attempts = []
            for more in combinations(candidates, count):
                attempt = self._attempt_beyond(best, more)
                if attempt is not None and self._agree(attempt):
                    return self._all(attempt, start.first)
                attempts += [attempt] if attempt is not None else []
            further = [attempt for attempt in attempts if attempt.is_better_than(best)]
            if further:
                best = max(further, key=lambda attempt: attempt.rank)
                candidates, count = list(REMOVALS), 1
            else:
                candidates = candidates if count > 1 else [a.differences[-1] for a in attempts]
                count += 1
        return Between(best.differences, best.first, False, self._is_cut_short)

    def _agree(self, attempt: _Attempt) -> bool:
        return attempt.error <= self._tolerance or attempt.addition is not None

    def _all(self, attempt: _Attempt, first: Divergence | None) -> Between:
        """Return the differences of an attempt, but for those that the others make up for."""
        needed = attempt.differences
        for one in attempt.differences[:-1]:
            fewer = tuple(other for other in needed if other is not one)
            without = self._attempt(fewer) if fewer else None
            needed = fewer if without is not None and self._agree(without) else needed
        if attempt.addition is not None:
            doubled = KnownDifference(
                DOUBLED_ADDITION.name, DOUBLED_ADDITION.meaning, attempt.addition
            )
            needed = (*needed, doubled)
        return Between(needed, first, True)

    def _attempt_beyond(self, current: _Attempt, more: _Differences) -> _Attempt | None:
        """Return an attempt without more differences; None if the sides agree no better."""
        differences = (*current.differences, *more)
        is_new = len(set(differences)) == len(differences)
        if not is_new or not self._acts(current, self._trial(differences)):
            return None
        attempt = self._attempt(differences)
        if attempt is None or attempt.agree_up_to < current.agree_up_to:
            return None
        same = (attempt.error, attempt.agree_up_to) == (current.error, current.agree_up_to)
        return None if same else attempt

    def _acts(self, current: _Attempt, trial: Trial) -> bool:
        """Return whether another trial may change what happens where the sides part.

        A change of our rules does so only if it changes a rule there.
        """
        if trial is current.trial:
            return False
        before, first = current.trial.ours.changes, current.first
        more = trial.ours.changes[len(before) :]
        rewritten = trial.ours.form is ModifiedForward
        rewritten |= isinstance(trial.reference, ModifiedForwardReference)
        if not more or first is None or rewritten:
            return True  # where they part is not known, or every rule changes the values above it
        if first.direction == "forward":
            return False
        names = {candidate.partition("[")[0] for candidate in first.candidates}
        known = (o.rule for o in self._runs.operations if o.rule is not None and o.name in names)
        rules = [reduce(lambda rule, change: change(rule), before, rule) for rule in known]
        return any(change(rule) is not rule for change in more for rule in rules)

    def _trial(self, differences: _Differences) -> Trial:
        """Return the trial with differences taken away, one after the other."""
        if differences not in self._trials:
            before = self._trial(differences[:-1])
            removed = REMOVALS[differences[-1]](before, self._runs.operations)
            self._trials[differences] = removed or before
        return self._trials[differences]

    def _attempt(self, differences: _Differences) -> _Attempt | None:
        """Compare the sides without differences; None if there have been too many attempts."""
        key, count = frozenset(differences), len(self._attempts)
        if key not in self._attempts:
            if count >= MOST_TRIALS:
                self._is_cut_short = True
                return None
            names = " and ".join(difference.name for difference in differences)
            self._runs.purpose = f", trial {count + 1} of at most {MOST_TRIALS}: without {names}"
            self._attempts[key] = self._compared(differences)
        return self._attempts[key]

    def _compared(self, differences: _Differences) -> _Attempt:
        trial = self._trial(differences)
        try:
            pair = self._runs.pair(trial)
        except LRPError:  # it cannot be run
            return _Attempt(differences, trial, math.inf, None, (-1, 0.0), None)
        first = pair.divergence(self._tolerance)
        addition = None if first is None else doubled_at(pair, first, self._tolerance)
        up_to: tuple[int, float] = (2, 0.0)
        if first is not None:
            place = self._places.get(first.name, math.inf)
            up_to = (0, place) if first.direction == "forward" else (1, -place)
        return _Attempt(differences, trial, pair.error, first, up_to, addition)
