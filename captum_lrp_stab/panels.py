"""What the pictures of this package share: colours, the faded picture, titles."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

# small relevance is transparent, so that the picture shows through
COLOURS = LinearSegmentedColormap.from_list(
    "relevance", [(0.05, 0.15, 0.75, 1.0), (1.0, 1.0, 1.0, 0.0), (0.85, 0.05, 0.05, 1.0)]
)
# Okabe and Ito's palette, which does not depend on telling red from green, without its yellow
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NONFINITE = (0.55, 0.1, 0.65, 0.75)
_SATURATED = 99.5  # percentile of the absolute values at which colours saturate


def fade(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture as pale grey."""
    grey = picture.mean(2, keepdims=True)
    return np.repeat(255 - (255 - grey) * 0.39, 3, 2).astype(np.uint8)


def scale_of(values: NDArray[np.float64]) -> float:
    """Return where colours saturate, so that few outliers do not take all of them."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(np.percentile(finite, _SATURATED)) if finite.size else 0.0
    return largest or float(finite.max(initial=0.0)) or 1.0


def overlay(
    ax: Axes, picture: NDArray[np.uint8], values: NDArray[np.float64], limit: float
) -> None:
    """Show a heatmap over the faded picture, and what is not finite in a colour of its own."""
    ax.imshow(fade(picture))
    finite = np.isfinite(values)
    ax.imshow(np.where(finite, values, 0.0), cmap=COLOURS, vmin=-limit, vmax=limit)
    if not finite.all():
        ax.imshow(np.where(finite[..., None], 0.0, np.array(NONFINITE)))
        ax.text(
            *(0.5, 0.5),
            f"{(~finite).sum()} of {finite.size} pixels\nNaN or Inf",
            transform=ax.transAxes,
            ha="center",
            va="center",
        )
    ax.axis("off")


def title(ax: Axes, name: str, *lines: str) -> None:
    """Write a name in bold above a panel, and lines below the name."""
    for text, points, size, weight, colour in (
        ("\n".join(lines), 4, 8.5, "normal", "0.25"),
        (textwrap.shorten(name, 32), 6 + 11 * len(lines), 11, "bold", "black"),
    ):
        ax.annotate(
            text,
            (0, 1),
            (0, points),
            parse_math=False,
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=size,
            weight=weight,
            color=colour,
        )
