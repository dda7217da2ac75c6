"""Tensors in lists, tuples and dicts."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among the arguments, in lists, tuples and dicts too."""
    found: list[Tensor] = []
    _collect(args, found)
    if kwargs:
        _collect(kwargs.values(), found)
    return found


_PLAIN = frozenset({bool, float, int, slice, str, type(None), torch.device, torch.dtype})


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) in _PLAIN:  # to ask whether it is a Mapping takes longer
            continue
        elif isinstance(value, (list, tuple)):
            _collect(value, found)
        elif isinstance(value, Mapping):
            _collect(value.values(), found)


def mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Return arguments with each tensor changed, in the order of :func:`tensors_in`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        items = [mapped(change, item) for item in value]
        kind: Any = type(value)
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    if isinstance(value, dict):
        changed = {key: mapped(change, item) for key, item in value.items()}
        if type(value) is dict:
            return changed
        same_kind: Any = copy.copy(value)  # whose attributes are the items, it may be
        for key, item in changed.items():  # some have no update
            same_kind[key] = item
        return same_kind
    return value


def without_graph(value: Tensor) -> Tensor:
    """Return a tensor without a graph, copied if made in inference mode: autograd cannot save it.

    With a graph of the caller's it would count as a value that depends on the model's input.
    """
    return value.clone() if value.is_inference() else value.detach()
