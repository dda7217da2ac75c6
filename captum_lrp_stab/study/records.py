"""What is kept of each picture: plain numbers, no tensors.

A number that is NaN, Inf or would involve one is None; what the finite values alone say stands
apart, under ``finite_values`` and ``finite_pixels``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from captum_lrp_stab.reporting.tables import without_nonfinite
from captum_lrp_stab.study.statistics import Place, Statistics

STABLE, UNSTABLE, NOT_FINITE = "stable", "unstable", "not finite"
VERDICTS = (STABLE, UNSTABLE, NOT_FINITE)
"""From good to bad."""


@dataclass(frozen=True)
class Start:
    """Where the instability of one run starts, and why."""

    layer: str
    trouble: str
    direction: str
    factor: float | None  # relevance passed on over relevance received, in absolute value
    neuron: tuple[int, ...] | None
    cause: str  # one of the kinds of ``ledger.causes.Cause``
    because: str
    remedy: str


@dataclass(frozen=True)
class Run:
    """The relevance of one picture under one stabilizer."""

    name: str  # of the stabilizer
    verdict: str  # one of ``VERDICTS``
    finite: bool
    score: float | None  # as the form computes it
    sum_over_score: float | None
    growth: float | None  # sum of the inputs' absolute relevance over the absolute score
    values: Statistics  # of every value of relevance
    pixels: Statistics  # of the sums over channels
    finite_values: Statistics | None  # of the finite values alone, where not all are
    finite_pixels: Statistics | None
    largest: Place | None
    smallest: Place | None
    start: Start | None
    warnings: tuple[str, ...]
    amplification: Mapping[str, float | None] = field(repr=False)  # by layer


@dataclass(frozen=True)
class PictureRecord:
    """One picture under all stabilizers; or, with ``error``, why it could not be measured."""

    picture: str
    sha256: str | None  # of the file; None if there is none, or it cannot be read
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
            key=lambda run: (VERDICTS.index(run.verdict), run.pixels.peak_over_median or 0.0),
            default=None,
        )

    def facts(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        clean: dict[str, Any] = without_nonfinite(asdict(self))
        return clean


_PARTS: dict[str, type] = {
    **{"values": Statistics, "pixels": Statistics},
    **{"finite_values": Statistics, "finite_pixels": Statistics},
    **{"largest": Place, "smallest": Place, "start": Start},
}


def record_of(facts: Mapping[str, Any]) -> PictureRecord:
    """Return a record from its :meth:`PictureRecord.facts`.

    Raises:
        KeyError: Something is missing.
        TypeError: Something is too much, or of another type.
    """
    runs = tuple(Run(**_with_tuples(run, _PARTS)) for run in facts["runs"])
    return PictureRecord(**{**facts, "runs": runs})


def _with_tuples(facts: Mapping[str, Any], parts: Mapping[str, type] = {}) -> dict[str, Any]:
    """Return facts with tuples in the place of lists, and the parts as what they were."""
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    for name, kind in parts.items():
        found[name] = None if facts[name] is None else kind(**_with_tuples(facts[name]))
    return found
