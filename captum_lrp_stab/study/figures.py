"""The figure of the layers: how many times each multiplies relevance."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from captum_lrp_stab.images.style import PALETTE, name_layers
from captum_lrp_stab.study.grid import parted
from captum_lrp_stab.study.records import NOT_FINITE, STABLE, Run
from captum_lrp_stab.study.result import Study

MOST_PANELS = 6
_MOST_NAMES = 72
_WIDTH = 11.5


def draw_amplification(study: Study) -> Figure:
    """Return how many times each layer multiplies relevance: lines, or a map if there are many."""
    if len(study.names) > MOST_PANELS:
        return _amplification_map(study)
    count = len(study.names)
    figure = Figure(figsize=(_WIDTH, 1.2 + 1.35 * count), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False, sharex=True, sharey=True).flatten()
    tables = [study.amplification[name][:, ::-1] for name in study.names]  # from the output
    limit = _limit(tables)
    for ax, name, table, colour in zip(axes, study.names, tables, PALETTE, strict=False):
        _band(ax, table, colour)
        ax.axhline(1, color="0.5", linewidth=0.8, zorder=0)
        starts = _starts(study, name)
        if starts.any():
            at = np.flatnonzero(starts)
            top = np.full(len(at), limit)
            ax.scatter(at, top, marker="v", s=28, color=BAD, zorder=4, clip_on=False)
        ax.set_title(name, loc="left", fontsize=10, weight="bold", parse_math=False)
        ax.set_title(_where(study, name), loc="right", fontsize=9, color="0.25", parse_math=False)
        ax.set_yscale("log")
        ax.set_ylim(1 / limit, limit)
        ax.grid(axis="y", color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    _powers(axes[0], limit)
    name_layers(axes[-1], study.layers[::-1], _MOST_NAMES)
    figure.supylabel("relevance passed on / received", fontsize=10)
    return figure


def _band(ax: Axes, table: NDArray[np.float64], colour: str) -> None:
    """Draw the median over the pictures as a line, and a band from the smallest to the largest."""
    known = np.where(np.isfinite(table) & (table > 0), table, np.nan)
    ends = [_over_pictures(known, share) for share in (0.0, 0.5, 1.0)]
    places = np.arange(table.shape[1])
    ax.fill_between(places, ends[0], ends[2], color=colour, alpha=0.22, linewidth=0)
    ax.plot(places, ends[1], color=colour, linewidth=1.4, marker="o", markersize=2.6)


def _over_pictures(table: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    found = np.full(table.shape[1], np.nan)
    known = np.isfinite(table).any(0)
    if known.any():
        found[known] = np.nanquantile(table[:, known], share, axis=0)
    return found


def _limit(tables: list[NDArray[np.float64]]) -> float:
    """Return the power of ten that no value exceeds, nor any inverse, from 10 to a googol."""
    powers = [np.log10(t[np.isfinite(t) & (t > 0)]) for t in tables]
    largest = max((float(np.abs(p).max()) for p in powers if p.size), default=1.0)
    return float(10.0 ** min(max(math.ceil(largest), 1), 100))


def _powers(ax: Axes, limit: float) -> None:
    """Label 1, and on either side of it powers of ten at the same distances."""
    last = round(math.log10(limit))
    step = math.ceil(last / 2)
    exponents = [e for e in range(-step * (last // step), last + 1, step)]
    ax.yaxis.set_major_locator(FixedLocator([10.0**e for e in exponents]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: times(value)))


def times(value: float) -> str:
    """Return a power of ten as a factor.

    Example:
        >>> [times(v) for v in (0.001, 1.0, 100.0, 1e12)]
        ['1/1000', '1', '100', '1e12']
    """
    exponent = round(math.log10(value))
    size = str(10 ** abs(exponent)) if abs(exponent) < 5 else f"1e{abs(exponent)}"
    return size if exponent >= 0 else f"1/{size}"


def _starts(study: Study, name: str) -> NDArray[np.int64]:
    """Return on how many pictures instability starts at each layer, from the output."""
    counted = Counter(run.start.layer for run in study.runs(name) if run.start is not None)
    return np.array([counted[layer] for layer in reversed(study.layers)], dtype=np.int64)


def _where(study: Study, name: str) -> str:
    runs = study.runs(name)
    if len(runs) == 1:
        return runs[0].verdict
    bad = [run for run in runs if run.verdict != STABLE]
    if not bad:
        return f"stable on all {len(runs)}"
    lost = sum(run.verdict == NOT_FINITE for run in bad)
    words = [f"{len(bad)} of {len(runs)} unstable"]
    if lost:
        words.append("not finite" if lost == len(bad) else f"{lost} not finite")
    return ", ".join(words)


def _amplification_map(study: Study) -> Figure:
    """Return the worst amplification as colour: a row for each stabilizer, layers from left."""
    figure = Figure(figsize=(_WIDTH, 2.2 + 0.21 * len(study.names)), layout="constrained")
    ax = figure.subplots()
    worst = np.stack(
        [_over_pictures(study.amplification[name][:, ::-1], 1.0) for name in study.names]
    )
    powers = np.log10(np.where(worst > 0, worst, np.nan))
    largest = round(math.log10(_limit([worst])))
    ax.set_facecolor("0.75")
    norm = SymLogNorm(1.0, vmin=-largest, vmax=largest)  # a blow-up must not hide the rest
    shown = ax.imshow(powers, cmap="PuOr_r", norm=norm, aspect="auto", interpolation="nearest")
    for row, name in enumerate(study.names):
        at = np.flatnonzero(_starts(study, name))
        ax.scatter(
            at,
            np.full(len(at), row),
            marker="v",
            s=22,
            color=BAD,
            edgecolors="white",
            linewidths=0.6,
        )
    ax.set_yticks(np.arange(len(study.names)), study.names, fontsize=8, parse_math=False)
    name_layers(ax, study.layers[::-1], _MOST_NAMES)
    ticks = sorted({0, *(s * e for s in (-1, 1) for e in {1, math.ceil(largest / 3), largest})})
    bar = figure.colorbar(shown, ax=ax, ticks=ticks, pad=0.01)
    bar.ax.set_yticklabels([times(10.0**e) for e in ticks], fontsize=8)
    bar.ax.minorticks_off()
    bar.set_label("worst: passed on / received", fontsize=9)
    return figure


BAD = "#B2182B"
_MARKERS = "osD^vPX"
_PEAKS_WIDTH = 9.5
_AXIS = "maximum over median"

Curves = dict[str, list[tuple[float, str]]]
"""By the kind of stabilizer: each epsilon, and the name that has it."""


def draw_peaks(study: Study) -> Figure:
    """Return the peaks of the maps: against epsilon where a grid of them was run."""
    curves = curves_of(study.names)
    return _against_epsilon(study, curves) if curves else _by_stabilizer(study)


def curves_of(names: Sequence[str]) -> Curves:
    """Return the stabilizers that were run at several epsilons.

    Example:
        >>> curves_of(["none", "signed:0.1", "signed:0.01", "clip:0.1"])
        {'signed': [(0.01, 'signed:0.01'), (0.1, 'signed:0.1')]}
    """
    found: Curves = {}
    for name in names:
        kind, epsilon = parted(name)
        if epsilon is not None:
            found.setdefault(kind, []).append((epsilon, name))
    return {kind: sorted(points) for kind, points in found.items() if len(points) > 1}


def _by_stabilizer(study: Study) -> Figure:
    """Draw a dot for each picture, and the median as a line."""
    names = study.names
    figure = Figure(figsize=(_PEAKS_WIDTH, 1.5 + 0.55 * len(names)), layout="constrained")
    ax = figure.subplots()
    for row, name in enumerate(names):
        runs = study.runs(name)
        for is_good, colour, marker in ((True, PALETTE[0], "o"), (False, PALETTE[1], "X")):
            chosen = [run for run in runs if (run.verdict == STABLE) is is_good]
            values = _values(chosen)
            heights = row + 0.6 * (np.arange(len(values)) * 0.618034 % 1 - 0.5)  # spread evenly
            ax.scatter(values, heights, s=17, color=colour, marker=marker, alpha=0.7, linewidths=0)
        values = _values(runs)
        if values:
            ax.plot([np.median(values)] * 2, [row - 0.4, row + 0.4], color="black", linewidth=1.8)
        if lost := sum(run.verdict == NOT_FINITE for run in runs):
            text = f"not finite:\n{lost} of {len(runs)}"
            side = ax.get_yaxis_transform()
            ax.text(1.01, row, text, transform=side, va="center", fontsize=9, color=BAD)
    for colour, marker, word in ((PALETTE[0], "o", "stable"), (PALETTE[1], "X", "unstable")):
        ax.scatter([], [], s=17, color=colour, marker=marker, label=f"one picture, {word}")
    ax.plot([], [], color="black", linewidth=1.8, label="median")
    ax.set_yticks(np.arange(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(_AXIS)
    _log(ax, "x", [v for name in names for v in _values(study.runs(name))])
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _against_epsilon(study: Study, curves: Curves) -> Figure:
    """Draw a curve for each kind of stabilizer: the peaks, and how many pictures are unstable."""
    figure = Figure(figsize=(_PEAKS_WIDTH, 6.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    seen: list[float] = []
    for index, (kind, points) in enumerate(curves.items()):
        style = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 5,
            "linewidth": 1.5,
        }
        epsilons = [epsilon for epsilon, _ in points]
        maps = [_values(study.runs(name)) for _, name in points]
        seen += [v for values in maps for v in values]
        low, median, high = (
            [float(np.quantile(values, share)) if values else np.nan for values in maps]
            for share in (0.0, 0.5, 1.0)
        )
        above.plot(epsilons, median, label=kind, **style)
        above.fill_between(epsilons, low, high, color=style["color"], alpha=0.13, linewidth=0)
        below.plot(epsilons, [_unstable(study.runs(name)) for _, name in points], **style)
    varied = {name for points in curves.values() for _, name in points}
    for index, name in enumerate(name for name in study.names if name not in varied):
        values = _values(study.runs(name))
        style = {"color": "0.3", "linestyle": ("--", ":", "-.")[index % 3], "linewidth": 1.2}
        if values:
            seen += values
            above.axhline(float(np.median(values)), label=name, **style)
        else:
            above.plot([], [], label=f"{name} (never finite)", **style)
        below.axhline(_unstable(study.runs(name)), **style)
    _log(above, "y", seen)
    above.set_ylabel(_AXIS)
    below.set_ylabel("pictures unstable, %")
    below.set_ylim(-4, 104)
    below.set_xscale("log")
    below.set_xlabel("epsilon")
    for ax in (above, below):
        ax.grid(color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return figure


def _values(runs: Sequence[Run]) -> list[float]:
    """Return what a logarithmic axis can show: beyond a googol it fails."""
    peaks = [run.pixels.peak_over_median for run in runs]
    return [min(max(peak, 1e-100), 1e100) for peak in peaks if peak]


def _unstable(runs: Sequence[Run]) -> float:
    return 100 * sum(run.verdict != STABLE for run in runs) / len(runs)


def _log(ax: Axes, axis: str, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with at least a power of ten to see."""
    low, high = (min(values), max(values)) if values else (1.0, 1000.0)
    limits = (low / 1.5, max(high * 1.5, 10 * low))
    if axis == "x":
        ax.set_xscale("log")
        ax.set_xlim(*limits)
    else:
        ax.set_yscale("log")
        ax.set_ylim(*limits)
