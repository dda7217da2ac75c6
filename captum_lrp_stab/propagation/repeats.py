"""The operations and outputs of a run of a segment, to see that a second run has the same.

A segment with a state (a key-value cache, a counter, a draw) computes something else the second
time, and relevance would be propagated through that. It need not show in the values: a cache that
has grown holds the same keys twice, of which an attention that looks back sees the first. So all
operations that relevance passes are compared, by name and shape, and the values of the outputs.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation


class Made(NamedTuple):
    """The operations and outputs of a run; two are equal if the runs were the same."""

    operations: list[Any]
    values: list["_Values"]


def made(operations: Iterable[Operation], results: Sequence[Tensor]) -> Made:
    """Return the operations and outputs of a run.

    Args:
        operations: Of the run, all asked whether relevance reaches them.
        results: Its outputs.
    """
    passed = [(o.name, o.kind, o.shape) for o in operations if o.reached]
    return Made(passed, list(map(_Values, results)))


class _Values:
    """An output's values, in little memory: a copy could not be written over by the model.

    On a CPU they are compared bit for bit. On another device up to rounding, because atomic
    additions there (``index_add``, ``scatter_add``) round in another order each time.
    """

    def __init__(self, t: Tensor) -> None:
        t = t.detach()
        t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        self.kind = t.shape, t.dtype, t.device
        exact = self.is_exact(t)
        self.bits = _bits(t) if exact else b""
        self.projection = None if exact else _projection(t)

    @staticmethod
    def is_exact(t: Tensor) -> bool:
        """Return whether a second run has the same bits."""
        return t.device.type == "cpu"

    def __eq__(self, other: object) -> bool:
        """Return whether the values are the same."""
        if not isinstance(other, _Values) or (self.kind, self.bits) != (other.kind, other.bits):
            return False
        if self.projection is None or other.projection is None:
            return True
        (one, size), (another, _) = self.projection, other.projection
        return bool((one - another).abs() <= _ROUNDING * torch.finfo(self.kind[1]).eps * size)


def _bits(t: Tensor) -> bytes:
    """Return a checksum of the bits."""
    values = t.resolve_neg().reshape(-1).view(torch.uint8).numpy()  # copied if not contiguous
    return hashlib.blake2b(values.data).digest()


def _projection(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the projection of finite values on a vector, and their norm.

    Changes of values cannot cancel in it as they do in a sum, unless by chance.
    """
    wide = t.to(torch.promote_types(t.dtype, torch.float32)).nan_to_num(0.0, 0.0, 0.0)
    total = wide
    for size in reversed(wide.shape):
        steps = torch.arange(size, dtype=torch.float64, device=t.device) * _GOLDEN % 1 - 0.5
        total = (total * steps.to(wide.dtype)).sum(-1)
    return total, torch.linalg.vector_norm(wide)


_GOLDEN = (5**0.5 - 1) / 2
_ROUNDING = 32
"""How many units in the last place, relative to all values together, rounding may make."""
