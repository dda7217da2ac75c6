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
from typing import Any

import torch
from captum._utils.common import _run_forward
from matplotlib.figure import Figure
from torch import nn

from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.images import arrays
from captum_lrp_stab.images.grid import MOST_COLUMNS, Options, Panel, draw, in_rows
from captum_lrp_stab.lrp import LRP
from captum_lrp_stab.propagation.targets import score_of
from captum_lrp_stab.stabilizers import StabilizerLike


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
    chosen = Options.of(options)
    _check_not_empty(relevances)
    given = _by_name(scores, relevances)
    found = [_panel(name, R, given.get(name), chosen) for name, R in relevances.items()]
    rows = in_rows(found, chosen.columns)
    return draw(rows, arrays.picture_of(picture, chosen.sample), chosen)


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
    chosen = Options.of(options)
    each = arrays.channels_of(relevance, chosen.sample)
    if names is None:
        names = (
            ("red", "green", "blue")
            if len(each) == 3
            else [f"channel {i}" for i in range(len(each))]
        )
    names = [str(name) for name in names]
    if len(names) != len(each):
        raise InputError(f"{len(names)} names for {len(each)} channels; give one for each")
    shown = {"all channels": arrays.total_of(each), **dict(zip(names, each, strict=True))}
    if len(shown) != 1 + len(each):
        raise InputError(f"the names of the channels are not distinct: {', '.join(names)}")
    options = {**options, "sample": 0, "columns": chosen.columns or min(len(shown), MOST_COLUMNS)}
    return heatmaps(
        shown,
        arrays.picture_of(picture, chosen.sample),
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
    chosen = Options.of(options)
    _check_not_empty(relevances)
    _check_no_columns(chosen)
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
    shown = arrays.picture_of(picture, chosen.sample)
    return draw(rows, shown, chosen, labels=list(relevances))


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
    chosen = Options.of(options)  # all of this before minutes of work
    _check_no_columns(chosen)
    _check_not_empty(rules)
    _check_not_empty(stabilizers)
    first = arrays.channels_of(inputs, chosen.sample)
    arrays.check_fit(arrays.picture_of(picture, chosen.sample), first[0], "")
    found: dict[str, dict[str, Any]] = {}
    for name, some in rules.items():
        explainer = LRP(model, some, fallbacks="ignore" if found else "warn")  # once is enough
        (relevances,) = explainer.attribute_many(
            inputs, [target], additional_forward_args, stabilizers=list(stabilizers.values())
        )
        found[name] = dict(zip(stabilizers, relevances, strict=True))
    with torch.no_grad():
        output = _run_forward(model, inputs, None, additional_forward_args)
    score = score_of(output, target)[chosen.sample]
    return grid(found, picture, scores=score, **options)


def _check_not_empty(names: Any) -> None:
    if not names:
        raise InputError("there is no relevance to show; give one or more, by name")


def _check_no_columns(options: Options) -> None:
    if options.columns is not None:
        raise InputError("a grid has the columns of its relevances; leave columns out")


def _by_name(scores: Any, names: Mapping[str, Any]) -> dict[str, float]:
    """Return a score for each name that has one."""
    if scores is None:
        return {}
    if not isinstance(scores, Mapping):
        return dict.fromkeys(names, arrays.number(scores, "score"))
    _check_names(scores, names)
    return {name: arrays.number(score, f"score of {name!r}") for name, score in scores.items()}


def _by_row(scores: Any, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, for each row, a score for each column that has one."""
    if not isinstance(scores, Mapping):
        scores = dict.fromkeys(rows, scores)
    _check_names(scores, rows)
    return {label: _by_name(scores.get(label), row) for label, row in rows.items()}


def _check_names(scores: Mapping[str, Any], names: Mapping[str, Any]) -> None:
    for name in scores:
        if name not in names:
            there = ", ".join(map(str, names))
            raise InputError(f"a score is given for {name!r}; there is {there}")


def _panel(name: str, relevance: Any, score: float | None, options: Options) -> Panel:
    values = arrays.total_of(arrays.channels_of(relevance, options.sample))
    total = float(arrays.total_of(values.ravel()))
    said = [] if score is None else [f"score {score:.4g}"]
    said.append(f"sum {total:.4g}" if math.isfinite(total) else "sum not finite")
    return Panel(str(name), values, (", ".join(said),))
