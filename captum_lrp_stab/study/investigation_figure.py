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
from captum_lrp_stab.study.investigation import Finding, Investigation

_MOST_COLUMNS = 3
_PANEL = 3.2  # inches
_TITLE = 0.66
_SATURATED = 5  # per cent of the summed absolute relevance


def draw(investigation: Investigation) -> Figure:
    """Return a figure with the picture and one heatmap per finding."""
    panels = 1 + len(investigation.findings)
    rows = math.ceil(panels / _MOST_COLUMNS)
    columns = math.ceil(panels / rows)
    width = columns * (_PANEL + 0.2)
    header = textwrap.wrap(
        f"{investigation.model} ({investigation.weights}), {investigation.rules}, "
        f"{investigation.form} form, {investigation.dtype}",
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
    picture = np.asarray(investigation.picture)
    _show_picture(figure, axes[0], picture)
    score = f"score {investigation.score:.4g}, probability {investigation.probability:.3g}"
    title(axes[0], investigation.label, f"class {investigation.target}", score)
    for ax, finding, heatmap in zip(
        axes[1:], investigation.findings, investigation.heatmaps, strict=False
    ):
        _show_finding(figure, ax, picture, finding, heatmap)
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


def _show_finding(
    figure: Figure, ax: Axes, picture: NDArray[np.uint8], finding: Finding, heatmap: Tensor
) -> None:
    values = heatmap.numpy()
    limit = scale_by_share(values, _SATURATED / 100)
    overlay(ax, picture, values, limit, note=_what_is_not_finite(finding))
    if np.isfinite(values).all() and not values.any():
        text = "0 everywhere" if finding.score is not None else "0 everywhere, score not finite"
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center")
    for extreme, colour in (finding.largest, "darkred"), (finding.smallest, "darkblue"):
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
    title(ax, finding.name, *_numbers(finding))


def _numbers(finding: Finding) -> tuple[str, ...]:
    """Return the lines under a panel's name."""
    score = "not finite" if finding.score is None else f"{finding.score:.4g}"
    pixels = finding.pixels if finding.finite_pixels is None else finding.finite_pixels
    if pixels.minimum is None or pixels.maximum is None:
        return ("no finite pixel", f"score {score}")
    total = finding.values.total
    of = "" if finding.finite_pixels is None else "finite pixels "
    sums = "not finite" if total is None else f"{total:.3g}"
    return (
        f"{of}{pixels.minimum:.2g} ... {pixels.maximum:.2g}",
        f"sum {sums}, score {score}",
    )


def _what_is_not_finite(finding: Finding) -> str:
    pixels = finding.pixels
    total = pixels.nan + pixels.infinite + pixels.negative + pixels.zero + pixels.positive
    lines = [f"{pixels.nan} NaN, {pixels.infinite} Inf of {total} pixels"]
    if finding.origin is None:
        lines.append("arose outside the layers with a rule")
    else:
        lines += ["first arose in layer", finding.origin.name, f"({finding.origin.direction} pass)"]
    return "\n".join(lines)
