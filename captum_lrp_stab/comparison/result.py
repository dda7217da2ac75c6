"""The result of a comparison, as a record, a table and JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from captum_lrp_stab.comparison.agreement import Agreement
from captum_lrp_stab.comparison.known_differences import KnownDifference
from captum_lrp_stab.comparison.pair import Divergence, LayerAgreement
from captum_lrp_stab.reporting.tables import number, to_json, to_text, without_nonfinite

Verdict = Literal["equal", "rounding", "known difference", "different", "reference not finite"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two attributions side by side.

    The ``verdict`` is one of

    - ``"equal"``: within the tolerance;
    - ``"rounding"``: not within it, but the two agree once they are run in float64;
    - ``"known difference"``: the two agree once ``differences`` are removed from a side;
    - ``"different"``: none of these; ``differences`` are then not all there is;
    - ``"reference not finite"``: the reference has NaN or Inf.

    ``first`` is the first place at which the two part (where they are different, besides
    ``differences``), None where they are equal or the reference's layers were not seen; ``layers``
    has each use of each layer in order of execution. Printing shows a table; :meth:`to_json` gives
    all but the maps.
    """

    reference: str
    verdict: Verdict
    explanation: str
    differences: tuple[KnownDifference, ...]
    dtype: str
    tolerance: float
    overall: Agreement
    first: Divergence | None
    layers: tuple[LayerAgreement, ...]
    scores: tuple[float, ...]  # of each sample
    reference_scores: tuple[float, ...] | None  # None where the reference does not tell
    relevances: tuple[Tensor, ...] = field(repr=False)
    reference_relevances: tuple[Tensor, ...] = field(repr=False)

    def facts(self) -> dict[str, Any]:
        """Return everything but the maps as values for JSON; no number is NaN or Inf."""
        content = {
            name: value
            for name, value in vars(self).items()
            if name not in ("relevances", "reference_relevances", "differences", "overall", "first")
        }
        content["differences"] = [asdict(d) for d in self.differences]
        content["overall"] = asdict(self.overall)
        content["first"] = None if self.first is None else asdict(self.first)
        content["layers"] = [asdict(layer) for layer in self.layers]
        clean: dict[str, Any] = without_nonfinite(content)
        return clean

    def to_json(self) -> str:
        """Return everything but the maps as a JSON object; what is NaN or Inf is null."""
        return to_json(self.facts())

    def table(self, every: bool = True) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return a header and rows of text, from the first layer to the last.

        Args:
            every: All layers that either end of was seen on both sides; else only those that mix
                values, and so can part, and the first at which the sides do.
        """
        seen = [layer for layer in self.layers if layer.output or layer.input]
        first = None if self.first is None else self.first.name
        rows = [
            row_of(layer)
            for layer in seen
            if every or layer.name == first or layer.rule not in ("moved", "passed")
        ]
        return HEADER, [*rows, ("input", "", *cells(self.overall), "")]

    def __str__(self) -> str:
        """Return the verdict, the overall agreement and a table of the layers."""
        header, rows = self.table()
        return "\n".join(
            [
                f"{self.verdict}: {self.explanation}",
                *self.notes(),
                "",
                to_text(header, rows, _WORDS),
            ]
        )

    def notes(self) -> list[str]:
        """Return what each known difference means, a line each."""
        return [f"- {d.name}: {d.meaning}" for d in self.differences]


HEADER = (
    *("layer", "rule", "rel. L2", "cosine", "Spearman", "top 1%", "sum", "reference"),
    "at input",
)
_WORDS = 2


def row_of(layer: LayerAgreement) -> tuple[str, ...]:
    """Return a layer as text: how the relevance of its output agrees, and that of its input."""
    down = "" if layer.input is None else number(layer.input.relative_l2)
    return (layer.name, layer.rule.partition("(")[0], *cells(layer.output), down)


def cells(agreement: Agreement | None) -> tuple[str, ...]:
    """Return an agreement as text."""
    if agreement is None:
        return ("",) * (len(HEADER) - _WORDS - 1)
    a = agreement
    shares = (number(v, 3) for v in (a.cosine, a.spearman, a.top_overlap))
    totals = (
        number(total, 3) if not count else f"{count} NaN/Inf"
        for total, count in ((a.total, a.nonfinite), (a.reference_total, a.reference_nonfinite))
    )
    return (number(a.relative_l2), *shares, *totals)
