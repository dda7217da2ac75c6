"""The plot: how long each contender takes, in units of the gradient, a panel for each model."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.contenders import GRADIENT
from benchmarks.correctness import DIFFERENT, OK, WRONG
from benchmarks.records import Results, Row
from captum_lrp_stab.images.style import PALETTE

_LIBRARIES = ("ours", "captum", "zennit", "autolrp")
_COLOURS = dict(zip(_LIBRARIES, PALETTE, strict=False))
_MARKERS = "osD^vP"
_WIDTH, _LINE, _FRAME = 9.0, 0.24, 0.75  # inches


def draw(results: Results) -> Figure:
    """Return the figure: dots for medians, bars for quartiles, crosses for wrong results.

    Hollow ones are of a library that means another result.
    """
    rows = [row for row in results.rows if row.library != GRADIENT]
    models = list(dict.fromkeys(row.model for row in rows))
    names = {model: _methods([r for r in rows if r.model == model]) for model in models}
    heights = [_FRAME + _LINE * len(names[model]) for model in models] or [_FRAME]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(
        max(1, len(models)), 1, squeeze=False, sharex=True, height_ratios=heights
    ).flatten()
    for ax, model in zip(axes, models, strict=False):
        _panel(ax, [r for r in rows if r.model == model], names[model], results.settings.batches)
        ax.set_title(f"{model} ({results.weights.get(model, '')})", loc="left", fontsize=10)
    axes[-1].set_xlabel("time / time of gradient x input (bars: quartiles)")
    figure.legend(
        handles=_legend(rows, results.settings.batches),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _methods(rows: Sequence[Row]) -> list[str]:
    """Return the methods in the order they are drawn, same rules together."""
    ordered = sorted(rows, key=lambda row: (row.rules, row.library != "ours", row.library))
    return list(dict.fromkeys(row.method for row in ordered))


def _panel(ax: Axes, rows: Sequence[Row], names: list[str], batches: Sequence[int]) -> None:
    unmeasured: dict[str, str] = {}  # why, said once for all batch sizes
    for row in rows:
        offset = 0.16 * (batches.index(row.batch) - (len(batches) - 1) / 2)
        place = names.index(row.method) + offset
        if row.timing is None:
            unmeasured.setdefault(row.method, row.correctness.verdict)
            continue
        spread, colour = row.timing.multiple, _COLOURS.get(row.library, PALETTE[-1])
        ax.plot([spread.low, spread.high], [place, place], color=colour, linewidth=1.4, alpha=0.6)
        marker = _MARKERS[batches.index(row.batch) % len(_MARKERS)]
        ax.plot(
            spread.median,
            place,
            marker=marker,
            markersize=5.5,
            color=colour,
            markerfacecolor=colour if row.correctness.verdict == OK else "white",
        )
        if row.correctness.verdict == WRONG:
            ax.plot(
                spread.median, place, marker="x", markersize=9, color="black", markeredgewidth=1
            )
    for method, verdict in unmeasured.items():
        ax.annotate(
            verdict,
            (0.01, names.index(method)),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color="0.35",
        )
    ax.axvline(1, color="0.5", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)


def _legend(rows: Sequence[Row], batches: Sequence[int]) -> list[Line2D]:
    libraries = [name for name in _LIBRARIES if any(row.library == name for row in rows)]
    style: dict[str, Any] = {"linestyle": "none", "markersize": 6}
    handles = [Line2D([], [], marker="o", color=_COLOURS[n], label=n, **style) for n in libraries]
    handles += [
        Line2D([], [], marker=_MARKERS[i % len(_MARKERS)], color="0.4", label=f"batch {b}", **style)
        for i, b in enumerate(batches)
    ]
    if any(row.correctness.verdict == WRONG for row in rows):
        handles.append(Line2D([], [], marker="x", color="black", label="wrong result", **style))
    if any(row.correctness.verdict == DIFFERENT and row.timing is not None for row in rows):
        hollow: dict[str, Any] = {
            "color": "0.4",
            "markerfacecolor": "white",
            "label": "another rule's result",
        }
        handles.append(Line2D([], [], marker="o", **hollow, **style))
    return handles
