"""The results as a table for the terminal, as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.correctness import NOT_INSTALLED, OK
from benchmarks.many import Many
from benchmarks.records import Results, Row
from benchmarks.targets import MET, MISSED, Outcome, outcomes
from captum_lrp_stab.reporting.document import (
    Block,
    Document,
    Facts,
    Notes,
    Paragraph,
    Picture,
    Section,
    Table,
    to_markdown,
)
from captum_lrp_stab.reporting.tables import number, to_json, to_text, without_nonfinite

HEADER = (
    *("model", "method", "batch", "time", "quartiles", "ms", "memory", "resident"),
    *("rel. L2", "sum/score", "in float64", "verdict"),
)
WORDS = ("model", "method", "verdict")

LEGEND = (
    "time: median multiple of gradient x input of the same round, with its quartiles; ms: median "
    "of one call. memory, resident: peak above the loaded model, of tensors and of the process, as "
    "multiples of the gradient's. rel. L2: difference from this package's float64 relevance under "
    "the matching rules (for this package from its own, see also the table of independent checks), "
    "and sum/score: sum of relevance over the score, with the same in float64; both at batch 1."
)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text."""
    found, timing = row.correctness, row.timing
    return (
        row.model,
        row.method,
        str(row.batch),
        "-" if timing is None else f"{timing.multiple.median:.2f}",
        "-" if timing is None else f"{timing.multiple.low:.2f} - {timing.multiple.high:.2f}",
        "-" if timing is None else f"{1e3 * timing.seconds.median:.1f}",
        _times(row.memory_multiple),
        _times(row.resident_multiple),
        number(found.relative_l2),
        number(found.sum_over_score, 4),
        number(found.expected_sum_over_score, 4),
        found.verdict if found.verdict == OK else found.verdict.upper(),
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def notes(results: Results) -> list[str]:
    """Return in words why something is missing: one line for each reason."""
    lines: dict[str, None] = {}  # in order, without repetitions
    for row in results.rows:
        found = row.correctness
        if found.verdict == NOT_INSTALLED:
            lines[f"{row.method}: {found.note}"] = None
        elif found.note:
            lines[f"{row.method} on {row.model}: {found.verdict}, {found.note}"] = None
        if row.memory is not None and row.memory.note:
            lines[f"{row.method} on {row.model}, batch {row.batch}: {row.memory.note}"] = None
    return list(lines)


def target_table(found: Sequence[Outcome]) -> Table:
    """Return the targets and whether they are met."""
    rows = tuple(
        (
            outcome.target,
            outcome.status,
            outcome.where,
            f"{outcome.limit:g}",
            number(outcome.measured, 3),
            f"{outcome.met} of {outcome.of}" if outcome.of else "-",
        )
        for outcome in found
    )
    missed = frozenset(index for index, row in enumerate(rows) if row[1] == MISSED)
    header = ("target", "status", "worst row", "limit", "there", "rows that meet it")
    return Table(header, rows, words=header[:3], bad=missed)


def row_table(rows: Sequence[Row]) -> Table:
    """Return the contenders; wrong and refused ones are marked."""
    bad = frozenset(
        index
        for index, row in enumerate(rows)
        if row.correctness.verdict not in (OK, NOT_INSTALLED)
    )
    return Table(HEADER, tuple(map(cells, rows)), words=WORDS, bad=bad, caption=LEGEND)


def many_table(found: Sequence[Many]) -> Table:
    """Return several targets and stabilizers at once."""
    rows = tuple(
        (
            one.model,
            one.name,
            one.note,
            "-" if one.timing is None else f"{one.timing.multiple.median:.2f}",
            "-" if one.timing is None else f"{1e3 * one.timing.seconds.median:.1f}",
        )
        for one in found
    )
    header = ("model", "in one call", "note", "time / one attribution", "ms")
    return Table(header, rows, words=header[:3])


def check_table(rows: Sequence[Row]) -> Table | None:
    """Return how far this package's float64 relevance is from zennit's, None if unknown."""
    found = {
        (row.model, row.rules): number(row.correctness.independent_l2)
        for row in rows
        if row.correctness.independent_l2 is not None
    }
    cells = tuple((model, rules, value) for (model, rules), value in found.items())
    header = ("model", "rules", "rel. L2")
    caption = (
        "This package's relevance against zennit's, both in float64. Where zennit's own row is "
        "wrong, this says nothing."
    )
    return Table(header, cells, words=("model", "rules"), caption=caption) if cells else None


def document(results: Results, picture: Picture | None = None) -> Document:
    """Return the results as a document."""
    found = outcomes(results)
    missed = sum(outcome.status == MISSED for outcome in found)
    met = sum(outcome.status == MET for outcome in found)
    drawn: tuple[Block, ...] = () if picture is None else (picture,)
    sections = [
        Section("Times, memory and correctness", (row_table(results.rows), *drawn)),
        Section("Targets", (target_table(found),)),
    ]
    if (checks := check_table(results.rows)) is not None:
        sections.append(Section("Independent checks", (checks,)))
    if results.many:
        sections.append(Section("Many at once", (many_table(results.many),)))
    if lines := notes(results):
        sections.append(Section("Notes", (Notes(tuple(lines)),)))
    facts = tuple((name, str(value)) for name, value in results.machine.items())
    sections.append(Section("Machine", (Facts(facts), Paragraph(_setting(results)))))
    verdict = f"{met} targets met, {missed} missed, {len(found) - met - missed} not measured."
    return Document("Benchmark", verdict, "warning" if missed else "good", tuple(sections))


def _setting(results: Results) -> str:
    s = results.settings
    weights = "; ".join(f"{name}: {text}" for name, text in results.weights.items())
    return (
        f"Rounds: {s.rounds}, after one thrown away; {s.device}, {s.dtype}, {s.size} pixels. "
        f"Weights: {weights}. Random networks have random batch-norm statistics too."
    )


def as_markdown(results: Results, picture: Picture | None = None) -> str:
    """Return the results as Markdown."""
    return to_markdown(document(results, picture))


def as_text(results: Results) -> str:
    """Return the results for a terminal."""
    parts = [to_text(HEADER, [cells(row) for row in results.rows], 2)]
    tables = [target_table(outcomes(results))]
    tables += [many_table(results.many)] if results.many else []
    parts += [to_text(table.header, table.rows, 3) for table in tables]
    return "\n\n".join([*parts, *notes(results)])


def as_json(results: Results) -> str:
    """Return everything as JSON."""
    facts: dict[str, Any] = {
        "machine": results.machine,
        "settings": asdict(results.settings),
        "weights": results.weights,
        "rows": [
            {
                "method": row.method,
                **asdict(row),
                "memory_multiple": row.memory_multiple,
                "resident_multiple": row.resident_multiple,
            }
            for row in results.rows
        ],
        "targets": [{**asdict(o), "status": o.status} for o in outcomes(results)],
        "many": [asdict(one) for one in results.many],
    }
    return to_json(without_nonfinite(facts))
