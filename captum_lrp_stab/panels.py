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
NONFINITE = (0.55, 0.1, 0.65, 0.75)


def fade(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture as pale grey."""
    grey = picture.mean(2, keepdims=True)
    return np.repeat(255 - (255 - grey) * 0.39, 3, 2).astype(np.uint8)


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
