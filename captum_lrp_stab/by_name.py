"""From words, as on a command line or in a report, to stabilizers, presets and dtypes."""

import difflib
import inspect
from collections.abc import Callable

import torch

import captum_lrp_stab.presets as presets
import captum_lrp_stab.stabilizers as stabilizers
from captum_lrp_stab.errors import InputError, RuleMapError, StabilizerError
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.rules.rule_set import ATTENTION, Attention
from captum_lrp_stab.stabilizers import Stabilizer
from captum_lrp_stab.zoo import Preprocessing

STABILIZERS: dict[str, Callable[[float], Stabilizer]] = {
    "none": lambda epsilon: stabilizers.Identity(),
    "signed": stabilizers.Signed,
    "relative": lambda epsilon: stabilizers.Signed(epsilon, relative=True),
    "quadratic-mean": stabilizers.RootMeanSquare,
    "additive": stabilizers.Additive,
    "clip": stabilizers.Clip,
    "rounding": stabilizers.RoundingAware,
}
"""By name, from epsilon; ``rounding`` takes its factor."""

DEFAULT_STABILIZERS = ("none", "signed:0.1", "quadratic-mean:0.1", "additive:0.1", "clip:0.1")
"""At one epsilon, large enough that they differ to the eye."""

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


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
        epsilon = float(given) if name != "none" else 0.0
    except ValueError as error:
        raise StabilizerError(
            f"stabilizer {text!r}: {given!r} is not a number; give one such as {name}:1e-6"
        ) from error
    try:
        return STABILIZERS[name](epsilon)
    except StabilizerError as error:
        raise StabilizerError(f"stabilizer {text!r}: {error}") from error


def preset_names() -> list[str]:
    """Return the names of the presets."""
    found = inspect.getmembers(presets, inspect.isfunction)
    return [n for n, f in found if f.__module__ == presets.__name__ and not n.startswith("_")]


def preset_of(name: str, preprocessing: Preprocessing) -> Preset:
    """Return a preset by name; one with the zB rule gets the bounds of the pixels.

    Raises:
        RuleMapError: No preset has this name.
    """
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise RuleMapError(
            f"no preset has the name {name!r}; give one of {', '.join(preset_names())}{hint}"
        )
    build: Callable[..., Preset] = getattr(presets, name)
    if "low" in inspect.signature(build).parameters:
        return build(low=preprocessing.low, high=preprocessing.high)
    return build()


def attention_of(name: str) -> Attention:
    """Return how attention is treated, by name.

    Raises:
        InputError: The name is none of ``rule_set.ATTENTION``.
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
    return DTYPES[name]
