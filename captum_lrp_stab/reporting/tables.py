"""Numbers and tables as text and as JSON, for results that print themselves."""

import json
import math
from collections.abc import Sequence
from typing import Any


def number(value: float | None, digits: int = 2) -> str:
    """Return a number in few digits, a dash for none and for NaN.

    Example:
        >>> number(0.012345), number(None)
        ('0.012', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def to_text(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Return a table, its first columns, which hold words, to the left."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(text)


def to_json(facts: Any) -> str:
    """Return values as JSON, which knows neither NaN nor Inf."""
    return json.dumps(facts, indent=2, allow_nan=False)


def without_nonfinite(value: Any) -> Any:
    """Return nested values with None in the place of NaN and Inf."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nonfinite(item) for item in value]
    return value
