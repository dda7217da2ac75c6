"""A diagnosis on a picture as files: ``report.html``, ``report.md``, ``report.json``, figures."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import captum
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captum_lrp_stab._version import __version__
from captum_lrp_stab.comparison.report import About
from captum_lrp_stab.diagnosis import drawing
from captum_lrp_stab.diagnosis.advice import Advice
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.diagnosis.sweeping import Sweep
from captum_lrp_stab.images.grid import Panel
from captum_lrp_stab.ledger.records import LayerRecord
from captum_lrp_stab.reporting import document
from captum_lrp_stab.reporting.document import (
    Block,
    Code,
    Document,
    Facts,
    Notes,
    Paragraph,
    Picture,
    Section,
    Table,
)
from captum_lrp_stab.reporting.tables import number, to_json, without_nonfinite

_WORST = 4
_ELSEWHERE = ("changes", "name_map", "relevances")  # of an advice, told in another way
_TONES: dict[str, document.Tone] = {"stable": "good", "unstable": "warning", "not finite": "bad"}

LEGEND = (
    "From the output at the top to the input. A layer receives relevance at its output and "
    "propagates it to its input; the difference is absorbed by its bias, the stabilizer, the rule "
    "or a non-linear operation (other), or by rounding. amplified: absolute sum propagated over "
    "absolute sum received. zero, noise: denominators that are exactly 0, or less than their own "
    "rounding error. cancel 99%: sum |x w| over |z|, which 1% of the denominators exceed."
)


@dataclass(frozen=True, eq=False)
class Findings:
    """What a report is made from."""

    about: About
    diagnosis: Diagnosis
    advice: Advice | None
    sweep: Sweep | None


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write the files and return their paths.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    return document.write(of(findings), folder, to_json(facts(findings)))


def facts(findings: Findings) -> dict[str, Any]:
    """Return everything but the maps as values for JSON."""
    advice = findings.advice
    found: dict[str, Any] = without_nonfinite(
        {
            **findings.about.facts(),
            **findings.diagnosis.facts(),
            "advice": None
            if advice is None
            else {
                **{k: v for k, v in vars(advice).items() if k not in _ELSEWHERE},
                "changes": [asdict(change) for change in advice.changes],
                "name_map": advice.to_python(),
            },
            "sweep": None if findings.sweep is None else findings.sweep.facts(),
            "versions": {
                "captum-lrp-stab": __version__,
                "captum": captum.__version__,
                "torch": torch.__version__,
            },
        }
    )
    return found


def of(findings: Findings) -> Document:
    """Return the report as a document."""
    diagnosis = findings.diagnosis
    sections = [
        Section("What was explained", (_subject(findings), _pictures(findings))),
        *([] if diagnosis.origin is None else [_origin(diagnosis)]),
        *([] if findings.advice is None else [_advice(findings.advice)]),
        _ledger(diagnosis),
        Section(
            "Amplification by layer",
            (
                Picture(
                    drawing.amplification(diagnosis),
                    "amplification",
                    "bars of the amplification of each layer, on a logarithmic scale",
                ),
            ),
        ),
        *_denominators(diagnosis),
        *([] if findings.sweep is None else [_sweep(findings.sweep)]),
        *_notes(diagnosis),
    ]
    versions = f"captum-lrp-stab {__version__}, captum {captum.__version__}, torch"
    return Document(
        "Diagnosis of relevance",
        diagnosis.conclusion(),
        _TONES[diagnosis.verdict],
        tuple(sections),
        f"{versions} {torch.__version__}",
    )


def _subject(findings: Findings) -> Block:
    about, diagnosis = findings.about, findings.diagnosis
    ready, ledger = about.ready, diagnosis.ledger
    total, absolute = "not finite", "not finite"
    if not ledger.inputs.nonfinite:
        total = f"{ledger.inputs.total:.5g}"
        absolute = f"{ledger.inputs.l1:.4g}, {number(ledger.growth)} times the score"
    items = [
        ("model", f"{ready.classifier.name} ({ready.classifier.weights})"),
        ("picture", about.picture),
        ("class", f"{ready.label} ({ready.target}), probability {ready.probability:.3g}"),
        ("score", f"{ready.score:.5g}"),
        ("rules", about.rules + (f", stabilizer {about.stabilizer}" if about.stabilizer else "")),
        ("form", f"{diagnosis.form}, {diagnosis.dtype}"),
        ("sum of relevance", total),
        ("absolute sum", absolute),
    ]
    return Facts(tuple(items))


def _pictures(findings: Findings) -> Block:
    diagnosis, ready = findings.diagnosis, findings.about.ready
    maps = [_heatmap("as asked for", diagnosis.relevances[0])]
    advice = findings.advice
    if advice is not None and (advice.changes or advice.dtype):
        maps.append(_heatmap("advice followed", advice.relevances[0]))
    maps.append(_heatmap("gradient x input", ready.gradient[None] * ready.x.detach()))
    boxes = diagnosis.receptive_field
    box = boxes[0] if boxes else None
    seen = "" if box is None else " The frame is what the neuron at the origin sees."
    return Picture(
        drawing.heatmaps(np.asarray(ready.picture), maps, box),
        "heatmaps",
        "heatmaps of relevance over the picture, side by side",
        "Red is for the class, blue against it, summed over channels, each heatmap on a scale of "
        f"its own; violet is not finite.{seen}",
    )


def _heatmap(name: str, relevance: Tensor) -> Panel:
    values: NDArray[np.float64] = relevance.detach()[0].double().sum(0).cpu().numpy()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Panel(name, values, ("nothing is finite",))
    line = f"{finite.min():.2g} ... {finite.max():.2g}, sum {finite.sum():.3g}"
    return Panel(name, values, (line,))


def _origin(diagnosis: Diagnosis) -> Section:
    origin, cause = diagnosis.origin, diagnosis.cause
    assert origin is not None and cause is not None
    items = [
        ("layer", origin.name),
        ("rule", origin.rule),
        ("stabilizer", origin.stabilizer or "none"),
        ("pass", origin.direction),
        ("trouble", origin.trouble.value),
    ]
    neuron = origin.neuron
    if neuron is not None:
        known = {
            "output": neuron.index,
            "pre-activation z": neuron.z,
            "denominator": neuron.denominator,
            "stabilized": neuron.stabilized,
            "sum of |x w|": neuron.magnitude,
            "relevance received": neuron.relevance,
            "propagated (absolute)": neuron.propagated,
        }
        items += [
            (name, str(v) if isinstance(v, tuple) else f"{v:.6g}")
            for name, v in known.items()
            if v is not None and v == v
        ]
    if origin.input is not None:
        given = origin.input
        items.append(("input with NaN or Inf", f"{given.index}, x = {given.x:.6g}"))
    items += [("sees", part) for part in diagnosis.sees]
    lines = [f"Cause ({cause.kind}): {cause.what}.", f"Remedy: {cause.remedy}."]
    return Section("Where it starts", (Facts(tuple(items)), Notes(tuple(lines))))


def _advice(advice: Advice) -> Section:
    blocks: list[Block] = [Paragraph(f"{advice.summary()}.")]
    if advice.changes:
        blocks += [Notes(tuple(advice.grouped())), Code(advice.to_python())]
    return Section("Advice, followed and measured", tuple(blocks))


def _ledger(diagnosis: Diagnosis) -> Section:
    header, rows = diagnosis.table(every=False)
    origin = None if diagnosis.origin is None else diagnosis.origin.name
    bad = frozenset(i for i, row in enumerate(rows) if row[0] == origin)
    return Section(
        "Ledger: where the score goes",
        (
            Picture(
                drawing.ledger(diagnosis),
                "ledger",
                "the sum of relevance by layer, what each layer absorbs, and the absolute sum",
            ),
            Table(header, tuple(rows), words=header[:2], bad=bad, caption=LEGEND),
        ),
    )


def _denominators(diagnosis: Diagnosis) -> list[Section]:
    """Return the histograms of the layers with the most trouble, if any divides."""
    origin = None if diagnosis.origin is None else diagnosis.origin.name

    def trouble(layer: LayerRecord) -> tuple[bool, float, float]:
        found = layer.denominators
        return layer.name == origin, layer.peak or 0.0, 0.0 if found is None else found.noise

    layers = [r for r in diagnosis.layers if r.denominators is not None and r.denominators.count]
    if not layers:
        return []
    worst = sorted(layers, key=trouble, reverse=True)[:_WORST]
    unit_roundoff = torch.finfo(getattr(torch, diagnosis.dtype)).eps / 2
    return [
        Section(
            "Denominators of the worst layers",
            (
                Picture(
                    drawing.denominators(worst, unit_roundoff),
                    "denominators",
                    "histograms of denominators and of how much cancels in them",
                ),
            ),
        )
    ]


def _sweep(sweep: Sweep) -> Section:
    header, rows = sweep.table()
    return Section(
        f"Sensitivity to {sweep.parameter}",
        (
            Paragraph(f"{sweep.explanation()}."),
            Picture(drawing.swept(sweep), "sweep", f"difference of heatmaps by {sweep.parameter}"),
            Table(header, tuple(rows)),
        ),
    )


def _notes(diagnosis: Diagnosis) -> list[Section]:
    return [Section("Warnings", (Notes(diagnosis.warnings),))] if diagnosis.warnings else []
