"""The figure of the peaks: maximum over median, by stabilizer or against epsilon."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_lrp_stab.panels import PALETTE
from captum_lrp_stab.study.grid import parted
from captum_lrp_stab.study.records import NOT_FINITE, STABLE, Run
from captum_lrp_stab.study.result import Study

BAD = "#B2182B"
_MARKERS = "osD^vPX"
_WIDTH = 9.5
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
    figure = Figure(figsize=(_WIDTH, 1.5 + 0.55 * len(names)), layout="constrained")
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
    figure = Figure(figsize=(_WIDTH, 6.8), layout="constrained")
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
    return [min(max(run.peak_over_median, 1e-100), 1e100) for run in runs if run.peak_over_median]


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
