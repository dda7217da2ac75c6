"""Tensors made from parameters - ``w + gamma * w.clamp(min=0)``, say - kept from call to call.

On an accelerator nothing is kept: there it costs less to make such a tensor than to ask whether its
parameters are still the same.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_SHARE = 0.25
"""Of the memory of a model's parameters: how much is kept unless the user says otherwise."""


@dataclass(frozen=True)
class _Source:
    """What a parameter was when something was made from it."""

    alias: Tensor  # holds the memory, so that nothing else can come to lie at its address
    version: int
    total: Tensor  # writing by way of ``.data`` leaves the version as it is

    @classmethod
    def of(cls, parameter: Tensor) -> "_Source":
        return cls(parameter.detach(), parameter._version, _total(parameter))

    def is_still(self, parameter: Tensor) -> bool:
        return (
            self.alias.data_ptr() == parameter.data_ptr()
            and self.version == parameter._version
            and self.alias.shape == parameter.shape
            and self.alias.stride() == parameter.stride()
            and self.alias.dtype == parameter.dtype
            and torch.equal(self.total, _total(parameter))
        )


def _total(parameter: Tensor) -> Tensor:
    """Return a number that a changed parameter does not have, but by an exceptional accident."""
    return parameter.detach().sum()


@dataclass(frozen=True)
class _Entry:
    sources: tuple[_Source, ...]
    value: Tensor

    @property
    def size(self) -> int:
        return self.value.numel() * self.value.element_size()


class Derived:
    """A store of tensors made from parameters, each dropped when a parameter of it changes.

    When it is full nothing more is kept: the layers of a model are visited in the same order by
    every call, so that making room for the next would lose each just before it is needed.

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
        return sum(entry.size for entry in self._entries.values())

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

    def get(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` gives, or gave for the same key while the sources are unchanged.

        Args:
            key: What is made: the layer, the purpose and all numbers that go into it.
            sources: Tensors it is made from.
            make: Makes it.
        """
        entries = self._entries
        entry = entries.get(key)
        if entry is not None:
            same = zip(entry.sources, sources, strict=True)
            if all(source.is_still(tensor) for source, tensor in same):
                return entry.value
            entries.pop(key, None)
        value = make()
        size = value.numel() * value.element_size()
        if value.device.type == "cpu" and self.size + size <= self.limit:
            entries[key] = _Entry(tuple(map(_Source.of, sources)), value)
        return value
