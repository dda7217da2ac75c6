"""The runs that a comparison is made of, each made once."""

import copy
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from captum_lrp_stab.comparison.agreement import relative_difference
from captum_lrp_stab.comparison.agreement import tolerance as usual_tolerance
from captum_lrp_stab.comparison.base import Reference, run_checked
from captum_lrp_stab.comparison.captum_reference import CaptumReference
from captum_lrp_stab.comparison.known_differences import Trial
from captum_lrp_stab.comparison.pair import Divergence, Pair
from captum_lrp_stab.comparison.recording import Recording, record
from captum_lrp_stab.dispatch.operation import Operation, names_of
from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.task import Subject

ROUNDINGS = 30.0
"""What rounding in every layer may add up to, as multiples of one rounding of the inputs."""

_MOST_ROUNDING = 1e-4
"""A larger difference is never taken for rounding where float64 does not show that it is."""

_MOST_RECORDINGS = 4

Progress = Callable[[str], None]


class Runs:
    """The runs of one subject in one dtype.

    Args:
        subject: What is attributed.
        tolerance: Largest relative difference that counts as equal, None for the usual one.
        progress: Called with a name before each run.
        operations: Those of the subject, if they are known.
    """

    def __init__(
        self,
        subject: Subject,
        tolerance: float | None,
        progress: Progress = lambda step: None,
        operations: Sequence[Operation] | None = None,
    ) -> None:
        self.subject = subject
        self.operations = subject.operations() if operations is None else operations
        depth = sum(operation.rule is not None for operation in self.operations)
        usual = usual_tolerance(subject.dtype, depth)
        self.tolerance = usual if tolerance is None else tolerance
        self._given, self._progress = tolerance, progress
        self.purpose = ""  # of the runs that follow
        self._results: dict[Any, tuple[Any, Any]] = {}
        self._recordings: OrderedDict[Any, tuple[Any, Recording]] = OrderedDict()

    def trial(self, reference: Reference) -> Trial:
        """Return the comparison as it was asked for."""
        theirs = self.subject
        if isinstance(reference, CaptumReference) and theirs.merge_batch_norm:
            theirs = replace(theirs, merge_batch_norm=False)  # it knows no merged layers
        return Trial(self.subject, theirs, reference)

    def in_float64(self, reference: Reference) -> "Runs | None":
        """Return the same runs in float64, None if they are already, or cannot be."""
        if self.subject.dtype == torch.float64:
            return None
        try:
            subject = self.subject.copied(torch.float64)
            runs = Runs(subject, self._given, self._progress, self.operations)
            runs.purpose = " in float64"
            known = self._recordings.get((id(reference), id(self.subject)))
            if reference.is_exact and known is not None:  # it would be the same run once more
                runs._recordings[id(reference), id(subject)] = known
            finite = runs.pair(runs.trial(reference)).overall.is_finite
        except LRPError:
            return None
        return runs if finite else None

    def loosened(self) -> "Runs":
        """Return the runs with a tolerance for what rounding alone does to this attribution.

        It is measured: by how much our run moves if its inputs move by a unit roundoff. Next to a
        pole of a rule that is far more than the usual tolerance, in any dtype.
        """
        if self._given is not None:
            return self
        ours = self._ours(self.subject)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may move out of a box
            moved = self._ours(self.subject.moved())
        sensitivity = relative_difference(ours.relevances, moved.relevances) or 0.0
        other = copy.copy(self)
        other.tolerance = max(self.tolerance, min(ROUNDINGS * sensitivity, _MOST_ROUNDING))
        return other

    def operations_of(self, subject: Subject) -> Sequence[Operation]:
        """Return the operations, with the rules of this subject only if none is changed."""
        known = self.subject.merge_batch_norm, self.subject.rules
        if subject.merge_batch_norm is known[0] and subject.rules is known[1]:
            return self.operations
        found: list[Operation] = self._once((id(subject), "plan"), subject, subject.operations)
        return found

    def pair(self, trial: Trial) -> Pair:
        """Return both sides of a trial, watched at every layer."""
        known = self._recordings.get((id(trial.reference), id(trial.theirs)))
        ours = self._ours(trial.ours, known is None or known[1].was_watched)
        return Pair(ours, self._reference(trial, ours), self.operations_of(trial.ours))

    def divergence(self, trial: Trial) -> Divergence | None:
        """Return the first place at which the two sides of a trial part."""

        def find() -> Divergence | None:
            return self.pair(trial).divergence(self.tolerance)

        found: Divergence | None = self._once((*_key(trial), self.tolerance), trial, find)
        return found

    def index_of(self, layer: str) -> int:
        """Return the place of a layer, by its name in a pair, among the operations; -1 for none.

        Trials may merge batch norms or not: this is the place in the first of them.
        """
        names = names_of(self.operations)
        return names.index(layer) if layer in names else -1

    def error(self, trial: Trial) -> float:
        """Return the relative difference of a trial; infinite where it cannot be run."""

        def find() -> float:
            try:
                pair = self.pair(trial)
            except LRPError:
                return math.inf
            found = relative_difference(pair.ours.relevances, pair.reference.relevances)
            return math.inf if found is None else found

        error: float = self._once((*_key(trial), "error"), trial, find)
        return error

    def _ours(self, subject: Subject, watched: bool = True) -> Recording:
        """Return a run of ours, watched at every layer, or at none."""

        def run() -> Recording:
            names = dict.fromkeys(operation.name for operation in self.operations_of(subject))
            self._tell("captum-lrp-stab")
            return record(subject, tuple(names) if watched else ())

        return self._recorded((id(subject), "ours"), subject, run)

    def _reference(self, trial: Trial, ours: Recording) -> Recording:
        def run() -> Recording:
            self._tell(trial.reference.name)
            changed = trial.theirs.changes != self.subject.changes
            operations = trial.theirs.operations() if changed else self.operations_of(trial.theirs)
            return run_checked(trial.reference, trial.theirs, operations)

        found = self._recorded((id(trial.reference), id(trial.theirs)), trial, run)
        if trial.is_normalised and ours.score is not None:
            return found.scaled(ours.score)
        return found

    def _tell(self, name: str) -> None:
        self._progress(f"{name}{self.purpose}")

    def _once(self, key: Any, alive: Any, make: Callable[[], Any]) -> Any:
        """Return what was made under a key; what its ids belong to is kept alive."""
        if key not in self._results:
            self._results[key] = (alive, make())
        return self._results[key][1]

    def _recorded(self, key: Any, alive: Any, run: Callable[[], Recording]) -> Recording:
        """Return a run with its layers, which is large: only the last few are kept."""
        if key not in self._recordings:
            while len(self._recordings) >= _MOST_RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[key] = (alive, run())
        self._recordings.move_to_end(key)
        return self._recordings[key][1]


def _key(trial: Trial) -> tuple[int, int, int, bool]:
    return id(trial.ours), id(trial.theirs), id(trial.reference), trial.is_normalised
