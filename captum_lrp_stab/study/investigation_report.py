"""An investigation as files: ``report.json``, ``report.md`` and ``heatmaps.png``.

In the JSON a number that is NaN, Inf or would involve one is null; what the finite values alone
say stands apart, under ``finite_values`` and ``finite_pixels``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import captum
import torch

from captum_lrp_stab import by_name
from captum_lrp_stab._version import __version__
from captum_lrp_stab.dispatch.fallbacks import counted
from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.ledger.nonfinite import in_words
from captum_lrp_stab.reporting.tables import without_nonfinite
from captum_lrp_stab.study import investigation_figure
from captum_lrp_stab.study.investigation import Finding, Investigation
from captum_lrp_stab.study.statistics import Place, Statistics

_CHANNELS = ("red", "green", "blue")

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""A title, the names of the columns, and the rows."""


def write(investigation: Investigation, folder: Path, picture: str) -> list[Path]:
    """Write the three files and return their paths.

    Args:
        investigation: What to report.
        folder: See :func:`make_folder`.
        picture: What the picture is called.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    paths = [folder / name for name in ("report.json", "report.md", "heatmaps.png")]
    make_folder(folder)
    try:
        paths[0].write_text(to_json(investigation, picture) + "\n", encoding="utf-8")
        paths[1].write_text(to_markdown(investigation, picture), encoding="utf-8")
        investigation_figure.draw(investigation).savefig(paths[2])
    except OSError as error:
        raise ReportError(
            f"cannot write the report into {folder}: {error}; give another folder with --out"
        ) from error
    return paths


def make_folder(folder: Path) -> None:
    """Make the folder of a report if it does not exist.

    Raises:
        ReportError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"cannot make the folder {folder}: {error}; give another one with --out"
        ) from error


def to_json(investigation: Investigation, picture: str) -> str:
    """Return everything but the pictures as a JSON object."""
    content: dict[str, Any] = {
        "picture": picture,
        **_subject(investigation),
        "versions": {
            "captum-lrp-stab": __version__,
            "captum": captum.__version__,
            "torch": torch.__version__,
        },
        "findings": [without_nonfinite(asdict(f)) for f in investigation.findings],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def to_markdown(investigation: Investigation, picture: str) -> str:
    """Return the report as text, with tables and a link to the heatmaps."""
    facts = {"picture": picture, **_subject(investigation)}
    fallbacks = facts.pop("fallbacks")
    parts = [
        "# Stability of relevance",
        "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()),
        "![heatmaps over the picture](heatmaps.png)",
    ]
    for title, header, rows in tables(investigation):
        parts += [f"## {title}", _markdown_table(header, rows)]
    parts.append(LEGEND)
    noteworthy = notes(investigation)
    if noteworthy:
        parts += ["## Notes", "\n".join(f"- {note}" for note in noteworthy)]
    if fallbacks:
        parts += [
            "## Operations that got their plain gradient",
            "\n".join(f"- {fallback}" for fallback in fallbacks),
        ]
    return "\n\n".join(parts) + "\n"


def tables(investigation: Investigation) -> list[Table]:
    """Return what there is to say in numbers, as tables of text."""
    findings = investigation.findings
    return [
        (
            "Size",
            ("stabilizer", "finite", "sum/score", "min", "max", "std/value", "std/pixel"),
            [_size_row(finding) for finding in findings],
        ),
        (
            "Pixels",
            ("stabilizer", "score", "< 0", "= 0", "> 0", "NaN", "Inf", "peak/median"),
            [_pixel_row(finding) for finding in findings],
        ),
        (
            "Extremes",
            ("stabilizer", "", "relevance", "row,col", "channel", "pixel", "gradient"),
            [
                (finding.name, word, *_place_cells(extreme))
                for finding in findings
                for word, extreme in (("max", finding.largest), ("min", finding.smallest))
                if extreme is not None
            ],
        ),
    ]


LEGEND = (
    "min, max, counts and peak/median (largest over median absolute value) are of pixels, summed "
    "over channels; extremes are of single values, with the picture's RGB and the plain gradient "
    "of the score there. In brackets: of the finite ones alone, where not all are finite."
)


def _size_row(finding: Finding) -> tuple[str, ...]:
    values = finding.values, finding.finite_values
    pixels = finding.pixels, finding.finite_pixels
    return (
        finding.name,
        "yes" if finding.finite else "NO",
        _short(finding.sum_over_score),
        _of("minimum", *pixels),
        _of("maximum", *pixels),
        _of("standard_deviation", *values),
        _of("standard_deviation", *pixels),
    )


def _pixel_row(finding: Finding) -> tuple[str, ...]:
    pixels = finding.pixels
    counts = pixels.negative, pixels.zero, pixels.positive, pixels.nan, pixels.infinite
    peak = _of("peak_over_median", pixels, finding.finite_pixels)
    return (finding.name, _short(finding.score), *map(str, counts), peak)


def _of(name: str, whole: Statistics, finite: Statistics | None) -> str:
    """Return a number of a map, or in brackets of its finite part."""
    if finite is None:
        return _short(getattr(whole, name))
    alone = getattr(finite, name)
    return "-" if alone is None else f"({_short(alone)})"


def _place_cells(place: Place) -> tuple[str, ...]:
    return (
        _short(place.relevance),
        f"{place.row},{place.column}",
        _CHANNELS[place.channel],
        " ".join(map(str, place.pixel)),
        _short(place.gradient),
    )


def notes(investigation: Investigation) -> list[str]:
    """Return in words what the tables cannot hold: where NaN or Inf arose, changed scores, ..."""
    lines = []
    for finding in investigation.findings:
        if not finding.finite:
            lines.append(f"{finding.name}: {_origin(finding, investigation.dtype)}")
        score = finding.score
        if score is not None and abs(score - investigation.score) > 1e-3 * abs(investigation.score):
            lines.append(f"{finding.name}: {_change(investigation.score, score)}")
        if finding.anomaly is not None:
            lines.append(f"{finding.name}: anomaly detection: {finding.anomaly}")
        lines += [f"{finding.name}: {warning}" for warning in finding.warnings]
    unstabilized = any(f.name == "none" and f.finite for f in investigation.findings)
    if unstabilized and investigation.form == "gradient":
        lines.append(
            "none: the gradient form takes 0/0 as 0; the bare division can be seen with --form "
            "relevance or --form modified-forward"
        )
    if investigation.fallbacks:
        lines.append(f"relevance passes {counted(investigation.fallbacks)}")
    return lines


def _change(before: float, after: float) -> str:
    text = f"this form changes the score from {before:.4g} to {after:.4g}"
    change = 100 * (after - before) / abs(before) if before else math.inf
    return f"{text} ({change:+.0f}%)" if abs(change) < 1000 else text


def _origin(finding: Finding, dtype: str) -> str:
    counts = f"{finding.values.nan} NaN and {finding.values.infinite} Inf values of relevance"
    if finding.score is None:
        counts = f"the score is not finite; {counts}"
    origin = finding.origin
    if origin is None:
        return f"{counts}; they arose outside the layers with a rule"
    return f"{counts}; {in_words(origin, by_name.dtype_of(dtype))}"


def _subject(investigation: Investigation) -> dict[str, Any]:
    names = "model weights form rules attention dtype target label probability score fallbacks"
    return {name: getattr(investigation, name) for name in names.split()}


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
