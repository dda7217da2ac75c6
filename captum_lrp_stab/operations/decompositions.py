"""Torch functions written out in simpler operations, each of which gets its own rule."""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import flex_attention
from captum_lrp_stab.operations.table import canonical_name


def opened(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a function of Python that shows a mode the operations in it; None for any other.

    ``F.normalize``, ``F.multi_head_attention_forward`` and their like arrive as one call, because
    they ask ``has_torch_function`` first. A copy that is told "no" runs the body, whose operations
    arrive one by one.
    """
    if not isinstance(func, FunctionType):
        return None
    asked = [name for name in func.__globals__ if name.startswith("has_torch_function")]
    if not asked:
        return None
    told = {**func.__globals__, **dict.fromkeys(asked, lambda *arguments: False)}
    body = FunctionType(func.__code__, told, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


# written out -------------------------------------------------------------------------------------


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return ``F.scaled_dot_product_attention`` of the arguments.

    Raises:
        ModelError: Dropout is active.
    """
    if dropout_p:
        raise ModelError(
            f"attention with dropout_p={dropout_p} is random, so that the relevance would be of a "
            "random network; call model.eval(), or give dropout_p=0.0"
        )
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(groups, dim=-3)
        value = value.repeat_interleave(groups, dim=-3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return torch.softmax(scores, dim=-1) @ value
    if attn_mask.dtype != torch.bool:
        visible = attn_mask != -torch.inf
        scores = scores + attn_mask.masked_fill(~visible, 0.0)
        attn_mask = visible
    # the smallest number in the place of -inf, which times 0 would be NaN; and a query that sees no
    # key gets 0, as from torch
    scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1).masked_fill(~attn_mask, 0.0) @ value


def gated_linear_unit(input: Tensor, dim: int = -1) -> Tensor:
    """Return ``F.glu`` of the arguments."""
    signal, gate = input.chunk(2, dim)
    return signal * torch.sigmoid(gate)


def lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Return ``torch.lerp`` of the arguments."""
    return input + weight * (end - input)


def convolution_over_time(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """Return ``torch.conv_tbc`` of the arguments: a convolution of (time, batch, channels)."""
    z = torch.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad)
    return z.permute(2, 0, 1)


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """Return ``torch.addcdiv`` of the arguments."""
    return input + value * tensor1 / tensor2


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return ``F.cosine_similarity`` of the arguments."""
    x1, x2 = x1 + torch.zeros_like(x2), x2 + torch.zeros_like(x1)  # of one shape
    norms: list[Tensor] = [torch.linalg.vector_norm(x, dim=dim).clamp_min(eps) for x in (x1, x2)]
    return (x1 * x2).sum(dim) / (norms[0] * norms[1])


def constant_pad(input: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """Return ``torch.constant_pad_nd`` of the arguments."""
    return F.pad(input, list(pad), value=value)


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *ignored: Any,
) -> Tensor:
    """Return ``torch.convolution`` of the arguments."""
    dims = weight.dim() - 2
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    options: dict[str, Any] = {"output_padding": output_padding} if transposed else {}
    out: Tensor = getattr(torch, name)(
        input, weight, bias, stride, padding, dilation=dilation, groups=groups, **options
    )
    return out


def native_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *ignored: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of ``torch.native_batch_norm`` of the arguments, and no statistics."""
    given = running_mean, running_var, weight, bias, training, momentum, eps
    return F.batch_norm(input, *given), *torch.zeros(2, 0, device=input.device)


def batch_norm_without_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of ``torch._native_batch_norm_legit_no_training``."""
    given = weight, bias, running_mean, running_var
    return native_batch_norm(input, *given, False, momentum, eps)


def embedding(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return ``F.embedding`` of the arguments, where the table depends on the model's input."""
    return weight[input]


def var_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return ``torch.var_mean`` of the arguments."""
    return torch.var(input, *args, **kwargs), _mean(input, *args, **kwargs)


def std_mean(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return ``torch.std_mean`` of the arguments."""
    return torch.std(input, *args, **kwargs), _mean(input, *args, **kwargs)


def _mean(
    input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, **ignored: Any
) -> Tensor:
    if dim is None or isinstance(dim, bool):  # of the whole; a bool is ``unbiased``
        dim = tuple(range(input.dim()))
    return input.mean(dim, keepdim=keepdim)


WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    F.glu: gated_linear_unit,
    F.embedding: embedding,
    F.cosine_similarity: cosine_similarity,
    torch.constant_pad_nd: constant_pad,
    torch.convolution: convolution,
    torch._convolution: convolution,
    torch.conv_tbc: convolution_over_time,
    torch.native_batch_norm: native_batch_norm,
    torch._native_batch_norm_legit: native_batch_norm,
    torch._native_batch_norm_legit_no_training: batch_norm_without_training,
    torch._batch_norm_impl_index: native_batch_norm,
    torch.cudnn_batch_norm: native_batch_norm,
    torch.miopen_batch_norm: native_batch_norm,
    torch.lerp: lerp,
    Tensor.lerp: lerp,
    torch.addcdiv: addcdiv,
    Tensor.addcdiv: addcdiv,
    torch.var_mean: var_mean,
    torch.std_mean: std_mean,
}
"""From a torch function to the same in single operations."""


def cond(
    pred: Tensor | bool,
    true_fn: Callable[..., Any],
    false_fn: Callable[..., Any],
    operands: Sequence[Any] = (),
) -> Any:
    """Return ``torch.cond`` of the arguments: what the branch gives that is taken."""
    return (true_fn if pred else false_fn)(*operands)


_OF_HIGHER_ORDER: dict[str, Callable[..., Any]] = {
    "cond": cond,
    "flex_attention": flex_attention.attention,
}
"""From the name of a higher-order operator to the same in single operations."""


def written_out(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a torch function in single operations, None if it is not known so."""
    if isinstance(func, torch._ops.HigherOrderOperator):
        return _OF_HIGHER_ORDER.get(func.__name__)
    if canonical_name(func) == "batch_norm_no_update":
        return batch_norm_without_training  # of which torch itself has no function
    known = WRITTEN_OUT.get(func)
    if known is None and func.__name__.endswith("_"):
        plain = WRITTEN_OUT.get(getattr(Tensor, canonical_name(func), func))
        if plain is not None:
            return lambda target, *args, **kwargs: target.copy_(plain(target, *args, **kwargs))
    return known
