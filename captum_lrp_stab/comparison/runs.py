"""The runs of a comparison: each is made once, and the last few are kept."""

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
from captum_lrp_stab.comparison.known_differences import Trial
from captum_lrp_stab.comparison.pair import Pair
from captum_lrp_stab.comparison.recording import Recording, record
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.task import Task

ROUNDINGS = 30.0
"""The effect of rounding in all layers, at most, in multiples of that of rounding the inputs."""

_MOST_ROUNDING = 1e-4
"""A larger difference counts as rounding only if a run in float64 shows that it is."""

_MOST_RECORDINGS = 4

Progress = Callable[[str], None]


class Runs:
    """The runs of one task in one dtype.

    Args:
        task: What is attributed.
        tolerance: Largest relative difference that counts as equal, None for the usual one.
        progress: Called with a name before each run.
        operations: Those of the task, if they are known.
    """

    def __init__(
        self,
        task: Task,
        tolerance: float | None,
        progress: Progress = lambda step: None,
        operations: Sequence[Operation] | None = None,
    ) -> None:
        self.task = task
        self.operations = task.operations() if operations is None else operations
        depth = sum(operation.rule is not None for operation in self.operations)
        usual = usual_tolerance(task.dtype, depth)
        self.tolerance = usual if tolerance is None else tolerance
        self._given, self._progress = tolerance, progress
        self.purpose = ""  # of the runs that follow
        self._operations = {_key(task)[:2]: self.operations}
        self._recordings: OrderedDict[Any, Recording] = OrderedDict()

    def trial(self, reference: Reference) -> Trial:
        """Return the comparison as it was asked for."""
        theirs = self.task
        if theirs.merge_batch_norm and not reference.merges_batch_norm:
            theirs = replace(theirs, merge_batch_norm=False)
        return Trial(self.task, theirs, reference)

    def pair(self, trial: Trial) -> Pair:
        """Return both sides of a trial, watched at every layer that the reference can watch."""
        seen = self._recordings.get((trial.reference, *_key(trial.theirs)))
        operations = self._operations_of(trial.ours)
        names = operations if seen is None or seen.was_watched else ()
        ours = self._ours(trial.ours, names)
        reference = self._recorded(trial.reference, trial.theirs, self._run)
        if trial.is_normalised and ours.score is not None:
            reference = reference.scaled(ours.score)
        return Pair(ours, reference, operations)

    def in_float64(self, reference: Reference) -> "Runs | None":
        """Return the same runs in float64, None if they are already, or cannot be."""
        if self.task.dtype == torch.float64:
            return None
        try:
            task = self.task.copied(torch.float64)
            runs = Runs(task, self._given, self._progress, self.operations)
            runs.purpose = " in float64"
            known = self._recordings.get((reference, *_key(self.task)))
            if reference.is_exact and known is not None:  # it would be the same run once more
                runs._recordings[(reference, *_key(task))] = known
            finite = math.isfinite(runs.pair(runs.trial(reference)).error)
        except LRPError:
            return None
        return runs if finite else None

    def tolerance_of_rounding(self) -> float:
        """Return a tolerance for what rounding alone does to this attribution.

        It is measured: by how much our run moves if its inputs move by a unit roundoff. Next to a
        pole of a rule that is far more than the usual tolerance, in any dtype.
        """
        if self._given is not None:
            return self.tolerance
        ours = self._ours(self.task)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may move out of a box
            self._tell("captum-lrp-stab")
            moved = record(self.task.moved())
        sensitivity = relative_difference(ours.relevances, moved.relevances) or 0.0
        return max(self.tolerance, min(ROUNDINGS * sensitivity, _MOST_ROUNDING))

    def _operations_of(self, task: Task) -> Sequence[Operation]:
        """Return the operations, with the rules of this task only if none is changed."""
        key = _key(task)[:2]
        if key not in self._operations:
            self._operations[key] = task.operations()
        return self._operations[key]

    def _ours(self, task: Task, watched: Sequence[Operation] = ()) -> Recording:
        names = tuple(dict.fromkeys(operation.name for operation in watched))
        return self._recorded(None, task, lambda reference, task: record(task, names))

    def _run(self, reference: Reference, task: Task) -> Recording:
        changed = task.changes != self.task.changes
        operations = task.operations() if changed else self._operations_of(task)
        return run_checked(reference, task, operations)

    def _recorded(
        self, reference: Any, task: Task, run: Callable[[Any, Task], Recording]
    ) -> Recording:
        """Return a recording, made or kept; they are large, so that only the last few are kept."""
        key = (reference, *_key(task))
        if key not in self._recordings:
            self._tell("captum-lrp-stab" if reference is None else reference.name)
            while len(self._recordings) >= _MOST_RECORDINGS:
                self._recordings.popitem(last=False)
            self._recordings[key] = run(reference, task)
        self._recordings.move_to_end(key)
        return self._recordings[key]

    def _tell(self, name: str) -> None:
        self._progress(f"{name}{self.purpose}")


def _key(task: Task) -> tuple[Any, ...]:
    """Return what the tasks of one comparison differ in."""
    return task.merge_batch_norm, id(task.rules), task.form, task.changes
