"""The result of a diagnosis, as a record, a table and JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from captum_lrp_stab.diagnosis.receptive_field import Box
from captum_lrp_stab.dispatch.fallbacks import counted
from captum_lrp_stab.ledger.causes import Cause
from captum_lrp_stab.ledger.locating import Origin, Trouble, Verdict
from captum_lrp_stab.ledger.records import Histogram, LayerRecord, Ledger
from captum_lrp_stab.reporting.tables import number, to_json, to_text, without_nonfinite

_NOTHING = 1e-6


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Where relevance goes, is lost and is amplified, layer by layer.

    The ``verdict`` is ``"stable"``, ``"unstable"`` (finite, but amplified past the threshold at
    some layer, or bit by bit to more than a million times the score) or ``"not finite"``.
    ``origin`` is the first place where that starts, ``cause`` why and what to do about it; ``sees``
    says which part of each input can move the neuron there. ``layers`` has a record of every use
    of every layer and operation that relevance passes, in order of execution, and ``ledger`` their
    sum. ``fallbacks`` are the operations that relevance passes under their plain gradient, because
    no LRP rule is known for them. ``dtype_is_cause`` says whether the same attribution is stable in
    float64, or at least finite where it is not here: None where that was not tried. Printing shows
    a table.
    """

    verdict: Verdict
    form: str
    dtype: str
    threshold: float
    ledger: Ledger
    layers: tuple[LayerRecord, ...]
    origin: Origin | None
    cause: Cause | None
    receptive_field: tuple[Box | None, ...]  # of the neuron at the origin, in each input
    dtype_is_cause: bool | None
    warnings: tuple[str, ...]
    fallbacks: tuple[str, ...]
    relevances: tuple[Tensor, ...] = field(repr=False)
    score: Tensor = field(repr=False)

    @property
    def sees(self) -> tuple[str, ...]:
        """Which part of each input can move the neuron at the origin, in words."""
        pairs = zip(self.receptive_field, self.relevances, strict=False)
        return tuple("nothing" if b is None else b.describe(R.shape[1:]) for b, R in pairs)

    def headline(self) -> str:
        """Return the verdict, and what it does not say: that relevance follows no rule somewhere.

        A plain gradient may well be stable.
        """
        if not self.fallbacks:
            return self.verdict
        joined = "but" if self.verdict == "stable" else "and"
        return f"{self.verdict}, {joined} relevance passes {counted(self.fallbacks)}"

    def conclusion(self) -> str:
        """Return the headline and the explanation."""
        if not self.fallbacks:
            return f"{self.verdict}: {self.explanation()}"
        return f"{self.headline()}. {_sentence(self.explanation())}"

    def explanation(self) -> str:
        """Return why the verdict is what it is, in a sentence or two."""
        if self.origin is None:
            text = (
                f"no layer amplifies relevance more than {self.threshold:g} times; from the score "
                f"to the inputs its absolute sum grows {number(self.ledger.growth)} times"
            )
            if not self.ledger.score:
                text += "; the score is 0"
            elif self.ledger.growth < _NOTHING:
                text += "; next to nothing reaches the inputs, the layers absorb all of it"
            if self.verdict == "stable":
                return f"relevance is finite, and {text}"
            return f"{text}, most of all at {', '.join(self._amplifying())}"
        assert self.cause is not None
        place = f"layer '{self.origin.name}'"
        if self.origin.neuron is not None:
            place += f", output {self.origin.neuron.index}"
        what = {
            Trouble.OVERFLOW: f"{self.origin.count} outputs are not finite",
            Trouble.NONFINITE: f"{self.origin.count} values of relevance are not finite",
            Trouble.GROWTH: f"the output grows {number(self.origin.factor)} times",
            Trouble.AMPLIFICATION: f"relevance grows {number(self.origin.factor)} times",
            Trouble.EXCESS: f"relevance grows {number(self.origin.factor)} times by the stabilizer",
        }[self.origin.trouble]
        lines = [
            f"it starts at {place}: {what}, because {self.cause.what}.",
            f"{_sentence(self.cause.remedy)}.",
        ]
        if self.dtype_is_cause:
            good = "finite" if self.verdict == "not finite" else "stable"
            lines.append(f"In float64 the same attribution is {good}: {self.dtype} is the cause.")
        elif self.dtype_is_cause is False:
            lines.append("It is the same in float64.")
        return " ".join(lines)

    def _amplifying(self) -> list[str]:
        """Return the layers that amplify most, in words."""
        found = sorted(self.layers, key=lambda layer: -(layer.amplification or 0.0))[:3]
        return [f"'{layer.name}' ({number(layer.amplification)} times)" for layer in found]

    def facts(self) -> dict[str, Any]:
        """Return everything but the maps as values for JSON; no number is NaN or Inf."""
        hidden = ("relevances", "score", "layers", "ledger", "origin", "cause", "receptive_field")
        content: dict[str, Any] = {k: v for k, v in vars(self).items() if k not in hidden}
        content["explanation"], content["sees"] = self.explanation(), self.sees
        content["origin"] = None if self.origin is None else asdict(self.origin)
        content["cause"] = None if self.cause is None else asdict(self.cause)
        content["ledger"] = asdict(self.ledger) | {"closing": self.ledger.closing}
        content["layers"] = [_facts(layer) for layer in self.layers]
        clean: dict[str, Any] = without_nonfinite(content)
        return clean

    def to_json(self) -> str:
        """Return everything but the maps as a JSON object; what is NaN or Inf is null."""
        return to_json(self.facts())

    def table(self, every: bool = True) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return a header and rows of text, from the output to the inputs.

        Args:
            every: All layers and operations; else those with a rule, and those that absorb
                or amplify.
        """
        rows = [
            row_of(layer)
            for layer in reversed(self.layers)
            if every or layer.has_rule or self._is_notable(layer)
        ]
        return HEADER, [*rows, self._sum()]

    def _is_notable(self, layer: LayerRecord) -> bool:
        lost = abs(layer.shares.total) > 1e-3 * abs(self.ledger.score)
        amplified = (layer.amplification or 0.0) > 1.01
        return lost or amplified or (self.origin is not None and self.origin.name == layer.name)

    def _sum(self) -> tuple[str, ...]:
        ledger, shares = self.ledger, self.ledger.shares
        absorbed = (shares.bias, shares.stabilizer, shares.rule + shares.operation, shares.rounding)
        bad = ledger.inputs.nonfinite
        total = f"{bad} NaN/Inf" if bad else number(ledger.inputs.total, 3)
        cells = ("", "", number(ledger.score, 3), total)
        return ("input", *cells, *map(number, absorbed), "", "", "", "")

    def __str__(self) -> str:
        """Return the verdict, the ledger and a table of the layers."""
        header, rows = self.table()
        lines = [self.conclusion()]
        lines += [f"it sees {sees}" for sees in self.sees]
        return "\n".join([*lines, "", to_text(header, rows, WORDS)])


HEADER = (
    *("layer", "rule", "amplified", "received", "propagated"),
    *("bias", "stabilizer", "other", "rounding"),
    *("smallest |z|", "zero", "noise", "cancel 99%"),
)
WORDS = 2
"""How many columns hold words."""


def row_of(layer: LayerRecord) -> tuple[str, ...]:
    """Return a layer as text."""
    shares, found = layer.shares, layer.denominators
    ends = [
        f"{flow.nonfinite} NaN/Inf" if flow.nonfinite else number(flow.total, 3)
        for flow in (layer.received, layer.propagated)
    ]
    if found is None:
        below: tuple[str, ...] = ("", "", "", "")
    else:
        counts = str(found.zeros), str(found.noise)
        below = (number(found.smallest), *counts, number(found.cancellation.quantile(0.99)))
    return (
        layer.name,
        layer.rule.partition("(")[0],
        number(layer.amplification, 3),
        *ends,
        number(shares.bias),
        number(shares.stabilizer),
        number(shares.rule + shares.operation),
        number(shares.rounding),
        *below,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _facts(layer: LayerRecord) -> dict[str, Any]:
    """Return a layer with its histograms by the power of ten."""
    content = asdict(layer) | {"amplification": layer.amplification}
    if layer.denominators is not None:
        for name in ("sizes", "cancellation"):
            histogram: Histogram = getattr(layer.denominators, name)
            bins = {f"{exponent:.3f}": count for exponent, count in histogram.bins()}
            content["denominators"][name] = bins
    return content
