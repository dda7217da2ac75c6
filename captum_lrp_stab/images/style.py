"""What the pictures of this package share: colours, scales, a heatmap over a picture, titles."""

from collections.abc import Sequence

import numpy as np
from captum.attr import visualization
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.image import AxesImage
from numpy.typing import NDArray

# small relevance is transparent, so that the picture shows through
COLOURS = LinearSegmentedColormap.from_list(
    "relevance", [(0.05, 0.15, 0.75, 1.0), (1.0, 1.0, 1.0, 0.0), (0.85, 0.05, 0.05, 1.0)]
)
# Okabe and Ito's palette, which does not depend on telling red from green, without its yellow
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NONFINITE = (0.55, 0.1, 0.65, 0.75)
_SATURATED = 99.5  # percentile of the absolute values at which colours saturate
_LONGEST = 34  # letters of a name that fit above a panel
_FADED = (-400, 255)  # of 0 ... 255: leaves the upper part of the grey values


def scale_of(values: NDArray[np.float64]) -> float:
    """Return where colours saturate, so that few outliers do not take all of them."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(np.percentile(finite, _SATURATED)) if finite.size else 0.0
    return largest or float(finite.max(initial=0.0)) or 1.0


def scale_by_share(values: NDArray[np.float64], share: float) -> float:
    """Return the value from which on the strongest make up a share of the absolute sum.

    This is how Captum scales, with a share of 0.02.
    """
    sizes = np.sort(np.abs(values[np.isfinite(values)]))
    largest = float(sizes[-1]) if sizes.size else 0.0
    if not largest:
        return 1.0
    sums = np.cumsum(sizes / largest)  # the sum itself may overflow
    return float(sizes[np.searchsorted(sums, (1 - share) * sums[-1])])


def overlay(
    ax: Axes,
    picture: NDArray[np.uint8] | None,
    values: NDArray[np.float64],
    limit: float,
    *,
    colours: str | Colormap = COLOURS,
    alpha: float = 1.0,
    note: str | None = None,
) -> AxesImage:
    """Show a heatmap, and what is not finite in a colour of its own.

    Args:
        ax: Where to.
        picture: ``(height, width, 3)``, shown faded below the heatmap; None for white.
        values: ``(rows, columns)``, stretched to the size of the picture.
        limit: Colours saturate at plus and minus this.
        colours: A colour map.
        alpha: Opacity of the heatmap.
        note: Text on a heatmap that is not finite; None for one that counts.

    Returns:
        The heatmap, in units of the values.
    """
    finite = np.isfinite(values)
    # Captum scales each heatmap by its own values; the values and the scale are set after it
    visualization.visualize_image_attr(
        np.ones((*values.shape, 1)),
        picture,
        method="heat_map" if picture is None else "blended_heat_map",
        sign="all",
        plt_fig_axis=(ax.figure, ax),
        cmap=colours,
        alpha_overlay=alpha,
        use_pyplot=False,
    )
    heatmap = ax.images[-1]
    if picture is None:
        heatmap.set_alpha(alpha)
    else:
        ax.images[0].set_clim(*_FADED)
        heatmap.set_extent(ax.images[0].get_extent())
    heatmap.set_data(np.where(finite, values, 0.0))
    heatmap.set_clim(-limit, limit)
    if not finite.all():
        ax.imshow(
            np.where(finite[..., None], 0.0, np.array(NONFINITE)), extent=heatmap.get_extent()
        )
        ax.text(
            *(0.5, 0.5),
            note or f"{(~finite).sum()} of {finite.size} pixels\nNaN or Inf",
            transform=ax.transAxes,
            ha="center",
            va="center",
            fontsize=9,
            color="white",
            bbox={"facecolor": (0.2, 0.0, 0.25), "alpha": 0.8, "edgecolor": "none", "pad": 6},
        )
    ax.axis("off")
    return heatmap


def name_layers(ax: Axes, names: Sequence[str], most: int) -> None:
    """Write the names of layers below an axis, slanted, no more of them than fit."""
    step = max(1, -(-len(names) // most))
    ax.set_xlim(-0.8, len(names) - 0.2)
    ax.set_xticks(
        np.arange(len(names))[::step],
        [shortened(name, 26) for name in names[::step]],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
        fontsize=6.5 if most > 40 else 8,
        parse_math=False,
    )


def shortened(name: str, longest: int) -> str:
    """Return the end of a name of a layer, which tells more than its beginning."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def title(ax: Axes, name: str, *lines: str) -> None:
    """Write a name in bold above a panel, and lines below the name."""
    ax.annotate(
        "\n".join(lines),
        (0, 1),
        (0, 4),
        parse_math=False,
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        alpha=0.75,  # in the colour of a style's text
    )
    # a title, not an annotation, so that a layout makes room for it
    ax.set_title(
        name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[1 - _LONGEST // 2 :]}",
        loc="left",
        pad=6 + 11 * len(lines),
        fontsize=11,
        weight="bold",
        parse_math=False,
    )
