"""The stabilizers of a study: by name, those without an epsilon at each of a grid of epsilons.

Example:
    >>> combine(["none", "signed", "clip:0.1"], epsilons("1e-3:1e-1:3"))
    ['none', 'signed:1e-3', 'signed:0.01', 'signed:0.1', 'clip:0.1']
"""

import math
import re
from collections.abc import Sequence

from captum_lrp_stab import by_name
from captum_lrp_stab.errors import InputError

_FORMS = "give LOW:HIGH:N such as 1e-9:1e-1:9, a number, or numbers with commas between"
_MOST = 1000

UNTOUCHED = ("none", "rounding")
"""Stabilizers without an epsilon; the number of ``rounding`` counts roundoffs."""


def epsilons(text: str) -> list[str]:
    """Return the epsilons that a text stands for, each as text.

    Args:
        text: ``LOW:HIGH:N`` for N epsilons at equal ratios, both ends among them; or one number,
            or several with commas between.

    Raises:
        InputError: It is none of these, or a number is not positive.

    Example:
        >>> epsilons("1e-9:1e-6:4"), epsilons("0.1"), epsilons("1e-3, 0.5")
        (['1e-9', '1e-8', '1e-7', '1e-6'], ['0.1'], ['1e-3', '0.5'])
    """
    if ":" not in text:
        values = [_positive(part, text) for part in text.split(",")]
        return list(dict.fromkeys(_short(value, exact=True) for value in values))
    parts = text.split(":")
    if len(parts) != 3:
        raise InputError(f"epsilon {text!r} has {len(parts)} parts; {_FORMS}")
    low, high = (_positive(part, text) for part in parts[:2])
    count = _count(parts[2], text)
    if not low < high:
        raise InputError(
            f"epsilon {text!r} runs from {low:g} to {high:g}; give the smaller one first"
        )
    step = (math.log(high) - math.log(low)) / (count - 1)
    inner = [math.exp(math.log(low) + i * step) for i in range(1, count - 1)]
    ends = [_short(value, exact=True) for value in (low, high)]
    found = [ends[0], *map(_short, inner), ends[1]]
    if len(set(map(float, found))) < count:
        raise InputError(f"epsilon {text!r} has {count} numbers too close together; give fewer")
    return found


def combine(names: Sequence[str], grid: Sequence[str] = ()) -> list[str]:
    """Return the stabilizers to run, with their epsilons, each once.

    Args:
        names: As :func:`captum_lrp_stab.by_name.stabilizer_of` takes them. One that leaves its
            epsilon out is run at each of the grid; the others, and those of ``UNTOUCHED``, as they
            are.
        grid: Of :func:`epsilons`; without one the epsilons left out are the usual ones.

    Raises:
        StabilizerError: A name is unknown, or an epsilon does not serve.
        InputError: There is a grid, and every stabilizer has an epsilon of its own.
    """
    found: list[str] = []
    swept = False
    for name in names:
        if grid and ":" not in name and name not in UNTOUCHED:
            by_name.stabilizer_of(name)  # an unknown name is told without an epsilon
            found += [f"{name}:{epsilon}" for epsilon in grid]
            swept = True
        else:
            found.append(by_name.spelled_out(name))
    if grid and not swept:
        raise InputError(
            f"epsilon is given, but every stabilizer has one of its own or takes none: "
            f"{', '.join(names)}; name one without, such as --stabilizer signed"
        )
    chosen: list[str] = []
    seen = []
    for name in found:
        stabilizer = by_name.stabilizer_of(name)
        if stabilizer not in seen:
            seen.append(stabilizer)
            chosen.append(name)
    return chosen


def parted(name: str) -> tuple[str, float | None]:
    """Return the kind of a stabilizer and its epsilon, None where it takes none.

    Example:
        >>> parted("signed:1e-6"), parted("none")
        (('signed', 1e-06), ('none', None))
    """
    kind, _, epsilon = name.partition(":")
    return kind, float(epsilon) if epsilon and kind not in UNTOUCHED else None


def _positive(part: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError as error:
        raise InputError(f"epsilon {text!r}: {part!r} is not a number; {_FORMS}") from error
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"epsilon {text!r}: {part.strip()} is not a positive number; {_FORMS}")
    return value


def _count(part: str, text: str) -> int:
    try:
        count = int(part)
    except ValueError as error:
        raise InputError(
            f"epsilon {text!r}: {part!r} is no number of epsilons; {_FORMS}"
        ) from error
    if not 2 <= count <= _MOST:
        raise InputError(
            f"epsilon {text!r} asks for {count} numbers; give 2 to {_MOST}, or a single number"
        )
    return count


def _short(value: float, exact: bool = False) -> str:
    """Return a number as text; six digits do for what lies between the ends of a grid."""
    rounded = f"{value:.6g}"
    texts = [rounded, f"{value:.5e}"]
    if exact and float(rounded) != value:
        texts = [repr(value)]
    trimmed = [re.sub(r"\.?0*e\+?(-?)0*(?=\d)", r"e\1", text) for text in texts]
    return min(trimmed, key=len)
