"""What a run leaves: rows, and everything around them."""

from dataclasses import dataclass
from typing import Any

from benchmarks.correctness import Correctness
from benchmarks.many import Many
from benchmarks.memory import Memory, multiple
from benchmarks.settings import Settings
from benchmarks.timing import Timing


@dataclass(frozen=True)
class Row:
    """One contender on one model and batch size.

    Args:
        model: Its name.
        batch: The number of inputs.
        library: Whose method it is.
        rules: Its rules; empty for the gradient.
        correctness: What its figures are worth, at batch 1.
        timing: None if it could not be run.
        memory: None if it was not measured.
        unit: The gradient's memory on this model and batch size.
    """

    model: str
    batch: int
    library: str
    rules: str
    correctness: Correctness
    timing: Timing | None = None
    memory: Memory | None = None
    unit: Memory | None = None

    @property
    def method(self) -> str:
        """``library:rules``."""
        return f"{self.library}:{self.rules}" if self.rules else self.library

    @property
    def memory_multiple(self) -> float | None:
        """Peak of tensor memory in units of the gradient's."""
        if self.memory is None or self.unit is None:
            return None
        return multiple(self.memory.peak, self.unit.peak)

    @property
    def resident_multiple(self) -> float | None:
        """Peak of resident memory in units of the gradient's."""
        if self.memory is None or self.unit is None:
            return None
        return multiple(self.memory.resident, self.unit.resident)


@dataclass(frozen=True)
class Results:
    """A run.

    Args:
        machine: What it ran on.
        settings: What was asked for.
        weights: Of each model, in words; or why the model is missing.
        rows: The contenders.
        many: Several targets and stabilizers in one call.
    """

    machine: dict[str, Any]
    settings: Settings
    weights: dict[str, str]
    rows: tuple[Row, ...]
    many: tuple[Many, ...] = ()
