"""Which element of a window is the largest, where half precision has made several equal.

Rounding to bfloat16 makes the two largest of 9 neighbours equal in 1 window of 50, and a max pool
then hands all relevance to the first of them. The layer that made them knows better: its output is
computed again in float32, only to choose between equals. The values stay as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.tensors import marks

POOLS: dict[str, Callable[..., Any]] = {
    "max_pool1d": F.max_pool1d,
    "max_pool2d": F.max_pool2d,
    "max_pool3d": F.max_pool3d,
}
_HALF = (torch.float16, torch.bfloat16)
_SMALL = 2.0**-12  # so that the float32 values only tell equals apart


Order = tuple[LayerUse, int]
"""A layer, and the version of its input."""


def keep_order(out: Tensor, order: Order | None) -> None:
    """Remember the layer whose output, or a non-decreasing function of it, is ``out``."""
    if order is not None and out.dtype in _HALF:
        marks.put(out, "order", order)


def order_of(x: Tensor) -> Order | None:
    """Return the layer that knows the order of the values of ``x``, None if there is none."""
    order: Order | None = marks.get(x, "order") if x.dtype in _HALF else None
    return order


def resolved(name: str, x: Tensor) -> Callable[..., Tensor] | None:
    """Return a max pool that chooses between equals as float32 would, None if it cannot.

    Args:
        name: One of ``POOLS``.
        x: What is pooled.
    """
    order = order_of(x)
    if order is None or order[0].x._version != order[1]:
        return None
    use = order[0]

    def pool(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
            op, bias = use.op, use.op.bias
            wide = None if bias is None else bias.float()
            exact = op.apply(use.x.detach().float(), op.weight.float(), wide)
            ranked = input.double()
            ranked += _SMALL * (exact.double() - ranked)
            indices = POOLS[name](ranked, *args, **kwargs | {"return_indices": True})[1]
        dims = int(name[-2])
        picked = input.flatten(-dims).gather(-1, indices.flatten(-dims))
        return picked.reshape(indices.shape)

    return pool
