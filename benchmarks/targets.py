"""What was promised, and whether it is kept.

All targets are for inputs of 224 pixels. Times are multiples of gradient x input, on the CPU in
float32; factors are how many times longer another library takes under the same rules; memory is a
multiple of the gradient's. A target that holds for every row is judged by its worst one, wrong
contenders included: a wrong result that is quicker is still to be seen.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.contenders import OURS
from benchmarks.correctness import WRONG
from benchmarks.many import MODEL, STABILIZED, TARGETED
from benchmarks.records import Results, Row

MET, MISSED, NOT_MEASURED = "met", "MISSED", "not measured"
SIZE = 224
"""Of the inputs, for any target."""

_CELLS = (
    ("vgg16", 1),
    ("vgg16", 4),
    ("resnet50", 4),
    ("efficientnet_lite0", 4),
    ("vit_b_16", 4),
)
TIME = {
    "epsilon": dict(zip(_CELLS, (1.10, 1.15, 1.15, 1.3, 1.2), strict=True)),
    "epsilon_gamma_box": dict(zip(_CELLS, (1.54, 1.6, 1.56, 1.9, 1.6), strict=True)),
    "epsilon_alpha2_beta1": dict(zip(_CELLS[:3], (2.2, 2.2, 2.3), strict=True)),
}
"""The largest multiple by rules, model and batch size."""

FACTORS = {
    ("zennit", "epsilon_gamma_box"): 5.0,
    ("zennit", "epsilon_plus"): 3.0,
    ("zennit", "epsilon_alpha2_beta1"): 3.0,
    ("captum", "epsilon"): 1.6,
    ("captum", "gamma"): 1.6,
    ("autolrp", "epsilon"): 2.0,
    ("autolrp", "gamma"): 2.0,
}
"""How many times longer a library takes, at least, by library and rules."""

MEMORY = {"epsilon": 1.25, "epsilon_gamma_box": 1.5}
"""The largest multiple of the gradient's peak memory by rules."""

MANY = {STABILIZED: 3.6, TARGETED: 4.5}
"""How many times longer than one attribution several in one call take, at most."""

HUNGRIER = ("zennit", "captum")
"""Libraries that need more memory than this package."""


@dataclass(frozen=True)
class Outcome:
    """Whether a target is met.

    Args:
        target: In words.
        limit: The number.
        measured: The worst of the rows, None if there is none.
        where: Which row that is.
        met: How many rows meet it.
        of: How many there are.
    """

    target: str
    limit: float
    measured: float | None = None
    where: str = ""
    met: int = 0
    of: int = 0

    @property
    def status(self) -> str:
        """``MET``, ``MISSED`` or ``NOT_MEASURED``."""
        if self.of == 0:
            return NOT_MEASURED
        return MET if self.met == self.of else MISSED


def outcomes(results: Results) -> list[Outcome]:
    """Return for each target whether the results meet it."""
    promised = results.rows if results.settings.size == SIZE else ()
    rows = {(row.model, row.batch, row.library, row.rules): row for row in promised}
    return [*_times(results, rows), *_factors(rows), *_memory(rows), *_many(results)]


Rows = dict[tuple[str, int, str, str], Row]
Found = Iterable[tuple[float, str]]


def _times(results: Results, rows: Rows) -> Iterable[Outcome]:
    settings = results.settings
    applies = (settings.device, settings.dtype) == ("cpu", "float32")
    for rules, cells in TIME.items():
        for (model, batch), limit in cells.items():
            row = rows.get((model, batch, OURS, rules)) if applies else None
            found = [] if row is None or row.timing is None else [(row.timing.multiple.median, "")]
            yield _at_most(f"time of {rules}, {model}, batch {batch}", limit, found)


def _many(results: Results) -> Iterable[Outcome]:
    for what, limit in MANY.items():
        done = [one for one in results.many if (one.model, one.name) == (MODEL, what)]
        found = [(one.timing.multiple.median, "") for one in done if one.timing is not None]
        promised = found if results.settings.size == SIZE else []
        yield _at_most(f"time of {what} in one call, in units of one", limit, promised)


def _factors(rows: Rows) -> Iterable[Outcome]:
    for (library, rules), limit in FACTORS.items():
        found = [(f, where) for lib, r, f, where in _faster(rows) if (lib, r) == (library, rules)]
        yield _at_least(f"{library} takes longer, {rules}", limit, found)
    every = [(factor, where) for *_, factor, where in _faster(rows)]
    yield _at_least("no library is faster under the same rules", 1.0, every)


def _faster(rows: Rows) -> Iterable[tuple[str, str, float, str]]:
    """Yield library, rules, how many times longer it takes than this package, and where."""
    for own, other in _pairs(rows):
        if own.timing is not None and other.timing is not None:
            # of multiples: the two may have been timed in different runs
            factor = other.timing.multiple.median / own.timing.multiple.median
            yield other.library, other.rules, factor, _where(other)


def _memory(rows: Rows) -> Iterable[Outcome]:
    for rules, limit in MEMORY.items():
        own = [row for row in rows.values() if (row.library, row.rules) == (OURS, rules)]
        found = [(r.memory_multiple, _where(r)) for r in own if r.memory_multiple is not None]
        yield _at_most(f"memory of {rules}", limit, found)
    for library in HUNGRIER:
        shares = [
            (own.memory.peak / other.memory.peak, _where(other))
            for own, other in _pairs(rows)
            if other.library == library
            and own.memory is not None
            and other.memory is not None
            and own.memory.peak is not None
            and other.memory.peak
        ]
        yield _at_most(f"memory as a share of {library}'s under the same rules", 1.0, shares)


def _pairs(rows: Rows) -> Iterable[tuple[Row, Row]]:
    """Yield this package's row and another library's, of one model, batch size and rules."""
    for (model, batch, library, rules), other in rows.items():
        own = rows.get((model, batch, OURS, rules))
        if own is not None and library != OURS:
            yield own, other


def _where(row: Row) -> str:
    verdict = " (wrong)" if row.correctness.verdict == WRONG else ""
    return f"{row.model}, batch {row.batch}, {row.method}{verdict}"


def _at_most(target: str, limit: float, found: Found) -> Outcome:
    values = list(found)
    if not values:
        return Outcome(f"{target}, at most", limit)
    met = sum(value <= limit for value, _ in values)
    return Outcome(f"{target}, at most", limit, *max(values), met, len(values))


def _at_least(target: str, limit: float, found: Found) -> Outcome:
    values = list(found)
    if not values:
        return Outcome(f"{target}, at least", limit)
    met = sum(value >= limit for value, _ in values)
    return Outcome(f"{target}, at least", limit, *min(values), met, len(values))
