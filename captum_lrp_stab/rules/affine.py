"""Affine maps ``z = f(x; w, b)``: what the rule-bearing layers compute, with the weights exposed.

A rule replaces the weights of a layer (``w + gamma * w.clamp(min=0)``, say) and needs the map and
its vector-Jacobian product under the new weights. An :class:`Affine` gives both as pure functions
of explicit tensors, so that no parameter is ever written to and no module is ever called again.

Convention: ``x`` has shape ``(N, *in_features)``, ``z`` and ``grad`` ``(N, *out_features)``;
``weight`` is any tensor shaped like ``self.weight``, ``bias`` one like ``self.bias`` or ``None``.
Average pools have the weights 1/n, batch norm in eval mode the weights gamma / sqrt(var + eps).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.tensors.blocks import layout

CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
TRANSPOSED = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}


@dataclass(frozen=True, eq=False)
class Affine(ABC):
    """An affine map with explicit weight and bias."""

    weight: Tensor
    bias: Tensor | None

    @property
    def geometry(self) -> tuple[Any, ...]:
        """Everything about the map but its weights and biases."""
        names = (field.name for field in fields(self) if field.name not in ("weight", "bias"))
        return type(self).__name__, *(getattr(self, name) for name in names)

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``f(x; weight, bias)``."""

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the vector-Jacobian product of ``f(.; weight)`` with ``grad``, shaped like ``x``.

        Only the shape, dtype and device of ``x`` matter, because the map is affine.
        """
        with torch.enable_grad():
            point = torch.zeros_like(x, requires_grad=True)
            z = self.apply(point, weight, None)
        return torch.autograd.grad(z, point, grad)[0]

    def vjps(self, grad: Tensor, x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the vector-Jacobian product of ``grad`` with each of several weights."""
        return [self.vjp(grad, x, weight) for weight in weights]

    def scaled(self, scale: Tensor, shift: Tensor) -> "Affine | None":
        """Return the map followed by ``z * scale + shift`` per channel, or None if it has none."""
        return None

    def offset(self, bias: Tensor, z: Tensor) -> Tensor:
        """Return ``bias`` in a shape that broadcasts against the output ``z``."""
        return bias

    def unit_axes(self, z: Tensor) -> tuple[int, ...] | None:
        """Return the dimensions of an output that number the units, None if they have no bias."""
        return None

    def as_bias(self, values: Tensor, z: Tensor) -> Tensor | None:
        """Return what is added to ``z`` as a bias, None if it is not one number for each unit."""
        axes = self.unit_axes(z)
        if axes is None:
            return None
        whole = values.reshape(*(1,) * (z.dim() - values.dim()), *values.shape)
        sizes = [size if i in axes else 1 for i, size in enumerate(z.shape)]
        fits = len(sizes) == whole.dim() and all(
            n in (1, size) for n, size in zip(whole.shape, sizes, strict=True)
        )
        return whole.expand(sizes) if fits else None

    def has_samples(self, x: Tensor) -> bool:
        """Return whether the first dimension of an input is that of the samples."""
        return True

    def magnitude(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum of the absolute contributions to each output, shaped like ``z``."""
        return self.apply(x.abs(), weight.abs(), None if bias is None else bias.abs())


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """A fully connected layer, weight ``(out, in)``, on the last dimension of x."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``."""
        return F.linear(x, weight, bias)

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``grad @ weight``, of which a gradient takes the conjugate."""
        return grad.to(weight.dtype).matmul(weight.conj()).to(x.dtype)

    def scaled(self, scale: Tensor, shift: Tensor) -> "Dense":
        """Return the map followed by ``z * scale + shift`` per output feature."""
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=self.weight * scale[:, None], bias=bias)

    def has_samples(self, x: Tensor) -> bool:
        """Return whether the first dimension of an input is that of the samples."""
        return x.dim() > 1

    def unit_axes(self, z: Tensor) -> tuple[int, ...]:
        """Return the dimension of the output features."""
        return (z.dim() - 1,)

    def as_bias(self, values: Tensor, z: Tensor) -> Tensor | None:
        """Return what is added to ``z`` as a bias, None if it is not one number for each unit."""
        bias = super().as_bias(values, z)
        return None if bias is None else bias.reshape(-1)


@dataclass(frozen=True)
class Pad:
    """A padding of the trailing dimensions that comes before a convolution."""

    amounts: tuple[int, ...]
    mode: str = "constant"

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` padded; constant padding is with zeros."""
        return F.pad(x, self.amounts, mode=self.mode)

    def then(self, other: "Pad") -> "Pad | None":
        """Return this padding and another after it as one; None where they are not one of zeros."""
        amounts = tuple(map(sum, zip_longest(self.amounts, other.amounts, fillvalue=0)))
        of_zeros = self.mode == other.mode == "constant"
        return Pad(amounts) if of_zeros and min(self.amounts + other.amounts) >= 0 else None

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a padded tensor."""
        added = [
            low + high for low, high in zip(self.amounts[::2], self.amounts[1::2], strict=True)
        ]
        kept = len(shape) - len(added)
        padded = (size + more for size, more in zip(shape[kept:], reversed(added), strict=True))
        return (*shape[:kept], *padded)


@dataclass(frozen=True, eq=False)
class Convolution(Affine):
    """A convolution or transposed convolution over 1 to 3 dimensions, after an optional padding.

    A padding that repeats the input counts each copy as an input of its own, and their relevance
    is summed.
    """

    dims: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0, 0)
    pad: Pad | None = None

    def can_pad(self, pad: Pad) -> bool:
        """Return whether a padding before it can be part of it: not one that adds samples."""
        return self.pad is None and not any(pad.amounts[2 * (self.dims + 1) :])

    def has_samples(self, x: Tensor) -> bool:
        """Return whether the first dimension of an input is that of the samples."""
        return x.dim() == self.dims + 2

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of the padded input."""
        if self.pad is not None:
            x = self.pad(x)
        if self.transposed:
            return TRANSPOSED[self.dims](
                x,
                weight,
                bias,
                self.stride,
                self.padding,
                self.output_padding[: self.dims],
                self.groups,
                self.dilation,
            )
        return CONVOLUTIONS[self.dims](
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the transposed convolution of ``grad``, folded back over the padding."""
        batched = x if x.dim() == self.dims + 2 else x.unsqueeze(0)
        grad = grad.reshape(batched.shape[:1] + grad.shape[-self.dims - 1 :])
        padded = batched if self.pad is None else _unread(batched, self.pad.shape(batched.shape))
        result: Tensor = torch.ops.aten.convolution_backward(
            grad.to(weight.dtype),
            padded.to(weight.dtype),
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding[: self.dims],
            self.groups,
            (True, False, False),
        )[0]
        if self.pad is not None:
            with torch.enable_grad():
                point = torch.zeros_like(batched, dtype=result.dtype, requires_grad=True)
                result = torch.autograd.grad(self.pad(point), point, result)[0]
        return result.reshape(x.shape).to(x.dtype)

    def vjps(self, grad: Tensor, x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the product with each weight, from one convolution with all their channels."""
        if self.transposed or self.groups != 1 or x.dim() != self.dims + 2:
            return super().vjps(grad, x, weights)
        several = torch.cat(list(weights), 1)
        wide = _unread(x, (len(x), several.shape[1], *x.shape[2:]))
        return self.vjp(grad, wide, several).chunk(len(weights), 1)

    def offset(self, bias: Tensor, z: Tensor) -> Tensor:
        """Return ``bias`` in a shape that broadcasts against the output ``z``."""
        return bias.reshape(-1, *(1,) * self.dims)

    def scaled(self, scale: Tensor, shift: Tensor) -> "Convolution":
        """Return the map followed by ``z * scale + shift`` per output channel."""
        ones = (1,) * self.dims
        if self.transposed:  # weight is (in, out / groups, ...)
            inputs, outputs, *kernel = self.weight.shape
            grouped = self.weight.reshape(self.groups, inputs // self.groups, outputs, *kernel)
            factor = scale.reshape(self.groups, 1, outputs, *ones)
            weight = (grouped * factor).reshape(self.weight.shape)
        else:
            weight = self.weight * scale.reshape(-1, 1, *ones)
        bias = shift if self.bias is None else self.bias * scale + shift
        return replace(self, weight=weight, bias=bias)

    def unit_axes(self, z: Tensor) -> tuple[int, ...]:
        """Return the dimension of the output channels."""
        return (z.dim() - self.dims - 1,)

    def as_bias(self, values: Tensor, z: Tensor) -> Tensor | None:
        """Return what is added to ``z`` as a bias, None if it is not one number for each unit."""
        bias = super().as_bias(values, z)
        return None if bias is None else bias.reshape(-1)


def _unread(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of which only shape, dtype, device and layout matter, never its values."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout(x))


@dataclass(frozen=True, eq=False)
class AveragePool(Affine):
    """An average pool: output k has the weight ``weight[k]`` on each element of its window."""

    kernel: tuple[int, ...] | None  # None: adaptive
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    output_size: tuple[int, ...] = ()

    def has_samples(self, x: Tensor) -> bool:
        """Return whether the first dimension of an input is that of the samples."""
        return x.dim() == len(self.kernel or self.output_size) + 2

    def pool(self, x: Tensor) -> Tensor:
        """Return the average pool of ``x``."""
        dims = len(self.kernel or self.output_size)
        if self.kernel is None:
            result: Tensor = ADAPTIVE[dims](x, self.output_size)
            return result
        args = (
            self.kernel,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )
        if dims == 1:
            return F.avg_pool1d(x, *args)
        return (F.avg_pool2d if dims == 2 else F.avg_pool3d)(x, *args, self.divisor)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the sum of each window times its weight."""
        z = self.pool(x)
        return z if weight is self.weight else z * (weight / self.weight)


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """Batch norm in eval mode: ``x * weight + bias`` per channel (dimension 1)."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x * weight + bias``."""
        z = x * self._per_channel(weight, x)
        return z if bias is None else z + self._per_channel(bias, x)

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``grad * weight``."""
        return (grad * self._per_channel(weight, x)).to(x.dtype)

    def offset(self, bias: Tensor, z: Tensor) -> Tensor:
        """Return ``bias`` in a shape that broadcasts against the output ``z``."""
        return self._per_channel(bias, z)

    @staticmethod
    def _per_channel(values: Tensor, x: Tensor) -> Tensor:
        return values.reshape(1, -1, *(1,) * (x.dim() - 2))


@dataclass(frozen=True, eq=False)
class Contraction(Affine):
    """A product with weights in any dimensions, ``einsum`` of x and the weights.

    A dimension of x or of the weights may have the size 1, and is then repeated.
    """

    x_dims: tuple[int, ...]  # in the sublist form of torch.einsum
    weight_dims: tuple[int, ...]
    z_dims: tuple[int, ...]

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the product, and the bias added to it."""
        z = torch.einsum(x, [*self.x_dims], weight, [*self.weight_dims], [*self.z_dims])
        return z if bias is None else z + bias

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the product of ``grad`` and the weights over the dimensions of z."""
        if len({*self.x_dims}) < len(self.x_dims):  # a diagonal
            return super().vjp(grad, x, weight)
        known = [d for d in self.x_dims if d in (*self.z_dims, *self.weight_dims)]
        grad = grad.to(weight.dtype)
        product = torch.einsum(grad, [*self.z_dims], weight, [*self.weight_dims], known)
        sizes = iter(product.shape)
        product = product.reshape([next(sizes) if d in known else 1 for d in self.x_dims])
        repeated = [i for i, n in enumerate(x.shape) if n == 1 < product.shape[i]]
        product = product.sum(repeated, keepdim=True) if repeated else product
        if product.shape != x.shape:
            product = product.expand(x.shape).contiguous()  # which may be written to
        return product.to(x.dtype)

    def unit_axes(self, z: Tensor) -> tuple[int, ...]:
        """Return the dimensions of the output that the weights have too."""
        return tuple(i for i, d in enumerate(self.z_dims) if d in self.weight_dims)


@dataclass(frozen=True, eq=False)
class Grouped(Affine):
    """Products of groups of rows with a matrix each, as of tokens with that of their expert."""

    sizes: tuple[int, ...]  # of the groups; the last one is of rows without a matrix

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the product of each row with the matrix of its group."""
        return self._by_groups(x.expand(sum(self.sizes), -1), weight)

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the product of each row of ``grad`` with the transposed matrix of its group."""
        return self._by_groups(grad.to(weight.dtype), weight.mT).to(x.dtype)

    def _by_groups(self, rows: Tensor, matrices: Tensor) -> Tensor:
        *groups, rest = torch.split(rows, list(self.sizes))
        products = [group @ matrix for group, matrix in zip(groups, matrices, strict=True)]
        return torch.cat([*products, rest.new_zeros(len(rest), matrices.shape[-1])])


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """A weighted sum of several terms, stacked along dimension 0 of x and of the weights."""

    reduces: bool = False  # the terms are elements of one tensor

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the weighted sum over dimension 0."""
        z = (x * weight).sum(0)
        return z if bias is None else z + bias

    def vjp(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``grad`` times the weight for every term."""
        return (grad * weight).to(x.dtype)
