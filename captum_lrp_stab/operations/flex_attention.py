"""Flex attention (``torch.nn.attention.flex_attention``), written out in single operations.

No torch function mode sees the call of the function itself. It asks its arguments for their device
and whether they require gradients, by which it is recognized, and in the end calls a higher-order
operator, which a mode does see. That operator maps a function of one score over all of them by
``torch.func.vmap``, where relevance cannot be followed; here it is given all scores at once.
"""

import math
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.errors import ModelError

_MODULE = "torch.nn.attention.flex_attention"
_DEPTH = 4
"""Frames between a call of torch's and a mode that looks for its caller."""


def asked_by() -> str:
    """Return the function of flex attention's module that asks for an attribute, "" if none does.

    Call this in a mode, while it handles the access to the attribute.
    """
    if _MODULE not in sys.modules:
        return ""
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return ""
        if frame.f_globals.get("__name__") == _MODULE:
            return frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: dict[str, Any],
    score_buffers: tuple[Tensor, ...] = (),
    mask_buffers: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of the higher-order operator of flex attention for the arguments.

    Raises:
        ModelError: ``score_mod`` is no function of whole tensors.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    scores = (query.to(wide) @ key.to(wide).mT) * scale
    changed = _over_all(score_mod, scores, score_buffers)
    seen = _mask(block_mask[-1], scores, mask_buffers) & (changed.detach() != -math.inf)
    # the smallest number in the place of -inf, which times 0 would be NaN; and a query that sees no
    # key gets 0, as from torch
    changed = changed.masked_fill(~seen, torch.finfo(wide).min)
    weights = torch.softmax(changed, dim=-1).masked_fill(~seen, 0.0)
    out = weights.to(query.dtype) @ value.to(query.dtype)
    nothing = out.new_empty(0)
    lse = largest = nothing
    if kernel_options.get("OUTPUT_LOGSUMEXP"):
        hidden = ~seen.any(-1)
        lse = (torch.logsumexp(changed, -1) / math.log(2)).masked_fill(hidden, -math.inf)
    if kernel_options.get("OUTPUT_MAX"):
        largest = changed.amax(-1) / math.log(2)
    return out, lse, largest


def _places(scores: Tensor) -> tuple[Tensor, ...]:
    """Return batch, head, query and key of each score, as tensors that broadcast to its shape."""
    dims = range(scores.dim())
    sizes = [tuple(n if d == own else 1 for d, n in enumerate(scores.shape)) for own in dims]
    device = scores.device
    return tuple(torch.arange(math.prod(s), device=device).reshape(s) for s in sizes)


def _mask(function: Callable[..., Tensor], scores: Tensor, buffers: tuple[Tensor, ...]) -> Tensor:
    """Return which keys each query sees, shaped like the scores."""
    create_mask = sys.modules[_MODULE].create_mask  # only there if the model uses it

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return function(batch, head, query, key, *buffers)

    seen: Tensor = create_mask(mask_mod, *scores.shape, device=scores.device)
    return seen


def _over_all(
    function: Callable[..., Tensor], scores: Tensor, buffers: tuple[Tensor, ...]
) -> Tensor:
    """Return a function of a score and its place for all scores, at once."""
    name = getattr(function, "__name__", "score_mod")
    try:
        values = function(scores, *_places(scores), *buffers).expand(scores.shape)
    except (IndexError, RuntimeError, TypeError) as error:
        raise _refusal(name, f"{type(error).__name__}: {error}") from error
    with torch._C.DisableTorchFunction(), torch.no_grad():
        for at in product(*({0, n // 2, n - 1} for n in scores.shape)):
            one = function(scores.detach()[at], *(torch.tensor(i) for i in at), *buffers)
            if not torch.allclose(one.to(values.dtype), values.detach()[at], equal_nan=True):
                raise _refusal(name, f"for the score at {at} it gives another value")
    return values


def _refusal(name: str, reason: str) -> ModelError:
    return ModelError(
        f"flex attention: {name} cannot be given all scores at once ({reason}); write it in "
        "operations that broadcast, with all indices at once as in bias[head, query - key], or "
        "let the model compute attention without flex attention"
    )
