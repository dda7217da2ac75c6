"""Stabilizers, presets and dtypes by name, as on the command line."""

import difflib
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

import captum_lrp_stab.presets as presets
import captum_lrp_stab.stabilizers as stabilizers
from captum_lrp_stab.errors import InputError, RuleMapError, StabilizerError
from captum_lrp_stab.names import ATTENTION, DTYPES, PRESETS, STABILIZERS, Attention
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.stabilizers import Stabilizer


def spelled_out(text: str) -> str:
    """Return a stabilizer's name with its epsilon, if it was left out and there is one.

    Example:
        >>> spelled_out("signed"), spelled_out("signed:0.1"), spelled_out("none")
        ('signed:1e-6', 'signed:0.1', 'none')
    """
    if ":" in text or text == "none":
        return text
    return f"{text}:{'8' if text == 'rounding' else '1e-6'}"


def stabilizer_of(text: str) -> Stabilizer:
    """Return the stabilizer that ``name`` or ``name:epsilon`` stands for.

    Raises:
        StabilizerError: The name is unknown, or epsilon is no number that serves.

    Example:
        >>> stabilizer_of("clip:0.01"), stabilizer_of("none")
        (Clip(epsilon=0.01), Identity())
    """
    name, _, given = spelled_out(text).partition(":")
    if name not in STABILIZERS:
        close = difflib.get_close_matches(name, STABILIZERS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise StabilizerError(
            f"stabilizer {text!r} has no known name: give one of {', '.join(STABILIZERS)}, with "
            f"epsilon after a colon, such as signed:1e-6{hint}"
        )
    if name == "none" and given:
        raise StabilizerError(f"stabilizer {text!r}: none takes no epsilon; give none, or signed")
    try:
        epsilon = () if name == "none" else (float(given),)
    except ValueError as error:
        raise StabilizerError(
            f"stabilizer {text!r}: {given!r} is not a number; give one such as {name}:1e-6"
        ) from error
    options = {"relative": True} if name == "relative" else {}
    try:
        made: Stabilizer = getattr(stabilizers, STABILIZERS[name])(*epsilon, **options)
    except StabilizerError as error:
        raise StabilizerError(f"stabilizer {text!r}: {error}") from error
    return made


def preset_of(name: str, low: Tensor, high: Tensor) -> Preset:
    """Return a preset by name; one with the zB rule gets the bounds of the inputs.

    Args:
        name: One of ``names.PRESETS``.
        low: The smallest possible input.
        high: The largest possible input.

    Raises:
        RuleMapError: No preset has this name.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise RuleMapError(
            f"no preset has the name {name!r}; give one of {', '.join(PRESETS)}{hint}"
        )
    build: Callable[..., Preset] = getattr(presets, name)
    if "low" in inspect.signature(build).parameters:
        return build(low=low, high=high)
    return build()


def attention_of(name: str) -> Attention:
    """Return how attention is treated, by name.

    Raises:
        InputError: The name is none of ``names.ATTENTION``.
    """
    for known in ATTENTION:
        if name == known:
            return known
    raise InputError(f"attention is {name!r}; give one of {', '.join(ATTENTION)}")


def dtype_of(name: str) -> torch.dtype:
    """Return a floating dtype by name.

    Raises:
        InputError: The name is none of ``DTYPES``.
    """
    if name not in DTYPES:
        raise InputError(f"no dtype has the name {name!r}; give one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
