"""Agreement with the ``lxt`` package where it implements the same rule.

One model is run twice: with torch's operations, explained by this package; and with lxt's explicit
functions, whose backward pass carries relevance from the score as its seed. lxt is only called, and
is installed by hand: ``pip install --no-deps lxt==2.1``.

The same by meaning, and compared: linear layer, addition, mean, softmax, matrix product, product of
two data tensors, layer norm, ``F.normalize``, RMS norm, and activations by lxt's identity rule.

Not the same, and how it is kept out:

- ``lf.mul2`` halves relevance between a signal and its gate; here the signal takes all. A gate is
  detached for lxt, which is its way to say so.
- ``lf.matmul`` gives half to each factor even if one is detached; under ``attention="cp"`` values
  take all. ``lf.linear_epsilon`` with the attention weights for weights stands in for it.
- lxt adds epsilon to z whatever the sign of z. Epsilon is tiny here, where the two agree.
- ``lf.rms_norm_identity`` computes in float32, hence the tolerance of its test.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.agreement import TARGET, assert_differs, drawn, explained
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

lf = pytest.importorskip("lxt.explicit.functional", reason="pip install --no-deps lxt")
pytestmark = pytest.mark.lxt

TINY = 1e-15
CLOSE = 1e-9  # lxt divides by z + TINY
X = drawn(2, 5, 8, seed=1)


class Plain:
    """Torch's operations."""

    linear, add, matmul, mul = F.linear, torch.add, torch.matmul, torch.mul
    softmax, gelu, gate = partial(torch.softmax, dim=-1), F.gelu, torch.sigmoid
    weigh = torch.matmul

    @staticmethod
    def mean(x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


class Lxt:
    """The same with lxt's, or with what its user would write."""

    linear = partial(lf.linear_epsilon, epsilon=TINY)
    add = partial(lf.add2, epsilon=TINY)
    matmul = partial(lf.matmul, epsilon=TINY)
    mul, softmax = lf.mul2, partial(lf.softmax, dim=-1)
    weigh = matmul

    @staticmethod
    def mean(x: Tensor) -> Tensor:
        return lf.mean(x, 1, True, TINY)

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return lf.mul2(x, (F.gelu(x) / x).detach())

    @staticmethod
    def gate(x: Tensor) -> Tensor:
        return torch.sigmoid(x).detach()


class LxtCp(Lxt):
    """Attention weights that are constant."""

    @staticmethod
    def weigh(A: Tensor, V: Tensor) -> Tensor:
        pairs = zip(A.detach(), V, strict=True)
        return torch.stack([lf.linear_epsilon(v.mT, a, epsilon=TINY).mT for a, v in pairs])


class WrongSoftmax(Lxt):
    """The softmax propagates relevance as if it were a gradient."""

    softmax = partial(torch.softmax, dim=-1)


class WrongGate(Lxt):
    """The gate takes half."""

    gate = torch.sigmoid


def apply(layer: nn.Linear, x: Tensor, ops) -> Tensor:
    return ops.linear(x, layer.weight, layer.bias)


class Attention(nn.Module):
    """One head, causal, with a residual connection and scores of the tokens together."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor, ops=Plain) -> Tensor:
        q, k, v = (apply(layer, x, ops) for layer in (self.q, self.k, self.v))
        scores = ops.mul(ops.matmul(q, k.transpose(-1, -2)), 1 / math.sqrt(8))
        unseen = torch.ones(5, 5, dtype=torch.bool).triu(1)
        o = ops.weigh(ops.softmax(scores.masked_fill(unseen, -math.inf)), v)
        y = ops.add(x, apply(self.out, o, ops))
        return apply(self.head, y.flatten(1), ops)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    # lf.layer_norm, whose epsilon is no argument
    return lf.layer_norm_grad_fn.apply(x, norm.weight, norm.bias, norm.eps, TINY)


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Mlp(nn.Module):
    """A norm, GELU, a product, a gate, a residual connection, a mean over the tokens."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.norm = norm()
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        self.up, self.factor, self.signal, self.gate = (nn.Linear(8, 12) for _ in range(4))
        self.down, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, ops=Plain, norm=None) -> Tensor:
        h = self.norm(x) if norm is None else norm(self.norm, x)
        product = ops.mul(ops.gelu(apply(self.up, h, ops)), apply(self.factor, h, ops))
        gated = ops.mul(apply(self.signal, h, ops), ops.gate(apply(self.gate, h, ops)))
        y = ops.add(x, apply(self.down, ops.add(product, gated), ops))
        return apply(self.head, ops.mean(y)[:, 0], ops)


NORMS = {
    "layer_norm": (partial(nn.LayerNorm, 8), layer_norm, CLOSE),
    "rms_norm": (
        partial(nn.RMSNorm, 8, 1e-5),
        lambda norm, x: lf.rms_norm_identity(x, norm.weight, norm.eps),
        1e-4,
    ),
    "normalize": (Normalize, lambda norm, x: lf.normalize(x, dim=-1), CLOSE),
}


def of_lxt(model: nn.Module, **how) -> Tensor:
    """What arrives at the input when the target's output is sent backwards as its relevance."""
    x = X.clone().requires_grad_()
    z = model(x, **how)
    R = torch.zeros_like(z)
    R[:, TARGET] = z[:, TARGET].detach()
    (relevance,) = torch.autograd.grad(z, x, R)
    return relevance


@pytest.mark.parametrize(("rule", "ops"), [("attnlrp", Lxt), ("cp", LxtCp)], ids=["attnlrp", "cp"])
def test_attention(rule, ops) -> None:
    model = build(Attention)
    torch.testing.assert_close(model(X, ops), model(X), rtol=1e-12, atol=1e-12)
    actual = explained(model, X, rule)
    assert relative_error(actual, of_lxt(model, ops=ops)) <= CLOSE
    assert_differs(actual, of_lxt(model, ops=LxtCp if ops is Lxt else Lxt))
    assert_differs(actual, of_lxt(model, ops=WrongSoftmax))
    assert_differs(actual, gradient_x_input(model, X, TARGET))


@pytest.mark.parametrize("name", NORMS)
def test_mlp(name) -> None:
    make, norm, tolerance = NORMS[name]
    model = build(partial(Mlp, make))
    actual = explained(model, X)
    assert relative_error(actual, of_lxt(model, ops=Lxt, norm=norm)) <= tolerance
    assert_differs(actual, of_lxt(model, ops=WrongGate, norm=norm))
    assert_differs(actual, gradient_x_input(model, X, TARGET))


def test_layer_norm_by_its_own_function() -> None:
    """With lxt's own epsilon, 1e-6."""
    model = build(partial(Mlp, partial(nn.LayerNorm, 8)))

    def norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return lf.layer_norm(x, norm.weight, norm.bias, norm.eps)

    assert relative_error(explained(model, X), of_lxt(model, ops=Lxt, norm=norm)) <= 1e-4
