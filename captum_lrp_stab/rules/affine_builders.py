"""Which affine map a torch function call or a module computes.

``of_call`` reads the arguments of a call such as ``torch.conv2d(x, w, b, stride=2)``; ``of_module``
reads the attributes of a module and goes through the same builders. Each builder has the signature
of the torch function it describes and returns an :class:`~captum_lrp_stab.rules.affine.Affine`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import captum_lrp_stab.types as types
from captum_lrp_stab.operations.linearized import batch_norm_scale
from captum_lrp_stab.rules.affine import (
    Affine,
    AveragePool,
    Contraction,
    Convolution,
    Dense,
    Pad,
    Scale,
)

Size = int | Sequence[int]


def _tuple(value: Size, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Affine:
    bias = None if bias is None else bias.detach()
    if weight.dim() == 1:  # of one output, which has no dimension
        batch = tuple(range(1, input.dim()))
        return Contraction(weight.detach(), bias, (*batch, 0), (0,), batch)
    return Dense(weight.detach(), bias)


def _convolution(dims: int) -> Callable[..., Convolution]:
    def build(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Convolution:
        dilation = _tuple(dilation, dims)
        pad = None
        if padding == "same":
            amounts = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            padding = tuple(a // 2 for a in amounts)
            if any(a % 2 for a in amounts):  # the odd one out goes to the right
                pad = Pad(tuple(n for a in reversed(amounts) for n in (a // 2, a - a // 2)))
                padding = 0
        elif padding == "valid":
            padding = 0
        assert not isinstance(padding, str)
        return Convolution(
            weight.detach(),
            None if bias is None else bias.detach(),
            dims,
            _tuple(stride, dims),
            _tuple(padding, dims),
            dilation,
            groups,
            pad=pad,
        )

    return build


def _transposed(dims: int) -> Callable[..., Affine]:
    def build(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
    ) -> Affine:
        return Convolution(
            weight.detach(),
            None if bias is None else bias.detach(),
            dims,
            _tuple(stride, dims),
            _tuple(padding, dims),
            _tuple(dilation, dims),
            groups,
            transposed=True,
            output_padding=_tuple(output_padding, dims),
        )

    return build


def _average_pool(dims: int) -> Callable[..., Affine]:
    def build(
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Affine:
        kernel = _tuple(kernel_size, dims)
        step = _tuple(stride, dims) if stride else kernel  # an empty tuple means the kernel too
        pad = _tuple(padding, dims)
        weight = torch.ones((), dtype=input.dtype, device=input.device)
        if divisor_override is not None:
            weight = weight / divisor_override
        else:
            for size, k, s, p in zip(input.shape[-dims:], kernel, step, pad, strict=True):
                counts = [
                    min(i * s - p + k, size + (p if count_include_pad else 0))
                    - (i * s - p if count_include_pad else max(i * s - p, 0))
                    for i in range(_pooled_size(size, k, s, p, ceil_mode))
                ]
                weight = weight[..., None] / torch.tensor(counts, dtype=input.dtype).to(weight)
        return AveragePool(
            weight,
            None,
            kernel,
            step,
            pad,
            ceil_mode,
            count_include_pad,
            divisor_override,
        )

    return build


def _pooled_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return the length of a pooled dimension, as torch.nn.AvgPool1d documents it."""
    steps = (size + 2 * padding - kernel) / stride
    if not ceil_mode:
        return math.floor(steps) + 1
    length = math.ceil(steps) + 1
    starts_inside = (length - 1) * stride < size + padding
    return length if starts_inside else length - 1


def _adaptive_average_pool(dims: int) -> Callable[..., Affine]:
    def build(input: Tensor, output_size: Size) -> Affine:
        sizes = input.shape[-dims:]
        wanted = tuple(n or size for n, size in zip(_tuple(output_size, dims), sizes, strict=True))
        weight = torch.ones((), dtype=input.dtype, device=input.device)
        for size, n in zip(sizes, wanted, strict=True):
            counts = [-(-(i + 1) * size // n) - i * size // n for i in range(n)]
            weight = weight[..., None] / torch.tensor(counts, dtype=input.dtype).to(weight)
        return AveragePool(weight, None, None, output_size=wanted)

    return build


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Affine:
    assert running_mean is not None and running_var is not None
    scale = batch_norm_scale(running_var, weight, eps)
    with torch.no_grad():
        if bias is None:
            return Scale(scale, -running_mean * scale)
        return Scale(scale, torch.addcmul(bias, running_mean, scale, value=-1))


BUILDERS: dict[Callable[..., Any], Callable[..., Affine]] = {
    F.linear: _linear,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed(1),
    torch.conv_transpose2d: _transposed(2),
    torch.conv_transpose3d: _transposed(3),
    F.avg_pool1d: _average_pool(1),
    F.avg_pool2d: _average_pool(2),
    F.avg_pool3d: _average_pool(3),
    F.adaptive_avg_pool1d: _adaptive_average_pool(1),
    F.adaptive_avg_pool2d: _adaptive_average_pool(2),
    F.adaptive_avg_pool3d: _adaptive_average_pool(3),
    F.batch_norm: _batch_norm,
}
"""From a torch function to the builder of its affine map."""


def of_call(func: Callable[..., Any], args: Any, kwargs: Any) -> Affine:
    """Return the affine map a call of a function in ``BUILDERS`` computes on its first argument."""
    return BUILDERS[func](*args, **kwargs)


def of_module(module: nn.Module, x: Tensor) -> Affine | None:
    """Return the affine map ``module`` computes on ``x`` by its type, or None if there is none.

    A subclass counts as its base class; whether it computes the same is for the caller to check.
    """
    if isinstance(module, nn.Linear):
        return _linear(x, module.weight, module.bias)
    if isinstance(module, types.ConvolutionForward):
        built = _convolution(len(module.kernel_size))(
            x,
            module.weight,
            module.bias,
            module.stride,
            module.padding if module.padding_mode == "zeros" else 0,
            module.dilation,
            module.groups,
        )
        if module.padding_mode != "zeros":
            amounts = tuple(module._reversed_padding_repeated_twice)
            built = replace(built, pad=Pad(amounts, module.padding_mode))
        return built
    if isinstance(module, types.ConvolutionTranspose):
        return _transposed(len(module.kernel_size))(
            x,
            module.weight,
            module.bias,
            module.stride,
            module.padding,
            module.output_padding,
            module.groups,
            module.dilation,
        )
    if isinstance(module, types.FixedAvgPool):
        dims = types.FixedAvgPool.index(_base(module, types.FixedAvgPool)) + 1
        return _average_pool(dims)(
            x,
            module.kernel_size,
            module.stride,
            module.padding,
            module.ceil_mode,
            module.count_include_pad,
            getattr(module, "divisor_override", None),  # AvgPool1d has none
        )
    if isinstance(module, types.AdaptiveAvgPool):
        dims = types.AdaptiveAvgPool.index(_base(module, types.AdaptiveAvgPool)) + 1
        return _adaptive_average_pool(dims)(x, module.output_size)
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        statistics = module.running_mean, module.running_var
        return _batch_norm(x, *statistics, module.weight, module.bias, eps=module.eps)
    return None


def _base(module: nn.Module, bases: tuple[type[nn.Module], ...]) -> type[nn.Module]:
    return next(base for base in bases if isinstance(module, base))
