r"""Heatmaps of relevance, drawn with ``captum.attr.visualization``: one, several, grids.

Red is for the output explained and blue against it, on a scale that is symmetric about 0 and shared
by all panels of a figure, so that panels can be compared. Each function returns a matplotlib figure
and leaves pyplot as it is: save it with ``figure.savefig("relevance.png")``, or let a notebook show
it as the last line of a cell.

Every function takes these options:

- ``title``: Above the figure.
- ``scale``: Where colours saturate. ``"percentile"`` (the default): at the 99.5th percentile of
  \|R\|; ``"max"``: at the largest \|R\|; ``"captum"``: the strongest 2% of the absolute sum
  saturate, as in Captum; ``"cubic"``: at ten times the cubic mean,
  :math:`10\,(\overline{|R|^3})^{1/3}`, as in the castle study; or a number.
- ``shared``: ``True``: one scale for the figure; ``"rows"``: one for each row of panels; ``False``:
  one for each panel, written below its title.
- ``colours``: ``"relevance"`` (the default, transparent at 0, so that the picture shows through),
  ``"coldnhot"`` (black at 0), or any map of matplotlib's, such as ``"seismic"``, ``"bwr"``,
  ``"coolwarm"``, ``"RdBu_r"`` or ``"PuOr_r"``. All named here tell the signs apart without telling
  red from green.
- ``alpha``: Opacity of the heatmap; 1, or 0.6 for an opaque map over a picture.
- ``sample``: Which sample of a batch.
- ``columns``: How many panels stand side by side.

Relevance is a tensor or array of shape ``(N, C, H, W)``, ``(C, H, W)`` or ``(H, W)`` and any real
dtype; channels are summed in float64, but for :func:`channels`. What is NaN or Inf is shown in
purple. The picture is what the model saw, before normalisation: a PIL image, an array ``(H, W)`` or
``(H, W, 3)``, or a tensor ``(3, H, W)`` or ``(N, 3, H, W)``, as 8-bit integers or as values in
[0, 1]; its height and width may be multiples of the relevance's, as for an inner layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import matplotlib
import numpy as np
import torch
from captum._utils.common import _run_forward
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from captum_lrp_stab import panels, pixels
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.lrp import LRP
from captum_lrp_stab.stabilizers import StabilizerLike
from captum_lrp_stab.translation import Rules

_MAPS = {
    "relevance": panels.COLOURS,
    "coldnhot": LinearSegmentedColormap.from_list(
        "coldnhot", ["#7fffff", "#0040ff", "#000000", "#ff3000", "#ffff7f"]
    ),
}
_OVER_A_PICTURE = 0.6
_PANEL = 2.9  # inches
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class _Options:
    """How a figure looks, see the module's docstring."""

    title: str = ""
    scale: Literal["percentile", "max", "captum", "cubic"] | float = "percentile"
    shared: Literal["rows"] | bool = True
    colours: str | Colormap = "relevance"
    alpha: float | None = None
    sample: int = 0
    columns: int | None = None

    @staticmethod
    def of(options: Mapping[str, Any]) -> "_Options":
        """Return options given by name, checked."""
        names = [field.name for field in fields(_Options)]
        for name in options:
            if name not in names:
                raise InputError(f"no option is called {name!r}; they are {', '.join(names)}")
        chosen = _Options(**options)
        pixels.check_scale(chosen.scale)
        if chosen.shared not in (True, False, "rows"):
            raise InputError(f"shared is {chosen.shared!r}; give True, 'rows' or False")
        if chosen.alpha is not None and not 0 <= chosen.alpha <= 1:
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
        return _OVER_A_PICTURE if has_picture and self.map is not panels.COLOURS else 1.0


@dataclass(frozen=True)
class _Panel:
    """One heatmap and what is written above it."""

    name: str
    values: NDArray[np.float64]
    caption: str


def heatmap(
    relevance: Any, picture: Any = None, *, score: Any = None, name: str = "", **options: Any
) -> Figure:
    """Return a figure of one heatmap, alone or over a picture.

    Args:
        relevance: See above, as for ``picture`` and the options.
        picture: What the model saw; None for the heatmap alone.
        score: The output that was explained, a number; written beside the sum of relevance.
        name: Of the panel.
        **options: ``title``, ``scale``, ``colours``, ``alpha``, ``sample``.

    Raises:
        InputError: Relevance or picture is no image, or they do not fit together, or there is no
            such option.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import visualize
        >>> figure = visualize.heatmap(torch.randn(1, 3, 8, 8), torch.rand(1, 3, 8, 8), score=1.5)
    """
    return heatmaps({name: relevance}, picture, scores=score, **options)


def heatmaps(
    relevances: Mapping[str, Any], picture: Any = None, *, scores: Any = None, **options: Any
) -> Figure:
    """Return a figure of several heatmaps side by side.

    Args:
        relevances: By name.
        picture: What the model saw, below all of them; None for the heatmaps alone.
        scores: The output that was explained: a number, or one for each name.
        **options: See above.

    Raises:
        InputError: See :func:`heatmap`; or there is no relevance, or a score has no relevance.
    """
    chosen = _Options.of(options)
    _check_not_empty(relevances)
    given = _by_name(scores, relevances)
    found = [_panel(name, R, given.get(name), chosen) for name, R in relevances.items()]
    columns = chosen.columns or math.ceil(len(found) / math.ceil(len(found) / _MOST_COLUMNS))
    rows = [found[at : at + columns] for at in range(0, len(found), columns)]
    return _draw(rows, pixels.picture_of(picture, chosen.sample), chosen)


def channels(
    relevance: Any,
    picture: Any = None,
    *,
    names: Sequence[str] | None = None,
    score: Any = None,
    **options: Any,
) -> Figure:
    """Return a figure of the sum over channels, and of each channel.

    Args:
        relevance: Shape ``(N, C, H, W)`` or ``(C, H, W)``.
        picture: What the model saw; None for the heatmaps alone.
        names: Of the channels; None for red, green and blue where there are three, else numbers.
        score: The output that was explained.
        **options: See above.

    Raises:
        InputError: See :func:`heatmap`; or there are more or fewer names than channels.
    """
    chosen = _Options.of(options)
    each = pixels.channels_of(relevance, chosen.sample)
    if names is None:
        names = (
            ("red", "green", "blue")
            if len(each) == 3
            else [f"channel {i}" for i in range(len(each))]
        )
    if len(names) != len(each):
        raise InputError(f"{len(names)} names for {len(each)} channels; give one for each")
    shown = {"all channels": each.sum(0), **dict(zip(names, each, strict=True))}
    if len(shown) != 1 + len(each):
        raise InputError(f"the names of the channels are not distinct: {', '.join(names)}")
    options = {**options, "sample": 0, "columns": chosen.columns or min(len(shown), _MOST_COLUMNS)}
    return heatmaps(
        shown,
        pixels.picture_of(picture, chosen.sample),
        scores={} if score is None else {"all channels": score},
        **options,
    )


def grid(
    relevances: Mapping[str, Mapping[str, Any]],
    picture: Any = None,
    *,
    scores: Any = None,
    **options: Any,
) -> Figure:
    """Return a figure of heatmaps in named rows and columns.

    Args:
        relevances: By row, then by column; what a row lacks is left empty.
        picture: What the model saw, below all of them; None for the heatmaps alone.
        scores: The output that was explained: a number, one for each row, or one for each row
            and column.
        **options: See above, but ``columns``.

    Raises:
        InputError: See :func:`heatmaps`.
    """
    chosen = _Options.of(options)
    _check_not_empty(relevances)
    if chosen.columns is not None:
        raise InputError("a grid has the columns of its relevances; leave columns out")
    names = list(dict.fromkeys(name for row in relevances.values() for name in row))
    _check_not_empty(names)
    given = _by_row(scores, relevances)
    rows = [
        [
            _panel(name, row[name], given[label].get(name), chosen) if name in row else None
            for name in names
        ]
        for label, row in relevances.items()
    ]
    shown = pixels.picture_of(picture, chosen.sample)
    return _draw(rows, shown, chosen, labels=list(relevances))


def rules_by_stabilizers(
    model: nn.Module,
    inputs: torch.Tensor,
    target: Any,
    rules: Mapping[str, Rules],
    stabilizers: Mapping[str, StabilizerLike],
    picture: Any = None,
    *,
    additional_forward_args: Any = None,
    **options: Any,
) -> Figure:
    """Run LRP under each set of rules and each stabilizer, and return a grid of the heatmaps.

    Args:
        model: In eval mode; see :class:`captum_lrp_stab.LRP`.
        inputs: ``(N, C, H, W)``, a floating dtype.
        target: The output to explain, in any of Captum's forms.
        rules: Name_maps or presets by name: the rows.
        stabilizers: Stabilizers of every rule, by name: the columns.
        picture: What the model saw; None for the heatmaps alone.
        additional_forward_args: Further arguments of the model.
        **options: See above, but ``columns``.

    Raises:
        InputError: See :func:`grid`, and :meth:`captum_lrp_stab.LRP.attribute_many`.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import presets, stabilizers, visualize
        >>> conv, linear = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(144, 2)
        >>> model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), linear)
        >>> figure = visualize.rules_by_stabilizers(
        ...     model,
        ...     torch.randn(1, 3, 8, 8),
        ...     1,
        ...     {"LRP-0": presets.zero(), "z+": presets.epsilon_plus()},
        ...     {"signed 1e-6": 1e-6, "clip 0.1": stabilizers.Clip(0.1)},
        ... )
    """
    _Options.of(options)  # before minutes of work
    _check_not_empty(rules)
    _check_not_empty(stabilizers)
    found: dict[str, dict[str, Any]] = {}
    for name, some in rules.items():
        (relevances,) = LRP(model, some).attribute_many(
            inputs, [target], additional_forward_args, stabilizers=list(stabilizers.values())
        )
        found[name] = dict(zip(stabilizers, relevances, strict=True))
    with torch.no_grad():
        scores = _run_forward(model, inputs, target, additional_forward_args)
    score = scores.reshape(-1)[options.get("sample", 0)]
    return grid(found, picture, scores=score, **options)


def _check_not_empty(names: Any) -> None:
    if not names:
        raise InputError("there is no relevance to show; give one or more, by name")


def _by_name(scores: Any, names: Mapping[str, Any]) -> dict[str, float]:
    """Return a score for each name that has one."""
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        return dict.fromkeys(names, pixels.number(scores, "score"))
    _check_names(scores, names)
    return {name: pixels.number(score, f"score of {name!r}") for name, score in scores.items()}


def _by_row(scores: Any, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for each row, a score for each column that has one."""
    if not isinstance(scores, Mapping):
        scores = dict.fromkeys(rows, scores)
    _check_names(scores, rows)
    return {label: _by_name(scores.get(label), row) for label, row in rows.items()}


def _check_names(scores: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    for name in scores:
        if name not in names:
            raise InputError(f"a score is given for {name!r}; there is {', '.join(names)}")


def _panel(name: str, relevance: Any, score: float | None, options: _Options) -> _Panel:
    values = pixels.channels_of(relevance, options.sample).sum(0)
    total = float(values.sum())
    said = [] if score is None else [f"score {score:.4g}"]
    said.append(f"sum {total:.4g}" if math.isfinite(total) else "sum not finite")
    return _Panel(name, values, ", ".join(said))


def _draw(
    rows: Sequence[Sequence[_Panel | None]],
    picture: NDArray[np.uint8] | None,
    options: _Options,
    labels: Sequence[str] | None = None,
) -> Figure:
    columns = max(map(len, rows))
    colours, alpha = options.map, options.opacity(picture is not None)
    everything = [panel for row in rows for panel in row if panel is not None]
    first = everything[0].values
    height = min(max(first.shape[0] / first.shape[1], 0.25), 4) * _PANEL + (
        0.6 if options.shared else 0.8
    )
    width = columns * (_PANEL + 0.2) + (0.9 if options.shared else 0.1)
    top = 0.36 if options.title else 0.0
    whole = len(rows) * height + top
    figure = Figure(figsize=(max(width, 4.2), whole), dpi=110, layout="compressed")
    if options.title:
        # placed by hand: the layout would set it right on the names of the panels
        figure.suptitle(options.title, fontsize=12, y=1 - 0.08 / whole, va="top", parse_math=False)
        figure.set_layout_engine("compressed", rect=(0, 0, 1, 1 - top / whole))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for index, row in enumerate(rows):
        for ax, panel in zip(axes[index], [*row, *[None] * (columns - len(row))], strict=True):
            ax.axis("off")
            if panel is None:
                continue
            pixels.check_fit(picture, panel.values, panel.name)
            among = {True: everything, "rows": [p for p in row if p is not None], False: [panel]}
            limit = pixels.limit(options.scale, [p.values for p in among[options.shared]])
            shown = panels.overlay(ax, picture, panel.values, limit, colours=colours, alpha=alpha)
            own = () if options.shared else (f"colours to ±{limit:.3g}",)
            panels.title(ax, panel.name, panel.caption, *own)
        if labels is not None:
            axes[index, 0].annotate(
                labels[index],
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
        if options.shared == "rows" or (options.shared and index == len(rows) - 1):
            beside = axes[index] if options.shared == "rows" else axes
            bar = figure.colorbar(shown, ax=beside, fraction=0.05, pad=0.02, shrink=0.8)
            bar.set_label("relevance", fontsize=9)
            bar.ax.tick_params(labelsize=8)
    return figure
