"""A cache of tensors computed from a few parameters, such as the zB rule's constants.

Weights derived from a layer's own, such as ``w + gamma * w.clamp(min=0)``, are computed each time:
to find out whether all of a layer's weights are still the same, whatever has written to them, takes
as long.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_SHARE = 0.25
"""The default size of the cache, as a share of the memory of the model's parameters."""
_MANY = 2**17
"""The number of source elements to compare above which nothing is cached."""


@dataclass(frozen=True)
class _Entry:
    sources: tuple[Tensor, ...]  # copies
    value: Tensor

    @property
    def size(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.sources, self.value))


class Derived:
    """A store of tensors made from others, each made again when one of these has other values.

    The values themselves are compared, because writing by way of ``.data`` leaves no other trace.
    When the store is full nothing more is kept: every call visits the layers in the same order, so
    that making room for one would lose another just before it is needed.

    Args:
        limit: Bytes it may hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        """Return how many tensors are held."""
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return sum(entry.size for entry in list(self._entries.values()))

    def get(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """Return the result of ``make``, cached for the same key and equal sources.

        Nothing is cached on an accelerator, where a comparison would wait for it.

        Args:
            key: What is made: the layer, the purpose and all numbers that go into it.
            sources: Tensors it is made from.
            make: Makes it.
        """
        entry = self._entries.get(key)
        if entry is not None and _are_equal(entry.sources, sources):
            return entry.value
        self._entries.pop(key, None)
        value = make()
        few = sum(t.numel() for t in sources) <= _MANY
        if few and value.device.type == "cpu":
            made = _Entry(tuple(t.detach().clone() for t in sources), value)
            if self.size + made.size <= self.limit:
                self._entries[key] = made
        return value


def _are_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(
        (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
        for a, b in zip(some, others, strict=True)
    )
