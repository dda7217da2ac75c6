"""What can be drawn: relevance and pictures as arrays, and the scale of heatmaps."""

import contextlib
import math
import numbers
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from captum_lrp_stab.errors import InputError
from captum_lrp_stab.images import reading
from captum_lrp_stab.images.style import scale_by_share, scale_of

_CAPTUM_SHARE = 0.02
_LARGEST = float(np.finfo(np.float64).max) / 4  # a colour bar computes with twice the limit
SCALES = ("percentile", "max", "captum", "cubic")


def channels_of(relevance: Any, sample: int) -> NDArray[np.float64]:
    """Return one sample's relevance as ``(channels, rows, columns)``.

    Args:
        relevance: A tensor or array ``(N, C, H, W)``, ``(C, H, W)`` or ``(H, W)``.
        sample: Which of N.

    Raises:
        InputError: It is no image, has no such sample, or is not real.
    """
    values = _array(relevance, "relevance")
    if values.ndim == 2:
        values = values[None]
    if values.ndim == 4:
        values = _sample_of(values, sample, "relevance")
    if values.ndim != 3 or not values.size:
        raise InputError(
            f"relevance of shape {tuple(np.shape(relevance))} is no image; give (N, C, H, W), "
            "(C, H, W) or (H, W), such as attributions of an input of pictures"
        )
    return values.astype(np.float64)


def total_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum over the first dimension; what overflows, and Inf - Inf, is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values.sum(0))


def picture_of(picture: Any, sample: int) -> NDArray[np.uint8] | None:
    """Return a picture as 8-bit RGB of shape ``(rows, columns, 3)``, None for none.

    Args:
        picture: A PIL image, an array ``(H, W)`` or ``(H, W, 3)``, or a tensor ``(3, H, W)``,
            ``(1, H, W)`` or ``(N, C, H, W)``; integers are 8-bit, other values lie in [0, 1].
        sample: Which of N.

    Raises:
        InputError: It is none of these, or its values are not in this range.
        PictureError: It is a PIL image of values without a known range.
    """
    if picture is None:
        return None
    if isinstance(picture, Image.Image):
        return np.asarray(reading.rgb(picture))
    values = _array(picture, "picture")
    if isinstance(picture, torch.Tensor):
        if values.ndim == 4:
            values = _sample_of(values, sample, "picture")
        if values.ndim == 3:
            values = np.moveaxis(values, 0, 2)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or not values.size:
        raise InputError(
            f"a picture of shape {tuple(np.shape(picture))} is not known; give a PIL image, an "
            "array (H, W, 3), or a tensor (3, H, W) or (N, 3, H, W)"
        )
    highest = 255 if np.issubdtype(values.dtype, np.integer) else 1
    if not (values.min() >= 0 and values.max() <= highest):  # NaN, too
        raise InputError(
            f"the picture's values run from {values.min():.4g} to {values.max():.4g}, not from 0 "
            f"to {highest}; give the pixels as they were before normalisation"
        )
    eight_bit = values if highest == 255 else np.rint(values * 255)
    return np.repeat(eight_bit, 3 // values.shape[2], axis=2).astype(np.uint8)


def check_fit(picture: NDArray[np.uint8] | None, values: NDArray[np.float64], name: str) -> None:
    """Refuse a picture of other proportions than the relevance.

    Raises:
        InputError: That is so.
    """
    if picture is None:
        return
    height, width = picture.shape[:2]
    rows, columns = values.shape
    # one row or column more or less, as inner layers have by their padding
    if abs(height * columns - width * rows) > max(height, width):
        raise InputError(
            f"the picture is {height} x {width} and the relevance"
            f"{f' {name!r}' if name else ''} {rows} x {columns} (height x width); give the picture "
            "as the model saw it, resized and cropped"
        )


def check_scale(scale: Any) -> None:
    """Refuse what is no scale.

    Raises:
        InputError: It is neither one of ``SCALES`` nor a positive number.
    """
    if isinstance(scale, str) and scale in SCALES:
        return
    if not isinstance(scale, str) and 0 < number(scale, "scale") < math.inf:
        return
    raise InputError(f"scale is {scale!r}; give {', '.join(SCALES)}, or a number above 0")


def limit(scale: Any, heatmaps: Sequence[NDArray[np.float64]]) -> float:
    """Return where the colours of heatmaps saturate that share a scale.

    Args:
        scale: One of ``SCALES``, or a number.
        heatmaps: Their values; what is not finite is left out.
    """
    if not isinstance(scale, str):
        return min(float(scale), _LARGEST)
    values = np.concatenate([np.zeros(0), *(heatmap.ravel() for heatmap in heatmaps)])
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max(initial=0.0))
    if not largest:
        return 1.0
    match scale:
        case "max":
            found = largest
        case "captum":
            found = scale_by_share(sizes, _CAPTUM_SHARE)
        case "cubic":  # in units of the largest, whose cube may overflow
            found = 10 * largest * float(np.mean((sizes / largest) ** 3)) ** (1 / 3)
        case _:
            found = scale_of(sizes)
    return min(found, _LARGEST)


def number(value: Any, what: str) -> float:
    """Return a number, or a tensor of one, as a float.

    Raises:
        InputError: It is neither.
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.detach())
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise InputError(f"{what} is {_shortly(value)}; give a number")


def _shortly(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    size = f" of {len(value)}" if isinstance(value, (tuple, list)) else shape
    words = f" {reprlib.repr(value)}" if isinstance(value, (str, numbers.Number)) else size
    return f"a {type(value).__name__}{words}"


def _array(values: Any, what: str) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided or values.is_quantized or values.is_meta:
            raise InputError(f"the {what} is no dense tensor of numbers; give .to_dense() of it")
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.double()  # numpy has no bfloat16
        values = values.numpy()
    if not isinstance(values, np.ndarray):
        one = f"one {what} of them, " if isinstance(values, (tuple, list)) else ""
        raise InputError(f"the {what} is {_shortly(values)}; give {one}a tensor or an array")
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise InputError(f"the {what} has dtype {values.dtype}; give real numbers")
    return values


def _sample_of(values: NDArray[Any], sample: int, what: str) -> NDArray[Any]:
    if not -len(values) <= sample < len(values):
        raise InputError(f"sample is {sample}; the {what} has {len(values)} samples")
    found: NDArray[Any] = values[sample]
    return found
