"""Reading picture files: whatever their mode, as 8-bit RGB.

Grayscale, palette, CMYK and 16-bit files are converted, the last by their high byte; transparent
pixels are laid over white; the EXIF orientation is applied; of several frames the first is taken.

Example:
    >>> from PIL import Image
    >>> rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from captum_lrp_stab.errors import MissingExtraError, PictureError

DEFAULT_PICTURE = "skimage.data.coffee"
"""A photograph that lies in the scikit-image wheel, so that nothing is downloaded."""

_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def read(path: str | Path) -> Image.Image:
    """Return the picture in a file as 8-bit RGB.

    Args:
        path: Any file format Pillow reads.

    Raises:
        PictureError: The file does not exist, is no picture, is truncated, or has values of no
            known range.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise PictureError(f"{path} does not exist; give the path of an image file") from error
    except IsADirectoryError as error:
        raise PictureError(f"{path} is a folder; give the path of an image file") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{path} is not an image file that Pillow can read; give a PNG, JPEG, TIFF, WebP, ..."
        ) from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large: {error}; make it smaller first") from error
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    except _UNREADABLE as error:
        raise PictureError(
            f"{path} cannot be read: {error}; the file may be incomplete: copy it again, or give "
            "another one"
        ) from error


def default_picture() -> Image.Image:
    """Return the photograph of ``DEFAULT_PICTURE``.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage.data import coffee
    except ImportError as error:
        raise MissingExtraError(
            "the default picture lies in scikit-image, which is not installed; "
            "pip install 'captum-lrp-stab[demo]', or give an image file"
        ) from error
    photograph: Callable[[], NDArray[np.uint8]] = coffee  # skimage's own has no annotation
    return Image.fromarray(photograph())


def rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` as 8-bit RGB, transparent pixels over white.

    Raises:
        PictureError: The values have no known range.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return gray values of more than 8 bits, or floating-point ones, as 8 bits."""
    wide = values.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise PictureError(
            f"its values run from {low:g} to {high:g}; 16-bit values from 0 to 65535, or "
            "floating-point values from 0 to 1, can be read: rescale them first"
        )
    if np.issubdtype(values.dtype, np.floating):
        if high > 1:
            raise PictureError(
                f"its floating-point values run up to {high:g}; rescale them to 0 ... 1 first"
            )
        return np.rint(wide * 255).astype(np.uint8)
    return (wide // 256).astype(np.uint8)
