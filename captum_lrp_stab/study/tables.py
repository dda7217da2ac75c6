"""A study in sentences and tables: the verdict, the numbers, the notes."""

import re
from collections.abc import Sequence

from captum_lrp_stab.reporting.document import Table, Tone
from captum_lrp_stab.reporting.tables import number
from captum_lrp_stab.study.records import NOT_FINITE, STABLE, PictureRecord, Run
from captum_lrp_stab.study.result import Spread, Study, Summary
from captum_lrp_stab.study.statistics import Place, Statistics

_LISTED = 6
_CHANNELS = ("red", "green", "blue")


def tone(study: Study) -> Tone:
    """Return whether what came out is good."""
    stable = [summary.is_stable for summary in study.summaries()]
    if not any(stable):
        return "bad"
    whole = all(stable) and len(study.measured) == len(study.records)
    return "good" if whole else "warning"


def verdict(study: Study) -> str:
    """Return what came out, in a few sentences."""
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
    of = f" on {summary.unstable} of {_pictures(summary.pictures)}"
    what = "not finite" if bad == summary.unstable else "unstable"
    if summary.pictures > 1:
        what += of
        if 0 < bad < summary.unstable:
            what += f", and not finite on {bad} of these"
    where = ""
    if summary.starts:
        layer, times = summary.starts[0]
        often = "always" if times == summary.unstable else "mostly"
        where = f", {often} from layer '{layer}'" if summary.unstable > 1 else f", from '{layer}'"
    return f"{summary.name} is {what}{where}."


def tables(study: Study) -> list[tuple[str, Table]]:
    """Return the numbers of the stabilizers as tables with titles."""
    if not study.measured:
        return []
    if len(study.records) == 1:
        return _tables_of_one(study.measured[0].runs)
    summaries = study.summaries()
    bad = frozenset(i for i, summary in enumerate(summaries) if not summary.is_stable)
    starts = [", ".join(f"{layer} ({n})" for layer, n in s.starts[:1]) for s in summaries]
    stability = Table(
        ("stabilizer", "finite", "unstable", "starts mostly at"),
        tuple(
            (s.name, f"{s.finite}/{s.pictures}", str(s.unstable), start)
            for s, start in zip(summaries, starts, strict=True)
        ),
        ("stabilizer", "starts mostly at"),
        bad,
        _UNSTABLE.format(threshold=study.settings["threshold"]),
    )
    size = Table(
        ("stabilizer", "std/val", "worst", "std/px", "worst", "max/med", "worst", "growth"),
        tuple(
            (
                s.name,
                *(cell for spread in (s.std_value, s.std_pixel) for cell in _both(spread)),
                *_both(s.peak_over_median),
                short(s.growth.median),
            )
            for s in summaries
        ),
        ("stabilizer",),
        bad,
        "Medians over the pictures, and the worst picture, of those with finite relevance. "
        f"{_STD}; max/med: largest over median absolute value of pixels; growth: sum of absolute "
        "relevance of the input over the score.",
    )
    return [("Stability", stability), ("Size", size)]


_UNSTABLE = (
    "Unstable: not finite, or a layer or a single neuron passes on more than {threshold:g} times "
    "the relevance that the layer received, or the stabilizer adds more than all of it."
)
_STD = (
    "std: standard deviation of relevance, of every value (val) and of the sums over channels (px)"
)
_FINITE = "In brackets: of the finite ones alone, where not all are finite."


def _tables_of_one(runs: Sequence[Run]) -> list[tuple[str, Table]]:
    bad = frozenset(i for i, run in enumerate(runs) if run.verdict != STABLE)
    size = Table(
        ("stabilizer", "verdict", "sum/score", "min", "max", "std/val", "std/px"),
        tuple(_size_cells(run) for run in runs),
        ("stabilizer", "verdict"),
        bad,
        f"min, max: of pixels, summed over channels. {_STD}. {_FINITE}",
    )
    pixels = Table(
        ("stabilizer", "score", "< 0", "= 0", "> 0", "NaN", "Inf", "max/med"),
        tuple(_pixel_cells(run) for run in runs),
        ("stabilizer",),
        bad,
        "The score as the form computes it, and how many pixels are of which sign; max/med: "
        "largest over median absolute value.",
    )
    extremes = [
        (run.name, word, *_place_cells(place))
        for run in runs
        for word, place in (("max", run.largest), ("min", run.smallest))
        if place is not None
    ]
    places = Table(
        ("stabilizer", "of", "relevance", "row,col", "channel", "pixel", "gradient"),
        tuple(extremes),
        ("stabilizer", "of", "channel"),
        caption="The largest and smallest value, with the picture's RGB and the plain gradient of "
        "the score there.",
    )
    return [("Size", size), ("Pixels", pixels), *([("Extremes", places)] if extremes else [])]


def _size_cells(run: Run) -> tuple[str, ...]:
    values, pixels = (run.values, run.finite_values), (run.pixels, run.finite_pixels)
    return (
        *(run.name, run.verdict, number(run.sum_over_score, 3)),
        *(_of("minimum", *pixels), _of("maximum", *pixels)),
        *(_of("standard_deviation", *values), _of("standard_deviation", *pixels)),
    )


def _pixel_cells(run: Run) -> tuple[str, ...]:
    pixels = run.pixels
    counts = pixels.negative, pixels.zero, pixels.positive, pixels.nan, pixels.infinite
    peak = _of("peak_over_median", pixels, run.finite_pixels)
    return (run.name, number(run.score, 4), *map(str, counts), peak)


def _of(name: str, whole: Statistics, finite: Statistics | None) -> str:
    """Return a number of a map, or in brackets of its finite part."""
    if finite is None:
        return number(getattr(whole, name), 3)
    alone = getattr(finite, name)
    return "-" if alone is None else f"({number(alone, 3)})"


def _place_cells(place: Place) -> tuple[str, ...]:
    return (
        number(place.relevance, 3),
        f"{place.row},{place.column}",
        _CHANNELS[place.channel],
        " ".join(map(str, place.pixel)),
        number(place.gradient, 3),
    )


def _both(spread: Spread) -> tuple[str, str]:
    return short(spread.median), short(spread.worst)


def per_picture(study: Study) -> Table:
    """Return the table of the pictures: the worst stabilizer, and where it starts."""
    records = study.records
    bad = {i for i, r in enumerate(records) if r.worst is None or r.worst.verdict != STABLE}
    return Table(
        ("picture", "class", "verdict", "unstable", "worst stabilizer", "at layer", "peak"),
        tuple(map(_picture_row, records)),
        ("picture", "class", "verdict", "worst stabilizer", "at layer"),
        frozenset(bad),
        "The worst stabilizer of each picture, and the layer at which it starts; peak is maximum "
        "over median.",
    )


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


def peaks(study: Study) -> Table:
    """Return the table of the pictures by stabilizer: maximum over median, or the verdict."""
    return Table(
        ("picture", *study.names),
        tuple((record.picture, *map(peak, record.runs)) for record in study.measured),
        ("picture",),
        caption="Maximum over median under each stabilizer; '!': unstable.",
    )


def peak(run: Run) -> str:
    """Return maximum over median, marked if the run is not stable."""
    if run.verdict == NOT_FINITE:
        return "not finite"
    return short(run.pixels.peak_over_median) + ("" if run.verdict == STABLE else " !")


def unstable(study: Study, most: int) -> tuple[Table, int]:
    """Return the table of what is unstable, and how many rows did not go into it."""
    found = list(study.unstable())
    table = Table(
        ("picture", "stabilizer", "verdict", "layer", "output", "times", "because"),
        tuple(
            (rec.picture, run.name, run.verdict, *_start_cells(run)) for rec, run in found[:most]
        ),
        ("picture", "stabilizer", "verdict", "layer", "output", "because"),
    )
    return table, max(len(found) - most, 0)


def _start_cells(run: Run) -> tuple[str, ...]:
    start = run.start
    if start is None:
        spread = "it arose outside the layers with a rule"
        if run.verdict != NOT_FINITE:
            spread = "no single layer: it grows over many"
        return ("", "", "", spread)
    index = "" if start.neuron is None else ", ".join(map(str, start.neuron))
    because = f"{start.cause}: {start.because}"
    return (start.layer, index, short(start.factor), because)


def origins(study: Study) -> Table:
    """Return the table of where instability starts, why, and what helps."""
    return Table(
        ("stabilizer", "layer", "pictures", "not finite", "such as", "cause", "what helps"),
        tuple(
            (o.name, o.layer, str(o.pictures), str(o.not_finite), o.example, o.cause, o.remedy)
            for o in study.origins()
        ),
        ("stabilizer", "layer", "such as", "cause", "what helps"),
    )


def amplification(study: Study) -> Table:
    """Return the table of the layers, from the output to the input: median and worst."""
    one = len(study.measured) == 1
    ends = ("",) if one else ("", ", worst")
    columns = [study.by_layer(name) for name in study.names]
    rows = []
    for index in reversed(range(len(study.layers))):
        spreads = [column[index][1] for column in columns]
        cells = [cell for spread in spreads for cell in _both(spread)[: len(ends)]]
        rows.append((study.layers[index], *cells))
    return Table(
        ("layer", *(f"{name}{end}" for name in study.names for end in ends)),
        tuple(rows),
        ("layer",),
        caption="From the output to the input."
        if one
        else "Median and worst over the pictures, from the output to the input.",
    )


def notes(study: Study) -> list[str]:
    """Return each warning once, with its stabilizer and the number of pictures; and a hint."""
    found: dict[tuple[str, str], int] = {}
    for record in study.measured:
        for run in record.runs:
            for text in (*_changed_score(study, record, run), *run.warnings):
                found[run.name, text] = found.get((run.name, text), 0) + 1
    lines = [
        f"{name}{f', {_pictures(count)}' if len(study.records) > 1 else ''}: {text}"
        for (name, text), count in found.items()
    ]
    bare = any(run.name == "none" and run.finite for r in study.measured for run in r.runs)
    if bare and study.settings["form"] == "gradient":
        lines.append(
            "none: the gradient form takes 0/0 as 0; the bare division can be seen with --form "
            "relevance or --form modified-forward"
        )
    return lines


def _changed_score(study: Study, record: PictureRecord, run: Run) -> list[str]:
    """Return that a form changes the score, where the study is of one picture."""
    before, after = record.score, run.score
    if len(study.records) > 1 or before is None or after is None:
        return []
    if abs(after - before) <= 1e-3 * abs(before):
        return []
    return [f"this form changes the score from {before:.4g} to {after:.4g}"]


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
    """Return the chosen names, three or more in a row of one kind as a range.

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
