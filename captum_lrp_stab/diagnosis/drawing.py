"""The figures of a diagnosis: heatmaps, ledger, amplification, denominators, sweep.

Nothing here uses pyplot's figures, so that a caller's backend and current figure stay as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from captum_lrp_stab.diagnosis.receptive_field import Box
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.diagnosis.sweeping import Sweep
from captum_lrp_stab.images.grid import Options, Panel, draw
from captum_lrp_stab.images.style import PALETTE, shortened
from captum_lrp_stab.ledger.records import Histogram, LayerRecord

BIAS, BAD, STABILIZER = PALETTE[0], PALETTE[1], PALETTE[4]
OTHER, INK = "0.6", "0.25"
_ROW = 0.2  # inches for a layer
_LONGEST = 38  # characters of a name


def heatmaps(picture: NDArray[np.uint8], panels: Sequence[Panel], box: Box | None) -> Figure:
    """Return heatmaps over the picture, side by side, each on a scale of its own.

    Args:
        picture: Shape (H, W, 3).
        panels: What to show.
        box: What the neuron at the origin sees.
    """

    def mark(ax: Axes) -> None:
        if box is not None and len(box.start) == 3:
            (_, top, left), (_, bottom, right) = box.start, box.stop
            corner, width, height = (left - 0.5, top - 0.5), right - left, bottom - top
            ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=BAD, linewidth=1.5))

    marked = [replace(panel, mark=mark) for panel in panels]
    return draw([marked], picture, Options(shared=False))


def ledger(diagnosis: Diagnosis) -> Figure:
    """Return relevance by layer, from the output at the top to the input at the bottom.

    Left: the sum of relevance that each layer receives. Middle: what it absorbs. Right: the
    absolute sum it receives, against which the sum has to be seen.
    """
    layers = [layer for layer in reversed(diagnosis.layers) if layer.has_rule]
    names = [*map(_shortened, layers), "input"]
    places = np.arange(len(names))
    figure = Figure(figsize=(9, 1.5 + _ROW * len(names)))
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1))
    figure.subplots_adjust(
        0.29, 0.75 / (1.5 + _ROW * len(names)), 0.98, 1 - 0.5 / (1.5 + _ROW * len(names)), 0.1
    )
    received = [layer.received for layer in layers]
    sums = [*(flow.total for flow in received), diagnosis.ledger.inputs.total]
    left.plot(sums, places, color=INK, marker="o", markersize=3, linewidth=1)
    left.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    _symmetric(left, sums)
    left.set_title("sum of relevance", fontsize=9)
    parts = (
        ("bias", BIAS, [layer.shares.bias for layer in layers]),
        ("stabilizer", STABILIZER, [layer.shares.stabilizer for layer in layers]),
        ("rule", OTHER, [layer.shares.rule + layer.shares.operation for layer in layers]),
    )
    _stacked(middle, parts)
    middle.set_title("absorbed by", fontsize=9)
    sizes = [*(flow.l1 for flow in received), diagnosis.ledger.inputs.l1]
    right.plot([v or np.nan for v in sizes], places, color=INK, marker="o", markersize=3)
    positive = [size for size in sizes if size > 0]
    if positive and max(positive) > 100 * min(positive):
        right.set_xscale("log")
        right.xaxis.set_minor_formatter(NullFormatter())  # its labels would overlap
    right.set_title("absolute sum", fontsize=9)
    left.set_yticks(places, names, fontsize=7, parse_math=False)
    left.set_ylim(len(names) - 0.5, -0.5)
    _mark(figure.axes, layers, diagnosis)
    for ax in figure.axes:
        ax.tick_params(axis="x", labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _stacked(ax: Axes, parts: Sequence[tuple[str, str, list[float]]]) -> None:
    """Draw bars beside one another, to the left of 0 for relevance that was added."""
    ends = {1: np.zeros(len(parts[0][2])), -1: np.zeros(len(parts[0][2]))}
    places = np.arange(len(parts[0][2]))
    for name, colour, given in parts:
        values = np.nan_to_num(np.array(given, dtype=float), posinf=0.0, neginf=0.0)
        for sign, end in ends.items():
            part = np.where(np.sign(values) == sign, values, 0.0)
            label = name if sign == 1 else None
            ax.barh(places, part, left=end, color=colour, height=0.7, label=label)
            end += part
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    _symmetric(ax, [*ends[1], *ends[-1]])
    ax.legend(fontsize=7, loc="best", framealpha=0.8)


def _symmetric(ax: Axes, values: Sequence[float]) -> None:
    """Take a scale that is linear near 0 and logarithmic away from it where values differ much."""
    sizes = np.abs([v for v in values if math.isfinite(v) and v])
    if sizes.size and sizes.max() > 100 * np.median(sizes):
        ax.set_xscale("symlog", linthresh=float(np.median(sizes)))
        top = 10.0 ** math.floor(math.log10(sizes.max()))
        ax.set_xticks([-top, 0, top])  # more would run into each other
        ax.minorticks_off()


def _mark(axes: Sequence[Axes], layers: Sequence[LayerRecord], diagnosis: Diagnosis) -> None:
    """Tint the layer where trouble starts."""
    for i, layer in enumerate(layers):
        if diagnosis.origin is not None and layer.name == diagnosis.origin.name:
            for ax in axes:
                ax.axhspan(i - 0.5, i + 0.5, color=BAD, alpha=0.2, zorder=0)


def amplification(diagnosis: Diagnosis) -> Figure:
    """Return by how much each layer and addition amplifies relevance, and its loudest neuron."""
    layers = [r for r in reversed(diagnosis.layers) if r.has_rule or (r.amplification or 0) > 1.01]
    height = 1.3 + _ROW * len(layers)
    figure = Figure(figsize=(9, height))
    ax = figure.add_axes((0.29, 0.65 / height, 0.69, 1 - 1.0 / height))
    places = np.arange(len(layers))
    whole = np.array([_positive(layer.amplification) for layer in layers])
    loudest = np.array([_positive(layer.peak) for layer in layers])
    ax.barh(places, whole - 1, left=1, color=BIAS, height=0.7, label="the layer")
    ax.plot(loudest, places, "D", color=STABILIZER, markersize=4, label="its loudest neuron alone")
    values = np.concatenate([whole, loudest, [diagnosis.threshold]])
    finite = values[np.isfinite(values)]
    ax.set_xscale("log")
    ax.set_xlim(max(float(finite.min()), 1e-4) / 2, float(finite.max()) * 2)
    ax.axvline(1, color="0.6", linewidth=0.8)
    ax.axvline(diagnosis.threshold, color=BAD, linestyle="--", linewidth=1, label="threshold")
    ax.set_yticks(places, list(map(_shortened, layers)), fontsize=7, parse_math=False)
    ax.set_ylim(len(layers) - 0.5, -0.5)
    ax.set_xlabel("relevance propagated over relevance received, absolute sums", fontsize=8)
    ax.tick_params(axis="x", labelsize=7)
    ax.legend(fontsize=7, loc="lower right", framealpha=0.9)
    ax.spines[["top", "right"]].set_visible(False)
    _mark([ax], layers, diagnosis)
    return figure


def _positive(value: float | None) -> float:
    return value if value is not None and value > 0 and math.isfinite(value) else math.nan


def denominators(layers: Sequence[LayerRecord], unit_roundoff: float) -> Figure:
    """Return histograms of the denominators of some layers, and of how much cancels in them."""
    height = 1.75 * len(layers) + 0.4
    figure = Figure(figsize=(9, height))
    axes = figure.subplots(len(layers), 2, squeeze=False)
    figure.subplots_adjust(0.07, 0.5 / height, 0.98, 1 - 0.35 / height, 0.15, 0.85)
    for (sizes, cancelling), layer in zip(axes, layers, strict=True):
        found = layer.denominators
        if found is None:
            continue
        _bars(sizes, found.sizes, BIAS)
        sizes.set_title(_shortened(layer), fontsize=9, loc="left", parse_math=False)
        sizes.set_xlabel(f"|z|; {found.zeros} of {found.count} exactly 0", fontsize=8)
        _bars(cancelling, found.cancellation, STABILIZER)
        noise = 1 / unit_roundoff
        cancelling.axvline(noise, color=BAD, linestyle="--", linewidth=1)
        label = f"sum |x w| / |z|; {found.noise} beyond the rounding error (dashed)"
        cancelling.set_xlabel(label, fontsize=8)
        for ax in (sizes, cancelling):
            ax.tick_params(labelsize=7)
            ax.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(ax: Axes, histogram: Histogram, colour: str) -> None:
    """Draw a histogram in quarters of a power of ten, as shares."""
    counts: dict[float, int] = {}
    for exponent, count in histogram.bins():
        place = math.floor(4 * exponent) / 4
        counts[place] = counts.get(place, 0) + count
    total = sum(counts.values()) or 1
    places = [10 ** (place + 0.125) for place in counts]
    widths = [10 ** (place + 0.25) - 10**place for place in counts]
    ax.set_xscale("log")
    ax.bar(places, [100 * c / total for c in counts.values()], widths, color=colour)
    ax.set_ylabel("%", fontsize=8)


def swept(sweep: Sweep) -> Figure:
    """Return how the heatmap leaves that of the smallest value, and reaches that of the largest."""
    figure = Figure(figsize=(9, 3.4))
    ax = figure.add_axes((0.08, 0.17, 0.9, 0.72))
    points = [p for p in sweep.points if p.value > 0]
    values = [p.value for p in points]
    for name, colour, distances in (
        (f"from the smallest {sweep.parameter}", BIAS, [p.from_first for p in points]),
        (f"from the largest {sweep.parameter}", STABILIZER, [p.from_last for p in points]),
    ):
        heights = [math.nan if d is None else d for d in distances]
        ax.plot(values, heights, color=colour, marker="o", markersize=4, label=name)
    for knee in (sweep.leaves, sweep.reaches):
        if knee is not None and knee > 0:
            ax.axvline(knee, color=BAD, linestyle="--", linewidth=1)
            ax.annotate(f"{knee:g}", (knee, 1.43), fontsize=8, ha="center", va="bottom")
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.43)
    ax.set_xlabel(sweep.parameter, fontsize=9)
    ax.set_ylabel("difference of direction", fontsize=9)
    ax.legend(fontsize=8, loc="center left", framealpha=0.9)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _shortened(layer: LayerRecord) -> str:
    return shortened(layer.name or "the model", _LONGEST)
