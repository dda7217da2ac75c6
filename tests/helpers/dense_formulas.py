r"""Dense float64 formulas of the propagation rules, written from the papers, to judge fast code by.

Plain matrices and sums over one example at a time. Nothing of the package is imported, and no
formula uses automatic differentiation or a convolution.

Conventions, for every function here:

- ``x`` (layer input), ``R`` (relevance of the layer's output) and the result (relevance of the
  layer's input) are flattened float64 vectors of one example; `batch` does the flattening.
- j numbers inputs, k outputs. ``W[k, j]`` is :math:`w_{jk}`, and the contribution of input j to
  output k is ``c[k, j] = W[k, j] * x[j]``; :math:`z_k = \sum_j c_{jk} + b_k`.
- :math:`v^+ = \max(v, 0)`, :math:`v^- = \min(v, 0)`. For inputs of either sign
  :math:`c^+ = x^+ w^+ + x^- w^-` and :math:`c^- = x^+ w^- + x^- w^+`.
- ``s`` is the stabilizer: it maps the vector of all denominators of one example to the vector one
  divides by. A rule with two sums (gamma, alpha-beta) has two such vectors, stabilized apart.
- A message with denominator 0 is 0 where its numerator or its relevance is 0; other poles stay.
- Zero padding adds no inputs. Any other padding mode repeats inputs, and each copy is an input of
  its own (with its own bounds in the box rule, its own count in the flat rule) whose relevance is
  added to that of the original afterwards.

Sources: Bach et al. 2015, doi:10.1371/journal.pone.0130140; Montavon et al. 2017 (deep Taylor
decomposition), doi:10.1016/j.patcog.2016.11.008; Montavon et al. 2019 (layer-wise relevance
propagation: an overview, ch. 10), doi:10.1007/978-3-030-28954-6_10; Andéol et al. 2021,
arXiv:2106.04923; Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Stabilizer = Callable[[Tensor], Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """An affine layer ``W @ pad(x) + b``."""

    W: Tensor
    b: Tensor
    connections: Tensor  # like W: True where a weight is, whatever its value
    P: Tensor | None = None  # 0/1, maps the input to the padded input; None: nothing is repeated

    def pad(self, x: Tensor) -> Tensor:
        """Repeat the inputs that the padding repeats."""
        return x if self.P is None else self.P @ x

    def fold(self, R: Tensor) -> Tensor:
        """Add the relevance of every copy to that of its original."""
        return R if self.P is None else self.P.T @ R

    def contributions(self, x: Tensor) -> Tensor:
        """c: what each (padded) input adds to each output."""
        return self.W * self.pad(x)


# Matrices of modules, found by probing a float64 copy


def dense(module: nn.Module, input_shape: Shape) -> tuple[Tensor, Tensor]:
    """The matrix and bias of an affine module, as a map from the unpadded input."""
    layer = dense_layer(module, input_shape)
    return (layer.W if layer.P is None else layer.W @ layer.P), layer.b


def dense_layer(module: nn.Module, input_shape: Shape) -> Layer:
    """The layer that an affine module is on inputs of ``input_shape``, batch dimension left out.

    Statistics are those of evaluation mode. Only the module's own ``forward`` is called, on copies.
    """
    affine = _copy(module)
    P = None
    if getattr(affine, "padding_mode", "zeros") != "zeros":
        P, input_shape = _padding(affine, input_shape)
        affine.padding_mode, affine.padding = "zeros", (0,) * len(affine.kernel_size)
    n = math.prod(input_shape)
    b = _probe(affine, torch.zeros(1, n), input_shape)[0]

    # A copy without the bias gives each weight exactly, where f(e_j) - f(0) would round.
    linear = _copy(affine)
    linear.bias = None
    if getattr(linear, "running_mean", None) is not None:
        linear.running_mean.zero_()
    W = _probe(linear, torch.eye(n), input_shape).T

    if getattr(linear, "weight", None) is not None:
        linear.weight.data.fill_(1.0)
    connections = _probe(linear, torch.eye(n), input_shape).T != 0

    x = torch.linspace(-1, 2, n, dtype=torch.float64).sin()
    if not torch.allclose(_probe(affine, x[None], input_shape)[0], W @ x + b):
        raise ValueError(f"{module} is not affine on inputs of shape {input_shape}")
    return Layer(W, b, connections, P)


def _copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("cpu", torch.float64).eval().requires_grad_(False)


def _probe(module: nn.Module, rows: Tensor, input_shape: Shape) -> Tensor:
    outputs = module.forward(rows.double().reshape(-1, *input_shape))
    return outputs.flatten(1)


def _padding(conv: nn.Module, input_shape: Shape) -> tuple[Tensor, Shape]:
    """P and the padded shape of a convolution that pads with copies of its inputs."""
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        widths = [(t // 2, t - t // 2) for t in total]
    elif conv.padding == "valid":
        widths = [(0, 0)] * len(conv.kernel_size)
    else:
        widths = [(p, p) for p in conv.padding]
    mode = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[conv.padding_mode]
    n = math.prod(input_shape)
    source = np.pad(np.arange(n).reshape(input_shape), [(0, 0), *widths], mode=mode)
    P = torch.zeros(source.size, n, dtype=torch.float64)
    P[torch.arange(source.size), torch.from_numpy(source.ravel())] = 1.0
    return P, source.shape


# Rules


def _positive(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def _negative(v: Tensor) -> Tensor:
    return v.clamp(max=0)


def _share(numerators: Tensor, denominators: Tensor, R: Tensor) -> Tensor:
    """sum_k numerators_jk / denominators_k * R_k."""
    d, R = denominators[:, None], R[:, None]
    nothing = (d == 0) & ((numerators == 0) | (R == 0))
    messages = torch.where(nothing, 0.0, numerators * R / d)
    return messages.sum(0)


def zero(layer: Layer, x: Tensor, R: Tensor, s: Stabilizer) -> Tensor:
    """LRP-0, c_jk / s(z_k). Bach et al. 2015."""
    c = layer.contributions(x)
    return layer.fold(_share(c, s(c.sum(1) + layer.b), R))


def epsilon(
    layer: Layer, x: Tensor, R: Tensor, s: Stabilizer, epsilon: float, signed: bool = True
) -> Tensor:
    """c_jk / s(z_k + epsilon sign z_k), or s(z_k + epsilon). Bach et al. 2015."""
    c = layer.contributions(x)
    z = c.sum(1) + layer.b
    shifted = z + epsilon * _sign(z) if signed else z + epsilon
    return layer.fold(_share(c, s(shifted), R))


def gamma(
    layer: Layer,
    x: Tensor,
    R: Tensor,
    s: Stabilizer,
    gamma: float,
    bias: Literal["scaled", "captum"] = "scaled",
) -> Tensor:
    """(c + gamma c^+)_jk over their sum where z_k > 0, the same with c^- where z_k < 0, else 0.

    The bias is one more contribution, or with ``bias="captum"`` is added as it is.
    Montavon et al. 2019, ch. 10.2.3; Andéol et al. 2021 for inputs of either sign.
    """
    c, b = layer.contributions(x), layer.b
    z = c.sum(1) + b
    g_b = gamma if bias == "scaled" else 0.0

    up = c + gamma * _positive(c)
    up_sum = up.sum(1) + b + g_b * _positive(b)
    down = c + gamma * _negative(c)
    down_sum = down.sum(1) + b + g_b * _negative(b)

    R_up = _share(up, s(up_sum), torch.where(z > 0, R, 0.0))
    R_down = _share(down, s(down_sum), torch.where(z < 0, R, 0.0))
    return layer.fold(R_up + R_down)


def alpha_beta(
    layer: Layer, x: Tensor, R: Tensor, s: Stabilizer, alpha: float, beta: float
) -> Tensor:
    """alpha c_jk^+ / s(p_k) - beta c_jk^- / s(n_k), p and n the sums. Bach et al. 2015."""
    c, b = layer.contributions(x), layer.b
    p, n = _positive(c), _negative(c)
    result = alpha * _share(p, s(p.sum(1) + _positive(b)), R)
    if beta:  # beta = 0 leaves the negative part out, poles and all
        result = result - beta * _share(n, s(n.sum(1) + _negative(b)), R)
    return layer.fold(result)


def z_plus(layer: Layer, x: Tensor, R: Tensor, s: Stabilizer) -> Tensor:
    """c_jk^+ / s(p_k). Montavon et al. 2017; for inputs of either sign Bach et al. 2015."""
    return alpha_beta(layer, x, R, s, alpha=1.0, beta=0.0)


def z_box(
    layer: Layer, x: Tensor, R: Tensor, s: Stabilizer, low: Tensor | float, high: Tensor | float
) -> Tensor:
    """(x_j w_jk - l_j w_jk^+ - h_j w_jk^-) over their sum; the bias cancels.

    ``low`` and ``high``: flattened bounds of every unpadded input, or one number.
    Montavon et al. 2017.
    """
    l_j, h_j = layer.pad(low + torch.zeros_like(x)), layer.pad(high + torch.zeros_like(x))
    q = layer.contributions(x) - l_j * _positive(layer.W) - h_j * _negative(layer.W)
    return layer.fold(_share(q, s(q.sum(1)), R))


def w_square(layer: Layer, x: Tensor, R: Tensor, s: Stabilizer) -> Tensor:
    """w_jk^2 / s(sum_j w_jk^2 + b_k^2). Montavon et al. 2017, who have no bias; as in zennit."""
    return layer.fold(_share(layer.W**2, s((layer.W**2).sum(1) + layer.b**2), R))


def flat(layer: Layer, x: Tensor, R: Tensor, s: Stabilizer) -> Tensor:
    """1 / s(number of inputs connected to k). Lapuschkin et al. 2019."""
    ones = layer.connections.double()
    return layer.fold(_share(ones, s(ones.sum(1)), R))


def pass_through(layer: Layer | None, x: Tensor, R: Tensor, s: Stabilizer) -> Tensor:
    """R as it is (identity rule of activations). Bach et al. 2015."""
    return R.clone()


def batch(
    rule: Callable[..., Tensor], layer: Layer | None, x: Tensor, R: Tensor, *args, **kwargs
) -> Tensor:
    """``rule(layer, x, R, *args, **kwargs)`` of each example; float64, shaped like ``x``."""
    xs, Rs = (v.detach().to("cpu", torch.float64).flatten(1) for v in (x, R))
    rows = [rule(layer, x, R, *args, **kwargs) for x, R in zip(xs, Rs, strict=True)]
    return torch.stack(rows).reshape(x.shape)


# Stabilizers, on the denominators z of one example


def _sign(z: Tensor) -> Tensor:
    return torch.where(z < 0, -1.0, 1.0).to(z)


def _rms(z: Tensor) -> Tensor:
    return (z**2).mean().sqrt()


def identity(z: Tensor) -> Tensor:
    return z


def signed(e: float) -> Stabilizer:
    return lambda z: z + e * _sign(z)


def signed_relative(e: float) -> Stabilizer:
    return lambda z: z + e * _rms(z) * _sign(z)


def quadratic_mean(e: float, floor: float = 1e-9) -> Stabilizer:
    return lambda z: z + e * _rms(z) + floor


def additive(e: float) -> Stabilizer:
    return lambda z: z + e


def clip(e: float) -> Stabilizer:
    return lambda z: _sign(z) * z.abs().clamp(min=e)
