"""Reading the arguments of a call, given by position or by name."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from captum_lrp_stab.operations import tensors_in


def first(args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the first argument, the input."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def rest(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, but the input."""
    return {key: value for key, value in kwargs.items() if key != "input"}


def others(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among the arguments but the first."""
    return list(tensors_in(args[1:], rest(kwargs)))
