"""Heatmaps side by side over the picture, drawn with ``captum.attr.visualization``.

Nothing here uses pyplot's figures, so that a caller's backend and current figure stay as they are.
"""

import math
import textwrap

import numpy as np
from captum.attr import visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from captum_lrp_stab.images.style import overlay, scale_by_share, title
from captum_lrp_stab.study.records import Run
from captum_lrp_stab.study.result import Study

_MOST_COLUMNS = 3
_PANEL = 3.2  # inches
_TITLE = 0.66
_SATURATED = 5  # per cent of the summed absolute relevance


def draw(study: Study) -> Figure:
    """Return a figure with the picture and a heatmap for each stabilizer."""
    (record,), settings = study.records, study.settings
    panels = 1 + len(record.runs)
    rows = math.ceil(panels / _MOST_COLUMNS)
    columns = math.ceil(panels / rows)
    width = columns * (_PANEL + 0.2)
    header = textwrap.wrap(
        f"{settings['model']} ({settings['weights']}), {settings['rules']}, "
        f"{settings['form']} form, {settings['dtype']}",
        int(11 * width),
    )
    footer = textwrap.wrap(
        "red: for the class, blue: against it; rings: the largest and smallest value; each panel "
        f"has a scale of its own, on which the strongest {_SATURATED}% saturate",
        int(15 * width),
    )
    above, below = 0.2 + 0.2 * len(header), 0.2 + 0.16 * len(footer)
    height = rows * (_PANEL + _TITLE) + above + below
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    figure.subplots_adjust(
        left=0.1 / width,
        right=1 - 0.1 / width,
        bottom=below / height,
        top=1 - (above + _TITLE) / height,
        wspace=0.06,
        hspace=_TITLE / _PANEL,
    )
    figure.text(
        *(0.5, 1 - 0.1 / height),
        "\n".join(header),
        ha="center",
        va="top",
        fontsize=12,
        parse_math=False,  # a file name may have dollar signs
    )
    figure.text(0.5, 0.1 / height, "\n".join(footer), ha="center", fontsize=9, color="0.3")
    picture = np.asarray(study.picture)
    _show_picture(figure, axes[0], picture)
    score = f"score {record.score:.4g}, probability {record.probability:.3g}"
    title(axes[0], str(record.label), f"class {record.target}", score)
    for ax, run, heatmap in zip(axes[1:], record.runs, study.heatmaps, strict=False):
        _show_run(figure, ax, picture, run, heatmap)
    for ax in axes[panels:]:
        ax.axis("off")
    return figure


def _show_picture(figure: Figure, ax: Axes, picture: NDArray[np.uint8]) -> None:
    visualization.visualize_image_attr(
        np.ones((*picture.shape[:2], 1)),
        picture,
        method="original_image",
        plt_fig_axis=(figure, ax),
        use_pyplot=False,
    )


def _show_run(
    figure: Figure, ax: Axes, picture: NDArray[np.uint8], run: Run, heatmap: Tensor
) -> None:
    values = heatmap.numpy()
    limit = scale_by_share(values, _SATURATED / 100)
    overlay(ax, picture, values, limit, note=_what_is_not_finite(run))
    if np.isfinite(values).all() and not values.any():
        text = "0 everywhere" if run.score is not None else "0 everywhere, score not finite"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center")
    for extreme, colour in (run.largest, "darkred"), (run.smallest, "darkblue"):
        if extreme is not None:
            ax.plot(
                extreme.column,
                extreme.row,
                marker="o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=0.9,
            )
    title(ax, run.name, *_numbers(run))


def _numbers(run: Run) -> tuple[str, ...]:
    """Return the lines under a panel's name."""
    score = "not finite" if run.score is None else f"{run.score:.4g}"
    pixels = run.pixels if run.finite_pixels is None else run.finite_pixels
    if pixels.minimum is None or pixels.maximum is None:
        return ("no finite pixel", f"score {score}")
    total = run.values.total
    of = "" if run.finite_pixels is None else "finite pixels "
    sums = "not finite" if total is None else f"{total:.3g}"
    return (
        f"{of}{pixels.minimum:.2g} ... {pixels.maximum:.2g}",
        f"sum {sums}, score {score}",
    )


def _what_is_not_finite(run: Run) -> str:
    pixels = run.pixels
    total = pixels.nan + pixels.infinite + pixels.negative + pixels.zero + pixels.positive
    lines = [f"{pixels.nan} NaN, {pixels.infinite} Inf of {total} pixels"]
    if run.start is None:
        lines.append("arose outside the layers with a rule")
    else:
        lines += ["first arose in layer", run.start.layer, f"({run.start.direction} pass)"]
    return "\n".join(lines)
