"""How a figure of heatmaps looks: its options, its panels, and where they stand."""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from captum_lrp_stab.errors import InputError
from captum_lrp_stab.images import arrays, style

_MAPS = {
    "relevance": style.COLOURS,
    "coldnhot": LinearSegmentedColormap.from_list(
        "coldnhot", ["#7fffff", "#0040ff", "#000000", "#ff3000", "#ffff7f"]
    ),
}
_OVER_A_PICTURE = 0.6
_PANEL = 2.9  # inches
MOST_COLUMNS = 4


@dataclass(frozen=True)
class Options:
    """How a figure looks, see ``visualize``."""

    title: str = ""
    scale: Literal["percentile", "max", "captum", "cubic"] | float = "percentile"
    shared: Literal["rows"] | bool = True
    colours: str | Colormap = "relevance"
    alpha: float | None = None
    sample: int = 0
    columns: int | None = None

    @staticmethod
    def of(options: Mapping[str, Any]) -> "Options":
        """Return options given by name, checked."""
        names = [field.name for field in fields(Options)]
        for name in options:
            if name not in names:
                raise InputError(f"no option is called {name!r}; they are {', '.join(names)}")
        chosen = Options(**options)
        arrays.check_scale(chosen.scale)
        for name in ("sample", "columns"):
            value = getattr(chosen, name)
            if not isinstance(value, int) and not (name == "columns" and value is None):
                raise InputError(f"{name} is {value!r}; give a whole number")
        if not (isinstance(chosen.shared, bool) or chosen.shared == "rows"):
            raise InputError(f"shared is {chosen.shared!r}; give True, 'rows' or False")
        if chosen.alpha is not None and not 0 <= arrays.number(chosen.alpha, "alpha") <= 1:
            raise InputError(f"alpha is {chosen.alpha!r}; give an opacity from 0 to 1")
        if chosen.columns is not None and chosen.columns < 1:
            raise InputError(f"columns is {chosen.columns!r}; give 1 or more")
        return chosen

    @property
    def map(self) -> Colormap:
        """The colour map."""
        if isinstance(self.colours, Colormap):
            return self.colours
        try:
            return _MAPS.get(self.colours) or matplotlib.colormaps[self.colours]
        except (KeyError, TypeError):
            raise InputError(
                f"no colour map is called {self.colours!r}; give {', '.join(_MAPS)}, or one of "
                "matplotlib's, such as 'seismic' or 'RdBu_r'"
            ) from None

    def opacity(self, has_picture: bool) -> float:
        """The opacity of the heatmap."""
        if self.alpha is not None:
            return self.alpha
        return _OVER_A_PICTURE if has_picture and self.map is not style.COLOURS else 1.0


@dataclass(frozen=True)
class Panel:
    """One heatmap and what is written above it.

    Args:
        name: Its title.
        values: ``(rows, columns)``; None for the picture as it is.
        lines: Below the title.
        limit: Colours saturate at plus and minus this; None for what the options' scale says.
        note: Text on a heatmap that is not finite; None for one that counts.
        mark: Draws over the heatmap.
    """

    name: str
    values: NDArray[np.float64] | None
    lines: tuple[str, ...] = ()
    limit: float | None = None
    note: str | None = None
    mark: Callable[[Axes], object] = lambda ax: None


class _Figure(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def in_rows(panels: Sequence[Panel], columns: int | None) -> list[Sequence[Panel]]:
    """Return panels in rows of equal length, but for the last.

    Args:
        panels: From left to right.
        columns: How many stand side by side; None for up to ``MOST_COLUMNS``.
    """
    columns = columns or math.ceil(len(panels) / math.ceil(len(panels) / MOST_COLUMNS))
    return [panels[at : at + columns] for at in range(0, len(panels), columns)]


def draw(
    rows: Sequence[Sequence[Panel | None]],
    picture: NDArray[np.uint8] | None,
    options: Options,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Return a figure of rows of panels.

    Args:
        rows: Panels from left to right; None for an empty place.
        picture: Below all of them; None for the heatmaps alone.
        options: How it looks.
        labels: Names of the rows.

    Raises:
        InputError: The picture has other proportions than a panel.
    """
    columns = max(map(len, rows))
    everything = [panel for row in rows for panel in row if panel is not None]
    shape = next(p.values.shape for p in everything if p.values is not None)
    own = not options.shared  # a scale, which is written below the lines
    lines = max(len(p.lines) + (own and p.values is not None) for p in everything)
    height = min(max(shape[0] / shape[1], 0.25), 4) * _PANEL + 0.4 + 0.2 * lines
    width = max(columns * (_PANEL + 0.2) + (0.9 if options.shared else 0.1), 4.2)
    said = "\n".join(textwrap.wrap(options.title, int(11 * width)))
    top = 0.16 + 0.2 * len(said.splitlines()) if said else 0.0
    whole = len(rows) * height + top
    figure = _Figure(figsize=(width, whole), dpi=110, layout="compressed")
    if said:
        # placed by hand: the layout would set it right on the names of the panels
        figure.suptitle(said, fontsize=12, y=1 - 0.08 / whole, va="top", parse_math=False)
        figure.set_layout_engine("compressed", rect=(0, 0, 1, 1 - top / whole))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    limit = _limit(options, everything) if options.shared is True else None
    last = None
    for index, row in enumerate(rows):
        shown = None
        if options.shared == "rows":
            limit = _limit(options, row)
        for ax, panel in zip(axes[index], [*row, *[None] * (columns - len(row))], strict=True):
            ax.axis("off")
            if panel is not None:
                shown = show(ax, panel, picture, options, limit)
        if labels is not None:
            axes[index, 0].annotate(
                str(labels[index]),
                (0, 0.5),
                (-8, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                va="center",
                rotation=90,
                fontsize=11,
                weight="bold",
                parse_math=False,
            )
        last = shown or last
        if options.shared == "rows" and shown is not None:
            _bar(figure, shown, axes[index])
    if options.shared is True and last is not None:
        _bar(figure, last, axes)
    return figure


def show(
    ax: Axes,
    panel: Panel,
    picture: NDArray[np.uint8] | None,
    options: Options,
    limit: float | None = None,
) -> AxesImage:
    """Draw a panel, and return its heatmap.

    Args:
        ax: Where to.
        panel: What to draw.
        picture: Below the heatmap; None for the heatmap alone.
        options: How it looks.
        limit: Where the colours of several panels saturate; None for a scale of its own, which is
            written below its title.

    Raises:
        InputError: The picture has other proportions than the panel.
    """
    lines = panel.lines
    if panel.values is None:
        assert picture is not None
        shown = ax.imshow(picture)
        ax.axis("off")
    else:
        arrays.check_fit(picture, panel.values, panel.name)
        if limit is None:
            limit = _limit(options, [panel]) if panel.limit is None else panel.limit
            is_seen = np.isfinite(panel.values).any()
            lines = (*lines, f"colours to ±{limit:.3g}" if is_seen else "")
        colours, alpha = options.map, options.opacity(picture is not None)
        shown = style.overlay(
            ax, picture, panel.values, limit, colours=colours, alpha=alpha, note=panel.note
        )
    panel.mark(ax)
    style.title(ax, panel.name, *lines)
    return shown


def _limit(options: Options, among: Sequence[Panel | None]) -> float:
    """Return where the colours of panels saturate that share a scale."""
    values = [p.values for p in among if p is not None and p.values is not None]
    return arrays.limit(options.scale, values)


def _bar(figure: Figure, shown: AxesImage, beside: Any) -> None:
    """Draw the colour bar of a heatmap beside axes that share its scale."""
    bar = figure.colorbar(shown, ax=beside, fraction=0.05, pad=0.02, shrink=0.8)
    bar.set_label("relevance", fontsize=9)
    bar.ax.tick_params(labelsize=8)
