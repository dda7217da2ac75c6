"""Reading a call of a torch function: its arguments, and what it writes to."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.tensors.nested import tensors_in

_INPLACE_IS_LAST = frozenset(
    """
    alpha_dropout celu dropout dropout1d dropout2d dropout3d elu feature_alpha_dropout hardsigmoid
    hardswish hardtanh leaky_relu mish relu relu6 rrelu selu silu threshold
    """.split()
)


def writes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call writes to a tensor it is given, its first argument or ``out``."""
    given, name = func.__name__, canonical_name(func)
    in_place = given.endswith("_") and not given.endswith("__")
    if in_place or given in (f"__i{name}__", "__setitem__") or kwargs.get("inplace"):
        return True
    # F.relu6(x, True), F.hardtanh(x, 0.0, 6.0, True)
    by_position = name in _INPLACE_IS_LAST and len(args) > 1 and args[-1] is True
    return by_position or kwargs.get("out") is not None


def written(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the tensor that a call writes to, None if it writes to none."""
    if not writes(func, args, kwargs):
        return None
    target = kwargs.get("out", args[0] if args else kwargs.get("input"))
    return target if isinstance(target, Tensor) else None


def out_of_place(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that computes what an in-place ``func`` writes, or ``func`` itself."""
    if not writes(func, (), {}):
        return func
    name = canonical_name(func)
    plain = getattr(Tensor, name, None) or getattr(Tensor, f"__{name}__", None)
    return partial(_on_a_copy, func) if plain is None else plain  # there is no Tensor.zero


def _on_a_copy(func: Callable[..., Any], target: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(target.clone(), *args, **kwargs)


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    """Return an argument given by position or by name, None if it is left out."""
    return args[position] if len(args) > position else kwargs.get(name)


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
