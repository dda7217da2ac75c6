"""A study in words and tables of text."""

import re
from collections.abc import Sequence

from captum_lrp_stab.reporting.document import Tone
from captum_lrp_stab.study.records import NOT_FINITE, STABLE, PictureRecord, Run
from captum_lrp_stab.study.result import Spread, Study, Summary

Header = tuple[str, ...]
Rows = list[tuple[str, ...]]

# Names of columns are told apart by spaces, which are not seen.
FOLLOW_UP = (
    *("stabilizer", "finite", "unstable"),
    *("std/val", "worst", "std/px", "worst ", "max/med", "worst  ", "growth"),
    "starts mostly at",
)
STABILITY = (*FOLLOW_UP[:3], FOLLOW_UP[-1])
SIZE = (FOLLOW_UP[0], *FOLLOW_UP[3:-1])
"""Parts of ``FOLLOW_UP`` that are narrow enough for a terminal."""

_LISTED = 6


def tone(study: Study) -> Tone:
    """Return whether what came out is good."""
    stable = [summary.is_stable for summary in study.summaries()]
    if not any(stable):
        return "bad"
    whole = all(stable) and len(study.measured) == len(study.records)
    return "good" if whole else "warning"


def verdict(study: Study) -> str:
    """Return what came out, in plain words."""
    summaries = study.summaries()
    count = len(study.measured)
    lost = len(study.records) - count
    errors = [f"{_pictures(lost)} could not be measured."] if lost else []
    if not count:
        return f"No picture could be measured: {study.records[0].error}"
    stable = [summary.name for summary in summaries if summary.is_stable]
    if len(stable) == len(summaries):
        each = "the stabilizer" if len(stable) == 1 else f"all {len(stable)} stabilizers"
        return " ".join([f"Under {each}, relevance is stable on {_every(count)}.", *errors])
    lines = []
    if stable:
        lines.append(f"Stable on {_every(count)}: {_listed(_ranges(study.names, stable))}.")
    else:
        lines.append(f"No stabilizer is stable on {_every(count)}.")
    worst = sorted(
        (summary for summary in summaries if summary.unstable),
        key=lambda s: (s.pictures - s.finite, s.unstable),
        reverse=True,
    )
    lines += [_trouble(summary) for summary in worst[:_LISTED]]
    if len(worst) > _LISTED:
        lines.append(f"{len(worst) - _LISTED} more stabilizers are unstable on some picture.")
    return " ".join([*lines, *errors])


def _trouble(summary: Summary) -> str:
    bad = summary.pictures - summary.finite
    of = f"of {_pictures(summary.pictures)}"
    if bad == summary.unstable:
        what = f"not finite on {bad} {of}"
    elif bad:
        what = f"unstable on {summary.unstable} {of}, and not finite on {bad} of these"
    else:
        what = f"unstable on {summary.unstable} {of}"
    where = ""
    if summary.starts:
        layer, times = summary.starts[0]
        often = "always" if times == summary.unstable else "mostly"
        where = f", {often} from layer '{layer}'" if summary.unstable > 1 else f", from '{layer}'"
    return f"{summary.name} is {what}{where}."


def follow_up(study: Study) -> tuple[Header, Rows]:
    """Return the table of the stabilizers."""
    return FOLLOW_UP, [_follow_up_row(summary) for summary in study.summaries()]


def _follow_up_row(summary: Summary) -> tuple[str, ...]:
    start = "" if not summary.starts else f"{summary.starts[0][0]} ({summary.starts[0][1]})"
    return (
        summary.name,
        f"{summary.finite}/{summary.pictures}",
        str(summary.unstable),
        *_both(summary.std_value),
        *_both(summary.std_pixel),
        *_both(summary.peak_over_median),
        short(summary.growth.median),
        start,
    )


def _both(spread: Spread) -> tuple[str, str]:
    return short(spread.median), short(spread.worst)


def per_picture(study: Study) -> tuple[Header, Rows]:
    """Return the table of the pictures: the worst stabilizer, and where it starts."""
    header = ("picture", "class", "verdict", "unstable", "worst stabilizer", "at layer", "peak")
    return header, [_picture_row(record) for record in study.records]


def _picture_row(record: PictureRecord) -> tuple[str, ...]:
    worst = record.worst
    if worst is None:
        return (record.picture, "", f"not measured: {record.error}", "", "", "", "")
    bad = sum(run.verdict != STABLE for run in record.runs)
    return (
        record.picture,
        record.label or "",
        worst.verdict,
        f"{bad} of {len(record.runs)}",
        worst.name,
        "" if worst.start is None else worst.start.layer,
        peak(worst),
    )


def peaks(study: Study) -> tuple[Header, Rows]:
    """Return the table of the pictures by stabilizer: maximum over median, or the verdict."""
    header = ("picture", *study.names)
    return header, [(record.picture, *map(peak, record.runs)) for record in study.measured]


def peak(run: Run) -> str:
    """Return maximum over median, marked if the run is not stable."""
    if run.verdict == NOT_FINITE:
        return "not finite"
    return short(run.peak_over_median) + ("" if run.verdict == STABLE else " !")


def unstable(study: Study, most: int) -> tuple[Header, Rows, int]:
    """Return the table of what is unstable, and how many rows did not go into it."""
    header = ("picture", "stabilizer", "verdict", "layer", "output", "times", "because")
    rows: Rows = []
    left = 0
    for record, run in study.unstable():
        if len(rows) < most:
            rows.append((record.picture, run.name, run.verdict, *_start_cells(run)))
        else:
            left += 1
    return header, rows, left


def _start_cells(run: Run) -> tuple[str, ...]:
    start = run.start
    if start is None:
        spread = "it arose outside the layers with a record"
        if run.verdict != NOT_FINITE:
            spread = "no layer alone: it grows bit by bit"
        return ("", "", "", spread)
    index = "" if start.neuron is None else ", ".join(map(str, start.neuron))
    because = f"{start.cause}: {start.because}"
    return (start.layer, index, short(start.factor), because)


def origins(study: Study) -> tuple[Header, Rows]:
    """Return the table of where instability starts, why, and what helps."""
    header = (
        *("stabilizer", "layer", "pictures", "not finite", "such as", "cause"),
        "what helps",
    )
    return header, [
        (o.name, o.layer, str(o.pictures), str(o.not_finite), o.example, o.cause, o.remedy)
        for o in study.origins()
    ]


def amplification(study: Study) -> tuple[Header, Rows]:
    """Return the table of the layers, from the output to the input: median and worst."""
    header = ("layer", *(f"{name}{end}" for name in study.names for end in ("", ", worst")))
    columns = [study.by_layer(name) for name in study.names]
    rows = []
    for index in reversed(range(len(study.layers))):
        cells = (cell for column in columns for cell in _both(column[index][1]))
        rows.append((study.layers[index], *cells))
    return header, rows


def warnings(study: Study) -> list[str]:
    """Return each warning once, with the stabilizer and on how many pictures."""
    found: dict[tuple[str, str], int] = {}
    for record in study.measured:
        for run in record.runs:
            for text in run.warnings:
                found[run.name, text] = found.get((run.name, text), 0) + 1
    return [f"{name}, {_pictures(count)}: {text}" for (name, text), count in found.items()]


def short(value: float | None) -> str:
    """Return a number in two or three digits and few letters.

    Example:
        >>> [short(v) for v in (None, 0.01234, 5.678, 345.6, 1.7e8, 2e-9)]
        ['-', '0.012', '5.7', '346', '1.7e8', '2e-9']
    """
    if value is None:
        return "-"
    if 100 <= abs(value) < 9999.5:
        return f"{value:.0f}"
    return re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.2g}")


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"


def _every(count: int) -> str:
    return "the picture" if count == 1 else f"all {count} pictures"


def _ranges(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Return those chosen, at least three in a row of one kind in short.

    Example:
        >>> names = ["none", "signed:1e-3", "signed:0.01", "signed:0.1", "signed:1", "clip:1"]
        >>> _ranges(names, [*names[1:4], "clip:1"])
        ['signed:1e-3 to 0.1', 'clip:1']
    """
    runs: list[list[str]] = []
    before = None
    for name in names:
        kind = name.partition(":")[0]
        if name in chosen:
            if before == kind:
                runs[-1].append(name)
            else:
                runs.append([name])
        before = kind if name in chosen else None
    found: list[str] = []
    for run in runs:
        short_enough = len(run) < 3
        found += run if short_enough else [f"{run[0]} to {run[-1].partition(':')[2]}"]
    return found


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:_LISTED])} and {len(names) - _LISTED} more"
