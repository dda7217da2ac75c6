"""Gates, normalisation, products and quotients, against dense formulas in relevance form.

Each operation stands between two linear layers, and has to give the relevance that the papers'
messages give, without a fallback, however it is spelled; gradient x input has to give another.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from tests.helpers import dense_attention as ra
from tests.helpers.agreement import EXACT, TARGET, assert_differs, drawn, explained, without_biases
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Sandwich(nn.Module):
    """A linear layer, an operation, a linear layer."""

    def __init__(self, make, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias)
        self.middle = make()
        self.last = nn.LazyLinear(3, bias)
        self.last(self.middle(torch.randn(1, *SHAPE)).flatten(1))
        for norm in (m for m in self.middle.modules() if "Norm" in type(m).__name__):
            for parameter in norm.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)).flatten(1))


SHAPE = (4, 3, 6)
IMAGES = drawn(2, *SHAPE, seed=8)
EPS = 0.1


def passed(middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    """One input for one output: all of it. For a gate or divisor held constant too."""
    return R


def halves(middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    return torch.cat([R / 2, R / 2], -1)


def first_half(middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    return torch.cat([R, torch.zeros_like(R)], -1)


def of_addcmul(middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    """a + b d: the summand gets its part, the factors half each of the rest."""
    a, b, d = h.chunk(3, -1)
    R_a, R = ra.add(a, b * d, R)
    return torch.cat([R_a, R / 2, R / 2], -1)


def of_layer_norm(middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    width = h.shape[-1]
    w, b = getattr(middle, "weight", None), getattr(middle, "bias", None)
    w = torch.ones(width, dtype=h.dtype) if w is None else w.flatten()
    b = torch.zeros(width, dtype=h.dtype) if b is None else b.flatten()
    if w.numel() != width:  # over the last two dimensions
        x, R = h.flatten(1), R.flatten(1)
        return ra.of_rows(ra.normalisation, x, R, EPS, w, b).reshape(h.shape)
    return ra.of_rows(ra.normalisation, h, R, EPS, w, b)


def of_groups(groups: int, middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    """Channels in groups, each normalised as one row, with weights for each channel."""
    w, b = (p[:, None, None].expand(h.shape) for p in (middle.weight, middle.bias))
    rows = zip(*(t.reshape(groups, -1) for t in (h, R, w, b)), strict=True)
    out = [ra.normalisation(h, R, EPS, w, b) for h, R, w, b in rows]
    return torch.stack(out).reshape(h.shape)


def of_pixels(formula, middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
    """A formula of matrices, over the last two dimensions."""
    return torch.stack([formula(x, r) for x, r in zip(h, R, strict=True)])


class Gate(nn.Module):
    """Squeeze-and-excitation, written with functions, modules, or in place."""

    def __init__(self, gate, spelling: str = "x * g") -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Linear(4, 2), nn.Linear(2, 4), gate
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(self.up(F.relu(self.down(x.mean((2, 3))))))[..., None, None]
        if self.spelling == "x *= g":
            x *= g
            return x
        return {
            "x * g": lambda: x * g,
            "x.mul_(g)": lambda: x.mul_(g),
            "x * (g * g)": lambda: x * (g * torch.sigmoid(x)),
            "g.expand_as(x) * x": lambda: g.expand_as(x) * x,
            "einsum": lambda: torch.einsum("nchw,nc->nchw", x, g[..., 0, 0]),
        }[self.spelling]()


def rms(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True) + EPS


def variance(x: Tensor) -> Tensor:
    return x.var(-1, unbiased=False, keepdim=True) + EPS


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def product(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return a * b


def in_place_product(x: Tensor) -> Tensor:
    a, b = x.clone().chunk(2, -1)
    return a.contiguous().mul_(b)


def quotient(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return a / (1 + b * b)


def triple(x: Tensor) -> Tensor:
    return torch.einsum("nchi,nchj,nchk->ncijk", *x.chunk(3, -1))


def calls(function):
    return partial(Calls, function)


MIDDLES = {
    # squeeze-and-excitation
    "gate-sigmoid": (partial(Gate, torch.sigmoid), passed),
    "gate-F.hardsigmoid": (partial(Gate, F.hardsigmoid), passed),
    "gate-expand_as": (partial(Gate, torch.sigmoid, "g.expand_as(x) * x"), passed),
    "gate-Sigmoid": (partial(Gate, nn.Sigmoid(), "x.mul_(g)"), passed),
    "gate-Hardsigmoid": (partial(Gate, nn.Hardsigmoid(), "einsum"), passed),
    "gate-of-two": (partial(Gate, torch.sigmoid, "x * (g * g)"), passed),
    "gate-in-place": (partial(Gate, nn.Hardsigmoid(inplace=True), "x *= g"), passed),
    "gate-softmax": (partial(Gate, nn.Softmax(dim=-1)), passed),
    "torchvision": (partial(SqueezeExcitation, 4, 2), passed),
    "torchvision-hardsigmoid": (
        partial(SqueezeExcitation, 4, 2, nn.SiLU, scale_activation=nn.Hardsigmoid),
        passed,
    ),
    "F.glu": (calls(F.glu), first_half),
    "GLU": (partial(nn.GLU, dim=-1), first_half),
    # normalisation
    "LayerNorm": (partial(nn.LayerNorm, 6, EPS), of_layer_norm),
    "LayerNorm-2d": (partial(nn.LayerNorm, (3, 6), EPS), of_layer_norm),
    "F.layer_norm": (calls(lambda x: F.layer_norm(x, (6,), eps=EPS)), of_layer_norm),
    "layer-norm-sqrt": (calls(lambda x: centred(x) / variance(x).sqrt()), of_layer_norm),
    "layer-norm-rsqrt": (calls(lambda x: centred(x) * variance(x).rsqrt()), of_layer_norm),
    "layer-norm-power": (calls(lambda x: centred(x) / rms(centred(x)) ** 0.5), of_layer_norm),
    "GroupNorm": (partial(nn.GroupNorm, 2, 4, EPS), partial(of_groups, 2)),
    "InstanceNorm": (partial(nn.InstanceNorm2d, 4, EPS, affine=True), partial(of_groups, 4)),
    "RMSNorm": (partial(nn.RMSNorm, 6, EPS), passed),
    "RMSNorm-no-eps": (partial(nn.RMSNorm, 6), passed),
    "rms-norm-rsqrt": (calls(lambda x: x * torch.rsqrt(rms(x))), passed),
    "rms-norm-sqrt": (calls(lambda x: x / rms(x).sqrt()), passed),
    "rms-norm-reciprocal": (calls(lambda x: (1 / torch.sqrt(rms(x))) * x), passed),
    "rms-norm-power": (calls(lambda x: x * rms(x) ** -0.5), passed),
    "rms-norm-torch.pow": (calls(lambda x: x * torch.pow(rms(x), -0.5)), passed),
    "F.normalize": (calls(partial(F.normalize, dim=1)), passed),
    "F.normalize-L1": (calls(partial(F.normalize, p=1.0, dim=-1)), passed),
    "F.local_response_norm": (calls(partial(F.local_response_norm, size=3, alpha=2.0)), passed),
    "LocalResponseNorm": (partial(nn.LocalResponseNorm, 2, 1.5, 0.5), passed),
    # products, powers, quotients
    "a * b": (calls(product), halves),
    "a.mul_(b)": (calls(in_place_product), halves),
    "addcmul": (calls(lambda x: torch.addcmul(*x.chunk(3, -1))), of_addcmul),
    "x ** 2": (calls(lambda x: x**2), passed),
    "x.square": (calls(torch.square), passed),
    "x * x": (calls(lambda x: x * x), passed),
    "einsum-of-three": (calls(triple), partial(of_pixels, ra.triple)),
    "x @ x.mT": (calls(lambda x: x @ x.mT), partial(of_pixels, ra.gram)),
    "a / (1 + b * b)": (calls(quotient), first_half),
    "GELU": (nn.GELU, passed),
    "LayerNorm-GELU": (
        lambda: nn.Sequential(nn.LayerNorm(6, EPS), nn.GELU()),
        lambda middle, h, R: of_layer_norm(middle[0], h, R),
    ),
}


@torch.no_grad()
def expected_between(model: Sandwich, formula) -> Tensor:
    first, middle, last = model.first, model.middle, model.last
    rows = []
    for x in IMAGES:
        h = first(x)
        a = middle(h[None].clone())[0]
        z = last(a.flatten())
        R = torch.zeros_like(z).index_fill(0, torch.tensor(TARGET), 1.0) * z
        R = ra.linear(a.flatten(), last.weight, last.bias, R).reshape(a.shape)
        rows.append(ra.linear(x, first.weight, first.bias, formula(middle, h, R)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", MIDDLES)
def test_operation_between_linear_layers(name) -> None:
    make, formula = MIDDLES[name]
    model = build(partial(Sandwich, make))
    actual = explained(model, IMAGES)
    assert relative_error(actual, expected_between(model, formula)) <= EXACT
    assert_differs(actual, gradient_x_input(model, IMAGES, TARGET))


@pytest.mark.parametrize("name", MIDDLES)
def test_without_biases_nothing_is_lost(name) -> None:
    model = without_biases(build(partial(Sandwich, MIDDLES[name][0], bias=False)))
    with torch.no_grad():
        score = model(IMAGES)[:, TARGET]
    assert relative_error(explained(model, IMAGES).sum((1, 2, 3)), score) <= EXACT
    assert_differs(gradient_x_input(model, IMAGES, TARGET).sum((1, 2, 3)), score)


def test_a_product_of_three_by_the_operator_is_two_products() -> None:
    """(a b) d: half to d, and half of the other half to each of a and b. AttnLRP, prop. 3.2."""

    def quarters(middle: nn.Module, h: Tensor, R: Tensor) -> Tensor:
        return torch.cat([R / 4, R / 4, R / 2], -1)

    def of_operator(x: Tensor) -> Tensor:
        a, b, d = x.chunk(3, -1)
        return a * b * d

    model = build(partial(Sandwich, calls(of_operator)))
    actual = explained(model, IMAGES)
    assert relative_error(actual, expected_between(model, quarters)) <= EXACT
    thirds = expected_between(model, lambda middle, h, R: torch.cat([R / 3] * 3, -1))
    assert_differs(actual, thirds)
