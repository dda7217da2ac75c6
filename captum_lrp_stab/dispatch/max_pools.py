"""Which element of a window is the largest, where half precision has made several equal.

Rounding to bfloat16 makes the two largest of 9 neighbours equal in 1 window of 50, and a max pool
then propagates all relevance to the first of them. So the output of the layer that they come from
is computed again in float32, only to choose between equal values. The values stay as they are.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import Order

POOLS: dict[str, Callable[..., Any]] = {
    "max_pool1d": F.max_pool1d,
    "max_pool2d": F.max_pool2d,
    "max_pool3d": F.max_pool3d,
}
_SMALL = 2.0**-12  # so that the float32 values only tell equals apart


def resolved(name: str, order: Order) -> Callable[..., Tensor] | None:
    """Return a max pool that chooses between equals as float32 would, None if it cannot.

    Args:
        name: One of ``POOLS``.
        order: The layer that knows the order of what is pooled.
    """
    use, version = order
    if use.x._version != version:
        return None

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
