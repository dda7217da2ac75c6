"""Two heatmaps on one scale, their difference, and how the two sides part layer by layer."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from captum_lrp_stab.comparison.pair import LayerAgreement
from captum_lrp_stab.comparison.result import Comparison
from captum_lrp_stab.images.grid import Options, Panel, show
from captum_lrp_stab.images.style import name_layers, scale_of
from captum_lrp_stab.reporting.tables import number

_APART = 4.0  # a larger ratio of the two sides' scales gives each its own


def draw(compared: Comparison, picture: Image.Image, sentence: str) -> Figure:
    """Return the figure.

    Args:
        compared: Of one picture.
        picture: As the model saw it.
        sentence: What was compared, in words.
    """
    figure = Figure(figsize=(12, 8.6), dpi=110)
    ours, reference = (
        side[0][0].double().sum(0).numpy()
        for side in (compared.relevances, compared.reference_relevances)
    )
    figure.text(
        *(0.02, 0.985),
        "\n".join(textwrap.wrap(sentence, 130)),
        va="top",
        fontsize=11,
        parse_math=False,
    )
    verdict = textwrap.shorten(f"{compared.verdict}: {compared.explanation}", 390)
    figure.text(
        *(0.02, 0.935),
        "\n".join(textwrap.wrap(verdict, 150)),
        va="top",
        fontsize=10,
        color="0.25",
        parse_math=False,
    )
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = ours - reference
    scales = _scales(ours, reference)
    own = "the same scale" if scales[0] == scales[1] else "a scale of its own"
    overall = compared.overall
    panels = (
        Panel("captum-lrp-stab", ours, (_sum(overall.total),), scales[0]),
        Panel(
            compared.reference, reference, (f"{_sum(overall.reference_total)}, {own}",), scales[1]
        ),
        Panel("difference", difference, (f"relative L2 {number(overall.relative_l2)}",)),
    )
    for index, panel in enumerate(panels):
        ax = figure.add_axes((0.02 + 0.325 * index, 0.45, 0.31, 0.36))
        show(ax, panel, np.asarray(picture), Options())
    _show_layers(figure.add_axes((0.07, 0.18, 0.91, 0.21)), compared)
    return figure


def _scales(ours: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, float]:
    """Return where colours saturate on either side: the same, unless one would then be empty."""
    scales = scale_of(ours), scale_of(reference)
    return scales if max(scales) > _APART * min(scales) else (max(scales), max(scales))


def _sum(total: float | None) -> str:
    return f"sum {number(total, 4)}"


def _show_layers(ax: Axes, compared: Comparison) -> None:
    """Plot the relative difference at the output of each layer, from the score to the input."""
    seen = [layer for layer in reversed(compared.layers) if layer.output is not None]
    names = [*(layer.name for layer in seen), "input"]
    values = [*map(_relative, seen), compared.overall.relative_l2]
    positive = [v for v in values if v is not None and np.isfinite(v) and v > 0]
    floor = min([*positive, compared.tolerance or 1e-16]) / 3
    ceiling = max([*positive, compared.tolerance]) * 3
    heights = [ceiling if v is None or not np.isfinite(v) else max(v, floor) for v in values]
    places = np.arange(len(names))
    ax.plot(places, heights, color="0.6", linewidth=1, zorder=1)
    within = np.array([v is not None and v <= compared.tolerance for v in values])
    lost = np.array([v is None for v in values])
    for word, colour, chosen in (
        ("within the tolerance", "#1b7837", within),
        ("beyond the tolerance", "#b2182b", ~within & ~lost),
        ("not finite", "#762a83", lost),
    ):
        if chosen.any():
            ax.scatter(
                places[chosen], np.array(heights)[chosen], s=16, color=colour, zorder=2, label=word
            )
    ax.axhline(compared.tolerance, color="0.3", linestyle="--", linewidth=0.8, label="tolerance")
    if compared.first is not None and compared.first.name in names:
        at = names.index(compared.first.name)
        where = f"they part here, in the {compared.first.direction} pass"
        ax.axvline(at, color="#b2182b", linewidth=6, alpha=0.15, label=where)
    ax.set_yscale("log")
    ax.set_ylim(floor / 2, ceiling * 2)
    name_layers(ax, names, most=40)
    ax.set_ylabel("relative L2")
    ax.set_title(
        "difference at the output of each layer, from the score down to the input",
        fontsize=10,
        loc="left",
    )
    ax.legend(fontsize=8, loc="best", framealpha=0.9)
    ax.spines[["top", "right"]].set_visible(False)


def _relative(layer: LayerAgreement) -> float | None:
    return None if layer.output is None else layer.output.relative_l2
