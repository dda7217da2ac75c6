"""Results read back from JSON, and several runs as one.

The whole benchmark takes hours; parts of it can be run one after the other and reported together.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.correctness import Correctness
from benchmarks.many import Many
from benchmarks.memory import Memory
from benchmarks.records import Results, Row
from benchmarks.settings import Settings
from benchmarks.timing import Spread, Timing

_T = TypeVar("_T")
_COMMON = ("device", "dtype", "size", "seed")
"""Settings that runs must share to be reported together."""


def read(paths: Iterable[Path]) -> Results:
    """Return the results of one or more runs; what a later file has measured counts.

    Args:
        paths: Files that ``--json`` has written.

    Raises:
        ValueError: A file is none of those, or the runs are of different machines or settings.
    """
    whole: Results | None = None
    for path in paths:
        try:
            results = _results(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no file that --json has written: {error}") from error
        whole = results if whole is None else _joined(whole, results, path)
    if whole is None:
        raise ValueError("there is no file to read")
    return whole


def _joined(one: Results, other: Results, path: Path) -> Results:
    machines = [{k: v for k, v in r.machine.items() if k != "date"} for r in (one, other)]
    if machines[0] != machines[1]:
        raise ValueError(f"{path} was measured on another machine, or with other packages")
    for name in _COMMON:
        if getattr(one.settings, name) != getattr(other.settings, name):
            raise ValueError(f"{path} was measured with another {name}")
    rows = {(row.model, row.batch, row.method): row for row in one.rows}
    for row in other.rows:
        known = rows.get((row.model, row.batch, row.method), row)
        memory = row if row.memory is not None else known  # and what it is a multiple of
        rows[row.model, row.batch, row.method] = replace(
            row,
            timing=row.timing or known.timing,
            memory=memory.memory,
            unit=memory.unit,
        )
    order = list(Settings().models)
    ordered = sorted(rows.values(), key=lambda row: _place(row, order))
    many = {(found.model, found.name): found for found in (*one.many, *other.many)}
    settings = replace(
        one.settings,
        models=tuple(dict.fromkeys(row.model for row in ordered)),
        batches=tuple(sorted({row.batch for row in ordered})),
        rounds=min(one.settings.rounds, other.settings.rounds),
    )
    weights = {**one.weights, **other.weights}
    return Results(one.machine, settings, weights, tuple(ordered), tuple(many.values()))


def _place(row: Row, order: list[str]) -> tuple[int, str, int]:
    known = order.index(row.model) if row.model in order else len(order)
    return known, row.model, row.batch


def _results(facts: Mapping[str, Any]) -> Results:
    return Results(
        dict(facts["machine"]),
        Settings.of(facts["settings"]),
        dict(facts["weights"]),
        tuple(map(_row, facts["rows"])),
        tuple(_made(Many, {**one, "timing": _timing(one["timing"])}) for one in facts["many"]),
    )


def _row(facts: Mapping[str, Any]) -> Row:
    parts = {
        "correctness": _made(Correctness, facts["correctness"]),
        "timing": _timing(facts["timing"]),
        "memory": None if facts["memory"] is None else _made(Memory, facts["memory"]),
        "unit": None if facts["unit"] is None else _made(Memory, facts["unit"]),
    }
    return _made(Row, {**facts, **parts})


def _timing(facts: Mapping[str, Any] | None) -> Timing | None:
    if facts is None:
        return None
    spreads = {name: _made(Spread, facts[name]) for name in ("seconds", "multiple")}
    return _made(Timing, {**facts, **spreads, "rounds": tuple(facts["rounds"])})


def _made(kind: type[_T], facts: Mapping[str, Any]) -> _T:
    """Return a record from values by name, without those that follow from others."""
    return kind(**{f.name: facts[f.name] for f in fields(kind)})  # type: ignore[arg-type]
