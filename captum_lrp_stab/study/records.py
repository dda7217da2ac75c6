"""What is kept of each picture: plain numbers, no tensors.

A number that is NaN, Inf or would involve one is None.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from captum_lrp_stab.reporting.tables import without_nonfinite

STABLE, UNSTABLE, NOT_FINITE = "stable", "unstable", "not finite"
VERDICTS = (STABLE, UNSTABLE, NOT_FINITE)
"""From good to bad."""


@dataclass(frozen=True)
class Start:
    """Where the instability of one run starts, and why."""

    layer: str
    trouble: str
    direction: str
    factor: float | None  # how many times the relevance received is handed down
    neuron: tuple[int, ...] | None
    cause: str  # one of the kinds of ``diagnosis.causes.Cause``
    because: str
    remedy: str


@dataclass(frozen=True)
class Run:
    """One picture under one stabilizer."""

    name: str
    verdict: str  # one of ``VERDICTS``
    finite: bool
    score: float | None  # as the form computes it
    std_value: float | None  # standard deviation of every value of relevance
    std_pixel: float | None  # likewise of the sums over channels
    peak_over_median: float | None  # of pixels: largest over median absolute value
    sum_over_score: float | None
    growth: float | None  # sum of the inputs' absolute relevance over the absolute score
    nonfinite: int  # values of relevance that are NaN or Inf
    start: Start | None
    warnings: tuple[str, ...]
    amplification: Mapping[str, float | None] = field(repr=False)  # by layer


@dataclass(frozen=True)
class PictureRecord:
    """One picture under all stabilizers; or, with ``error``, why there is nothing to say of it."""

    picture: str
    sha256: str | None  # of the file; None if it cannot be read
    error: str | None
    target: int | None = None
    label: str | None = None
    probability: float | None = None
    score: float | None = None  # of the model as it is
    runs: tuple[Run, ...] = ()

    @property
    def worst(self) -> Run | None:
        """The run with the worst verdict; of several the one with the largest peak."""
        return max(
            self.runs,
            key=lambda run: (VERDICTS.index(run.verdict), run.peak_over_median or 0.0),
            default=None,
        )

    def facts(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        clean: dict[str, Any] = without_nonfinite(asdict(self))
        return clean


def record_of(facts: Mapping[str, Any]) -> PictureRecord:
    """Return a record from its :meth:`PictureRecord.facts`.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is too much, or of another type.
    """
    runs = tuple(_run_of(run) for run in facts["runs"])
    return PictureRecord(**{**facts, "runs": runs})


def _run_of(facts: Mapping[str, Any]) -> Run:
    start = facts["start"]
    if start is not None:
        neuron = start["neuron"]
        start = Start(**{**start, "neuron": None if neuron is None else tuple(neuron)})
    return Run(**{**facts, "start": start, "warnings": tuple(facts["warnings"])})
