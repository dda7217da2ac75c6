"""Going through tensors a block at a time, so that intermediate values stay in the cache."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

_SIZE = 2**18
"""Elements: 1 MB of float32, and enough for the work to outweigh the call."""
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_dense(t: Tensor) -> bool:
    """Return whether the elements of ``t`` lie one after the other, in a usual order."""
    if t.is_contiguous():
        return True
    return t.dim() in _LAST and t.is_contiguous(memory_format=_LAST[t.dim()])


def layout(t: Tensor) -> torch.memory_format:
    """Return whether ``t`` has its channels first or last."""
    return torch.contiguous_format if t.is_contiguous() or not is_dense(t) else _LAST[t.dim()]


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield dense tensors of one shape and layout, a block of each at a time."""
    count = tensors[0].numel()
    if count <= 2 * _SIZE or tensors[0].device.type != "cpu":
        yield tensors
        return
    flat = [t.as_strided((count,), (1,)) for t in tensors]
    for start in range(0, count, _SIZE):
        yield tuple(t[start : start + _SIZE] for t in flat)


def like(t: Tensor, model: Tensor) -> Tensor:
    """Return ``t``, or a copy of it, laid out like ``model``, which is dense."""
    return t if t.stride() == model.stride() else torch.empty_like(model).copy_(t)


def spaced(t: Tensor, most: int | None) -> Tensor:
    """Return every n-th element of a tensor, ``most`` at most; None for all, flat."""
    flat = t.flatten()
    step = 1 if most is None else math.ceil(flat.numel() / most) or 1
    while math.gcd(step, flat.numel()) > 1 and step > 1:  # or it would see the same columns only
        step += 1
    return flat[::step]


class Buffer:
    """Memory for the intermediate values of one layer at a time."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def like(self, t: Tensor) -> Tensor:
        """Return memory laid out like ``t``, which is dense, valid until the next call."""
        if t.device.type != "cpu":  # an accelerator's allocator does this
            return torch.empty_like(t)
        flat = self._flat
        if flat is None or flat.numel() < t.numel() or flat.dtype != t.dtype:
            self._flat = flat = torch.empty(t.numel(), dtype=t.dtype)
        return flat.as_strided(t.shape, t.stride())
