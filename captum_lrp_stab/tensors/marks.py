"""Marks on tensors: what is known of a value, for as long as nothing writes to it.

A mark is kept with the tensor's version: a write makes it stale, and it no longer counts.

- ``layer``: the use of a layer whose output it is (``dispatch.layer_use``).
- ``padded``: what it is a padding of (``dispatch.layers``).
- ``gate``, ``shift``: what it is in a product (``operations.gates``).
- ``nonnegative``: it has no negative element (``operations.nonnegative``).
- ``input``: it is computed from the inputs without a layer; whether it holds values of them
  (``dispatch.first_layers``).
- ``order``: the layer that knows the order of its values before rounding (``dispatch.layer_use``).
- ``cut``: the segment that has made it, or reads it, without the layer next to it
  (``propagation.checkpointing``).
- ``weights``: whether it is computed from parameters of the model (``dispatch.weights``).
- ``relevance``: the backward pass gives it relevance, not a coefficient
  (``propagation.mixed_form``).
"""

from typing import Any

from torch import Tensor

_NONE: dict[str, tuple[Any, int]] = {}


def put(t: Tensor, name: str, value: Any) -> None:
    """Mark a tensor."""
    marks: dict[str, tuple[Any, int]] = vars(t).setdefault("_lrp_marks", {})
    marks[name] = value, t._version


def get(t: Tensor, name: str) -> Any:
    """Return the value of a mark, None if there is none or it is stale."""
    mark = getattr(t, "_lrp_marks", _NONE).get(name)
    # one made in inference mode has no version, and no marks
    return mark[0] if mark is not None and mark[1] == t._version else None


def is_stale(t: Tensor, name: str) -> bool:
    """Return whether a tensor was marked, and written to since."""
    mark = getattr(t, "_lrp_marks", {}).get(name)
    return mark is not None and mark[1] != t._version


def carry(source: Tensor, target: Tensor, without: tuple[str, ...] = ()) -> None:
    """Mark ``target``, a copy of ``source``, as that is marked."""
    for name in list(getattr(source, "_lrp_marks", {})):
        value = get(source, name)
        if value is not None and name not in without:
            put(target, name, value)


def drop(t: Tensor, name: str) -> None:
    """Forget a mark."""
    vars(t).get("_lrp_marks", {}).pop(name, None)
