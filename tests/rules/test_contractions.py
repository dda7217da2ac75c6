"""Products with weights as affine maps: against torch's own products, and against linear layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerFilter, plan, presets, types
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.rules.affine import Affine, Dense, Grouped
from captum_lrp_stab.rules.contractions import apart, is_layer, of_call
from tests.helpers.layers import RULES, STABILIZERS, relative_error
from tests.helpers.networks import build

GENERATOR = torch.Generator().manual_seed(0)


def data(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=GENERATOR)


def weights(*shape: int) -> Tensor:
    return nn.Parameter(data(*shape))


def is_weights(t: Tensor) -> bool:
    """Parameters are weights, everything else is data."""
    return isinstance(t, nn.Parameter)


def called(func: Callable[..., Any], args: Any, kwargs: Any) -> TorchCall:
    call = TorchCall(func, args, kwargs)
    call.data = tuple(t for t in call.tensors if not is_weights(t))
    return call


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
CALLS: dict[str, Call] = {
    "mm": (torch.mm, (data(3, 4), weights(4, 5)), {}),
    "mm, left": (torch.mm, (weights(5, 3), data(3, 4)), {}),
    "matmul, a batch": (torch.matmul, (data(2, 3, 4), weights(4, 5)), {}),
    "matmul, a vector": (torch.matmul, (data(4), weights(4, 5)), {}),
    "matmul with a vector": (torch.matmul, (data(2, 3, 4), weights(4)), {}),
    "matmul, left, with a vector": (torch.matmul, (weights(3), data(2, 3, 4)), {}),
    "matmul by name": (torch.matmul, (data(3, 4),), {"other": weights(4, 5)}),
    "reflected": (Tensor.__rmatmul__, (data(4, 5), weights(3, 4)), {}),
    "batches": (torch.matmul, (data(2, 3, 4), weights(2, 4, 5)), {}),
    "one in a batch": (torch.matmul, (data(1, 3, 4), weights(2, 4, 5)), {}),
    "one batch of two": (torch.matmul, (data(6, 2, 3, 4), weights(2, 4, 5)), {}),
    "one matrix for a batch": (torch.matmul, (data(6, 2, 3, 4), weights(1, 4, 5)), {}),
    "left, a batch": (torch.matmul, (weights(5, 3), data(2, 3, 4)), {}),
    "bmm": (torch.bmm, (data(2, 3, 4), weights(2, 4, 5)), {}),
    "mv": (torch.mv, (data(3, 4), weights(4)), {}),
    "mv, left": (torch.mv, (weights(3, 4), data(4)), {}),
    "dot": (torch.dot, (data(4), weights(4)), {}),
    "inner": (torch.inner, (data(2, 3, 4), weights(5, 4)), {}),
    "vecdot": (torch.linalg.vecdot, (data(2, 3, 4), weights(4)), {}),
    "addmm": (torch.addmm, (weights(5), data(3, 4), weights(4, 5)), {"beta": 2, "alpha": 0.5}),
    "addmm, a matrix": (torch.addmm, (weights(3, 5), data(3, 4), weights(4, 5)), {}),
    "addmm without": (torch.addmm, (weights(5), data(3, 4), weights(4, 5)), {"beta": 0}),
    "addmv": (torch.addmv, (weights(3), data(3, 4), weights(4)), {}),
    "baddbmm": (torch.baddbmm, (weights(2, 1, 5), data(2, 3, 4), weights(2, 4, 5)), {}),
    "addbmm": (torch.addbmm, (weights(5), data(2, 3, 4), weights(2, 4, 5)), {}),
    "einsum": (torch.einsum, ("bi,io->bo", data(3, 4), weights(4, 5)), {}),
    "einsum, dots": (torch.einsum, ("... i, o i -> ... o", data(2, 3, 4), weights(5, 4)), {}),
    "einsum, dots first": (torch.einsum, ("i...,io->o...", data(4, 2, 3), weights(4, 5)), {}),
    "einsum, heads": (torch.einsum, ("ibh,hnd->ibnd", data(2, 3, 4), weights(4, 5, 6)), {}),
    "einsum, a sum": (torch.einsum, ("bij,ik->bk", data(2, 3, 4), weights(3, 6)), {}),
    "einsum, a diagonal": (torch.einsum, ("bii,ik->bk", data(2, 3, 3), weights(3, 6)), {}),
    "einsum, three": (torch.einsum, ("bi,ij,jk->bk", data(2, 3), weights(3, 6), weights(6, 4)), {}),
    "einsum, no result": (torch.einsum, ("bi,io", data(3, 4), weights(4, 5)), {}),
    "einsum, a list": (torch.einsum, ("bi,io->bo", [data(3, 4), weights(4, 5)]), {}),
    "einsum, numbers": (torch.einsum, (data(3, 4), [0, 1], weights(4, 5), [1, 2], [0, 2]), {}),
    "einsum, numbers alone": (torch.einsum, (data(3, 4), [0, 1], weights(4, 5), [1, 2]), {}),
    "einsum, numbers, dots": (
        torch.einsum,
        (data(7, 3, 4), [..., 1], weights(4, 5), [1, 2], [..., 2]),
        {},
    ),
    "einsum, weights summed": (torch.einsum, ("bi,ij->b", data(4, 2), weights(2, 5)), {}),
    "tensordot": (torch.tensordot, (data(2, 3, 4), weights(3, 4, 5)), {}),
    "tensordot, one": (torch.tensordot, (data(2, 3, 4), weights(4, 5), 1), {}),
    "tensordot, named": (
        torch.tensordot,
        (weights(2, 3, 4), data(4, 2, 5)),
        {"dims": ([0, -1], [1, 0])},
    ),
    "bilinear": (F.bilinear, (data(2, 3), weights(2, 4), weights(5, 3, 4), weights(5)), {}),
    "multi_dot": (torch.linalg.multi_dot, ([data(2, 3), weights(3, 4), weights(4, 5)],), {}),
    "multi_dot, middle": (torch.linalg.multi_dot, ([weights(3), data(3, 4), weights(4, 5)],), {}),
}
DENSE = {"mm", "matmul, a batch", "addmm", "einsum", "einsum, dots", "inner", "mv, left"}


@pytest.mark.parametrize("name", CALLS)
def test_the_map_computes_what_the_call_does(name: str) -> None:
    func, args, kwargs = CALLS[name]
    assert is_layer(called(func, args, kwargs), is_weights)
    op, x = of_call(called(func, args, kwargs))
    if name in DENSE:
        assert isinstance(op, Dense)
    z = func(*args, **kwargs).detach()
    own = op.apply(x, op.weight, op.bias)
    assert own.shape == z.shape
    torch.testing.assert_close(own, z)
    c = data(*z.shape)
    found = op.vjp(c, x, op.weight)
    assert found.shape == x.shape
    torch.testing.assert_close(found.add_(0), Affine.vjp(op, c, x, op.weight))  # may be written to
    magnitude = op.magnitude(x, op.weight, op.bias)
    assert bool((magnitude >= own.abs() - 1e-12).all())


NO_LAYERS: dict[str, Call] = {
    "by element": (torch.einsum, ("bc,c->bc", data(3, 4), weights(4)), {}),
    "outer": (torch.einsum, ("b,c->bc", data(3), weights(4)), {}),
    "mul": (torch.mul, (data(3), weights(3)), {}),
    "two of data": (torch.mm, (data(3, 4), data(4, 5)), {}),
    "the same twice": (torch.einsum, ("bi,bi->b", data(3, 4), data(3, 4)), {}),
    "weights alone": (torch.mm, (weights(3, 4), weights(4, 5)), {}),
    "in place": (Tensor.addmm_, (data(3, 5), data(3, 4), weights(4, 5)), {}),
    "a residual": (torch.addmm, (data(3, 5), data(3, 4), weights(4, 5)), {}),
    "another dimension": (torch.linalg.vecdot, (data(4, 3), weights(4, 1)), {"dim": 0}),
}


@pytest.mark.parametrize("name", NO_LAYERS)
def test_what_is_no_layer(name: str) -> None:
    assert not is_layer(called(*NO_LAYERS[name]), is_weights)


@pytest.mark.parametrize(
    ("func", "shapes"),
    [
        (torch.addmm, ((3, 5), (3, 4), (4, 5))),
        (torch.addmv, ((3,), (3, 4), (4,))),
        (torch.addbmm, ((3, 5), (2, 3, 4), (2, 4, 5))),
        (torch.baddbmm, ((2, 3, 5), (2, 3, 4), (2, 4, 5))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_residual_is_a_layer_and_a_sum(func: Callable[..., Tensor], shapes: Any) -> None:
    *given, last = shapes
    args, kwargs = (*(data(*shape) for shape in given), weights(*last)), {"beta": 3, "alpha": 0.5}
    separate = apart(called(func, args, kwargs), is_weights)
    assert separate is not None
    torch.testing.assert_close(separate(*args, **kwargs), func(*args, **kwargs))
    assert apart(called(func, args, {"beta": 0}), is_weights) is None


# as layers of a network --------------------------------------------------------------------------


class Spelled(nn.Module):
    """A product with weights between two linear layers."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(5, 6), nn.Linear(6, 3)
        self.p = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x).relu(), *self.p).relu()).mean(1)


PAIRS: dict[
    str, tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[tuple[int, ...], ...]]
] = {
    "heads": (
        lambda x, w, b: (torch.einsum("bth,hnd->btnd", x, w) + b).flatten(2),
        lambda x, w, b: F.linear(x, w.flatten(1).T, b.flatten()),
        ((6, 2, 3), (2, 3)),
    ),
    "tokens": (
        lambda x, w, b: w @ x + b[:, None],
        lambda x, w, b: F.linear(x.mT, w, b).mT,
        ((4, 4), (4,)),
    ),
    "experts": (
        lambda x, w, b: torch.baddbmm(b, x.transpose(0, 1), w).transpose(0, 1),
        lambda x, w, b: torch.stack([F.linear(x[:, i], w[i].T, b[i, 0]) for i in range(4)], 1),
        ((4, 6, 6), (4, 1, 6)),
    ),
    "experts with a written bias": (
        lambda x, w, b: (x.transpose(0, 1) @ w + b).transpose(0, 1),
        lambda x, w, b: torch.stack([F.linear(x[:, i], w[i].T, b[i, 0]) for i in range(4)], 1),
        ((4, 6, 6), (4, 1, 6)),
    ),
    "one output": (
        lambda x, w, b: F.linear(x, w, b)[..., None].expand(-1, -1, 6),
        lambda x, w, b: F.linear(x, w[None], b[None]).expand(-1, -1, 6),
        ((6,), ()),
    ),
    "written over a buffer": (
        lambda x, w, b: x.new_zeros(8, 6).addmm_(x.flatten(0, 1), w.T).view(2, 4, 6) + 0 * b,
        lambda x, w, b: F.linear(x, w),
        ((6, 6), (6,)),
    ),
    "written over data": (
        lambda x, w, b: (x * 1).flatten(0, 1).addmm_(x.flatten(0, 1), w.T, alpha=2).view(2, 4, 6),
        lambda x, w, b: x + 2 * F.linear(x, w),
        ((6, 6), (6,)),
    ),
    "a convolution over time": (
        lambda x, w, b: torch.conv_tbc(x.transpose(0, 1), w.permute(2, 1, 0), b, 1).transpose(0, 1),
        lambda x, w, b: F.conv1d(x.mT, w, b, padding=1).mT,
        ((6, 6, 3), (6,)),
    ),
    "a convolution and its bias": (
        lambda x, w, b: F.conv1d(x, w, padding=1) + b.view(1, -1, 1),
        lambda x, w, b: F.conv1d(x, w, b, padding=1),
        ((4, 4, 3), (4,)),
    ),
}
INPUT = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_same_network_with_linear_layers(name: str, rule_name: str) -> None:
    spelled, plain, shapes = PAIRS[name]
    rule = RULES[rule_name].rule(stabilizer=STABILIZERS["signed"][0])
    found = []
    for function in (spelled, plain):
        model = build(lambda f=function: Spelled(f, *shapes))
        rules = model_rules(model, rule)
        for optimize in (True, False):
            lrp = LRP(model, rules, optimize=optimize)
            found.append(lrp.attribute(INPUT, target=1))
    for other in found[1:]:
        assert relative_error(other, found[0]) <= 1e-12


def model_rules(model: nn.Module, rule: Any) -> list[Any]:
    """The rule on every functional layer."""
    names = LayerFilter(model, types.Linear, INPUT)(lambda n: True)
    names = [name for name in names if name not in ("before", "after")]
    return [(names, type(rule), rule.parameters())]


class Experts(nn.Module):
    """Each sample is for the expert that a router chooses."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(6, 8), nn.Linear(8, 3)
        self.w, self.b = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(3, 4))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        ids = self.router(x).argmax(-1)
        return getattr(self, self.way)(x, ids)

    def picked(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.einsum("ni,nio->no", x, self.w[ids]) + self.b[ids]

    def batched(self, x: Tensor, ids: Tensor) -> Tensor:
        return torch.baddbmm(self.b[ids][:, None], x[:, None], self.w[ids])[:, 0]

    def looped(self, x: Tensor, ids: Tensor) -> Tensor:
        z = x.new_zeros(len(x), 4)
        for expert in range(3):
            at = ids == expert
            z[at] = F.linear(x[at], self.w[expert].T, self.b[expert])
        return z

    def grouped(self, x: Tensor, ids: Tensor) -> Tensor:
        order = ids.argsort()
        ends = torch.bincount(ids, minlength=3).cumsum(0).int()
        z = F.grouped_mm(x[order].float(), self.w.float(), offs=ends)
        return z[order.argsort()].to(x.dtype)

    def looped_without_bias(self, x: Tensor, ids: Tensor) -> Tensor:
        z = x.new_zeros(len(x), 4)
        for expert in range(3):
            z[ids == expert] = x[ids == expert] @ self.w[expert]
        return z


SAMPLES = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("preset", [presets.epsilon(0.1), presets.epsilon_plus_flat(0.1)])
@pytest.mark.parametrize(
    ("way", "other", "tolerance"),
    [
        ("picked", "looped", 1e-12),
        ("batched", "looped", 1e-12),
        pytest.param(
            *("grouped", "looped_without_bias", 1e-5),
            marks=pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="since PyTorch 2.10"),
        ),
    ],
)
def test_experts_that_a_router_picks_are_layers(way, other, tolerance, preset) -> None:
    one, two = build(lambda: Experts(way)), build(lambda: Experts(other))
    torch.testing.assert_close(one(SAMPLES), two(SAMPLES), rtol=tolerance, atol=tolerance)
    found, expected = (LRP(m, preset).attribute(SAMPLES, target=1) for m in (one, two))
    assert relative_error(found, expected) <= tolerance
    zero = LRP(one, presets.zero()).attribute(SAMPLES, target=1)
    assert relative_error(found, zero) > 1e-2


def test_a_grouped_product_under_every_rule() -> None:
    """As a map, against its matrix."""
    op = Grouped(data(2, 3, 4), None, (2, 3, 1))
    x, c = data(6, 3), data(6, 4)
    matrices = [op.weight[0]] * 2 + [op.weight[1]] * 3 + [torch.zeros(3, 4).double()]
    torch.testing.assert_close(
        op.apply(x, op.weight, None),
        torch.stack([row @ w for row, w in zip(x, matrices, strict=True)]),
    )
    torch.testing.assert_close(op.vjp(c, x, op.weight), Affine.vjp(op, c, x, op.weight))
    assert op.apply(torch.ones(1, 3).double(), op.weight, None).shape == (6, 4)


@pytest.mark.parametrize(
    ("function", "shape", "is_bias"),
    [
        (lambda x, w, b: x @ w + b, (6,), True),
        (lambda x, w, b: x @ w - b, (1, 1, 6), True),
        (lambda x, w, b: x @ w + b, (1,), True),
        (lambda x, w, b: x @ w + b, (4, 6), False),  # of positions
        (lambda x, w, b: x @ w + b, (4, 1), False),
        (lambda x, w, b: x @ w + b, (2, 1, 1, 6), False),
        (lambda x, w, b: (x @ w + 2.0) + b, (6,), False),
        (lambda x, w, b: x @ w + torch.ones_like(b), (6,), False),
        (lambda x, w, b: b - x @ w, (6,), False),
        (lambda x, w, b: (x @ w).relu() + b, (6,), False),
    ],
)
def test_what_is_added_to_a_layer_may_be_its_bias(function, shape, is_bias: bool) -> None:
    """One number for each unit, of parameters, added to the layer itself."""
    model = build(lambda: Spelled(function, (6, 6), shape))
    if len(shape) == 4:
        model.after = nn.Sequential(nn.Flatten(0, 1), build(lambda: nn.Linear(6, 3)))
    names = {row.name for row in plan(model, INPUT).rows}
    assert names.isdisjoint({"add_0", "add_1", "sub_0"}) == is_bias
