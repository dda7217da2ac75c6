"""The heatmaps of one picture under each stabilizer, beside the picture."""

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_lrp_stab.images.grid import Options, Panel, draw, in_rows
from captum_lrp_stab.images.style import scale_by_share
from captum_lrp_stab.study.records import Run
from captum_lrp_stab.study.result import Study

_COLUMNS = 3
_SATURATED = 5  # per cent of the summed absolute relevance

LEGEND = (
    "Red: for the class, blue: against it; rings: the largest and smallest value. Each heatmap has "
    f"a scale of its own, on which the strongest {_SATURATED}% saturate; what is not finite is "
    "purple."
)


def heatmaps(study: Study) -> Figure:
    """Return a figure with the picture and a heatmap for each stabilizer."""
    (record,), settings = study.records, study.settings
    title = (
        f"{settings['model']} ({settings['weights']}), {settings['rules']}, {settings['form']} "
        f"form, {settings['dtype']}"
    )
    facts = (f"score {record.score:.4g}", f"probability {record.probability:.3g}")
    panels = [
        Panel(str(record.label), None, (f"class {record.target}", *facts)),
        *map(_panel, record.runs, study.heatmaps),
    ]
    columns = min(_COLUMNS, len(panels))
    options = Options(title=title, shared=False)
    return draw(in_rows(panels, columns), np.asarray(study.picture), options)


def _panel(run: Run, heatmap: Tensor) -> Panel:
    values = heatmap.numpy()
    limit = scale_by_share(values, _SATURATED / 100)
    note = _what_is_not_finite(run)
    return Panel(run.name, values, _numbers(run), limit, note, partial(_mark, run))


def _mark(run: Run, ax: Axes) -> None:
    """Draw rings around the extremes; where there are none, say so."""
    if run.pixels.minimum == run.pixels.maximum == 0:
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
