"""An operation that writes over what it reads gives the relevance of the one that does not."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, FlatRule, plan, presets
from captum_lrp_stab.errors import LRPError, ModelError
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([0, 2])
COLUMNS = torch.tensor([[3, 1, 0, 2, 5, 4, 7, 6]] * 3)
MASK = torch.tensor([[True, False, False, True] * 2, [False] * 8, [False, True] * 4])
ONES = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)


def method(name: str, *given: Any, **named: Any) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """A method in both spellings, given constants or a function of the other operand."""

    def call(z: Tensor, other: Tensor, writes: bool) -> Tensor:
        args = [make(other) if callable(make) else make for make in given]
        return getattr(z.clone() if writes else z, name + "_" * writes)(*args, **named)

    return call


def same(other: Tensor) -> Tensor:
    return other


def rows(other: Tensor) -> Tensor:
    return other[ROWS]


def square(other: Tensor) -> Tensor:
    return other[:, :3]


METHODS = {
    "abs": method("abs"),
    "add": method("add", same),
    "add a number": method("add", 1.0),
    "addbmm": method("addbmm", lambda o: o[:, None].mT[:, :3], lambda o: o[:, None]),
    "addcdiv": method("addcdiv", same, lambda o: 2 + o.square(), value=0.5),
    "addcmul": method("addcmul", same, ONES),
    "addcmul of data": method("addcmul", same, same, value=0.5),
    "addmm": method("addmm", square, lambda o: o),
    "addr": method("addr", lambda o: o[:, 0], ONES),
    "clamp": method("clamp", -0.3, 0.6),
    "clamp_min": method("clamp_min", 0.1),
    "copy": lambda z, other, writes: (
        z.clone().copy_(other) if writes else torch.where(torch.ones_like(MASK), other, z)
    ),
    "cumprod": method("cumprod", 1),
    "cumsum": method("cumsum", 1),
    "div": method("div", lambda o: 1 + o.square()),
    "div by its sum": lambda z, other, writes: (
        lambda w: w.div_(w.sum(1, keepdim=True)) if writes else w / w.sum(1, keepdim=True)
    )(z.clone()),
    "erf": method("erf"),
    "exp": method("exp"),
    "expm1": method("expm1"),
    "fill": method("masked_fill", MASK, 0.1),
    "index_add": method("index_add", 0, ROWS, rows),
    "index_copy": method("index_copy", 0, ROWS, rows),
    "index_fill": method("index_fill", 1, ROWS, 0.25),
    "index_put": method("index_put", (ROWS,), rows),
    "lerp": method("lerp", same, 0.3),
    "lerp by data": method("lerp", same, torch.sigmoid),
    "masked_scatter": method("masked_scatter", MASK, same),
    "mul": method("mul", ONES),
    "mul by data": method("mul", same),
    "mul by a gate": method("mul", torch.sigmoid),
    "mul by weights": method("mul", lambda o: o.softmax(1)),
    "neg": method("neg"),
    "pow": method("pow", 3),
    "power below 0": lambda z, other, writes: method("pow", -0.5)(2 + z * z, other, writes),
    "reciprocal": lambda z, other, writes: method("reciprocal")(2 + z * z, other, writes),
    "relu": method("relu"),
    "rsqrt": lambda z, other, writes: method("rsqrt")(2 + z * z, other, writes),
    "scatter": method("scatter", 1, COLUMNS, same),
    "scatter_add": method("scatter_add", 1, COLUMNS, same),
    "sigmoid": method("sigmoid"),
    "sign": method("sign"),
    "sin": method("sin"),
    "sqrt": lambda z, other, writes: method("sqrt")(z * z, other, writes),
    "square": method("square"),
    "threshold": lambda z, other, writes: F.threshold(z.clone(), 0.1, 0.3, writes),
    "sub": method("sub", same, alpha=2),
    "tanh": method("tanh"),
    "transpose": lambda z, other, writes: method("t")(z, other, writes).t(),
    "tril": method("tril", 1),
}
FUNCTIONS = [
    *(F.celu, F.elu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.relu, F.relu6),
    *(F.selu, F.silu, partial(F.dropout, training=False)),
]
for function in FUNCTIONS:
    name = getattr(function, "__name__", "dropout")
    METHODS[f"F.{name}"] = lambda z, other, writes, f=function: (
        f(z.clone(), inplace=True) if writes else f(z)
    )

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "signal": lambda z: z,
    "gate": torch.sigmoid,
    "weights": lambda z: z.softmax(1),
    "odd": torch.tanh,
}


class Net(nn.Module):
    """Two layers; between them an operation on what one half is, and its product with the other."""

    def __init__(self, step, kind: Callable[[Tensor], Tensor], writes: bool) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 3)
        self.step, self.kind, self.writes = step, kind, writes

    def forward(self, x: Tensor) -> Tensor:
        z, other = self.kind(self.first(x)), self.other(x)
        y = self.step(z, other, self.writes)
        return self.last(torch.cat([y * other, y + 1], 1))


def both(step, kind: str) -> tuple[nn.Module, nn.Module]:
    plain, writes = (build(lambda w=w: Net(step, KINDS[kind], w)) for w in (False, True))
    torch.testing.assert_close(plain(X), writes(X))
    return plain, writes


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, "attnlrp") for kind in KINDS), ("weights", "cp")]
)
@pytest.mark.parametrize("name", METHODS)
def test_in_place_is_out_of_place(name, kind, attention) -> None:
    models = both(METHODS[name], kind)
    preset = presets.epsilon(0.1)
    found = [
        LRP(model, preset, attention=attention, fallbacks="ignore").attribute(X, 1)
        for model in models
    ]
    assert relative_error(*found) <= 1e-12
    plans = [plan(model, X, attention=attention) for model in models]
    fallbacks = [[row.type for row in planned.fallbacks] for planned in plans]
    assert fallbacks[0] == fallbacks[1]


@pytest.mark.parametrize("kind", ["signal", "weights"])
@pytest.mark.parametrize("name", METHODS)
def test_in_place_is_out_of_place_in_the_other_forms(name, kind) -> None:
    models = both(METHODS[name], kind)
    deep, rules = [(["last"], FlatRule, {})], RuleSet({}, EpsilonRule(0.1))

    def relevance(model: nn.Module) -> Tensor:
        return propagate(model, X, 1, rule_set=rules, form=form_of("relevance", 0.1)).relevances[0]

    for explained in (
        lambda model: LRP(model, deep, fallbacks="ignore").attribute(X, 1),
        relevance,
    ):
        try:
            expected = explained(models[0])
        except LRPError as error:
            with pytest.raises(type(error)):
                explained(models[1])
            continue
        assert relative_error(explained(models[1]), expected) <= 1e-12


# by a view ---------------------------------------------------------------------------------------


def columns(z: Tensor, other: Tensor, writes: bool) -> Tensor:
    if not writes:
        return torch.cat([2 * z[:, :3], z[:, 3:]], 1)
    z = z.clone()
    z[:, :3] *= 2
    return z


def inner(z: Tensor, other: Tensor, writes: bool) -> Tensor:
    if not writes:
        return torch.cat([z[:, :2], z[:, 2:4].masked_fill(MASK[:, 2:4], 0.0), z[:, 4:]], 1)
    z = z.clone()
    z.narrow(1, 1, 4).narrow(1, 1, 2).masked_fill_(MASK[:, 2:4], 0.0)
    return z


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
@pytest.mark.parametrize("kind", ["gate", "weights"])
@pytest.mark.parametrize("step", [columns, inner])
def test_writing_by_a_view_leaves_a_gate_a_gate(step, kind, attention) -> None:
    models = both(lambda z, other, writes: step(z, other, writes) * other, kind)
    preset = presets.epsilon(0.1)
    found = [LRP(model, preset, attention=attention).attribute(X, 1) for model in models]
    assert relative_error(*found) <= 1e-12
    rules = [[row.rule for row in plan(model, X).rows if row.type == "mul"] for model in models]
    assert "gate held constant" in rules[0] and "gate held constant" in rules[1]


# on the input ---------------------------------------------------------------------------------


ON_INPUT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "zero": (
        lambda x: (x[:, :2].zero_(), x)[1],
        lambda x: torch.cat([torch.zeros_like(x[:, :2]), x[:, 2:]], 1),
    ),
    "fill": (
        lambda x: (x[:, :2].fill_(0.5), x)[1],
        lambda x: torch.cat([torch.full_like(x[:, :2], 0.5), x[:, 2:]], 1),
    ),
    "fill_diagonal": (
        lambda x: x.fill_diagonal_(0.0),
        lambda x: x.masked_fill(torch.eye(3, 6, dtype=torch.bool), 0.0),
    ),
    "masked_fill": (
        lambda x: x.masked_fill_(MASK[:, :6], 0.2),
        lambda x: x.masked_fill(MASK[:, :6], 0.2),
    ),
}


@pytest.mark.parametrize("rule", [EpsilonRule, FlatRule])
@pytest.mark.parametrize("name", ON_INPUT)
def test_writing_over_a_copy_of_the_input(name, rule) -> None:
    class First(nn.Module):
        def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.step = nn.Linear(6, 3), step

        def forward(self, x: Tensor) -> Tensor:
            return self.first(self.step(x.clone()))

    models = [build(lambda step=step: First(step)) for step in ON_INPUT[name]]
    torch.testing.assert_close(models[0](X), models[1](X))
    if rule is FlatRule and name in ("zero", "fill"):  # by a view
        with pytest.raises(ModelError, match="out of place"):
            LRP(models[0], [(["first"], rule, {})]).attribute(X, 1)
        return
    found = [LRP(m, [(["first"], rule, {})]).attribute(X, 1) for m in models]
    assert relative_error(*found) <= 1e-12


# a router ----------------------------------------------------------------------------------------


class Router(nn.Module):
    """A mixture of experts, each token given to its two best, as Mixtral and DeepSeek-V3 do."""

    def __init__(self, writes: bool, scores: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4, False)
        self.experts = nn.ModuleList(nn.Linear(6, 3, False) for _ in range(4))
        self.writes, self.scores = writes, scores

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.scores(self.router(x)).topk(2)
        if self.writes:
            weights /= weights.sum(-1, keepdim=True)
        else:
            weights = weights / weights.sum(-1, keepdim=True)
        each = torch.stack([expert(x) for expert in self.experts], 1)
        return (weights[..., None] * each.take_along_dim(index[..., None], 1)).sum(1)


@pytest.mark.parametrize("scores", [lambda z: z.softmax(-1), torch.sigmoid])
def test_a_router_that_writes_over_its_weights(scores) -> None:
    plain, writes = (build(lambda w=w: Router(w, scores)) for w in (False, True))
    expected = LRP(plain, presets.zero(), strict=True).attribute(X, 1)
    found = LRP(writes, presets.zero(), strict=True).attribute(X, 1)
    assert relative_error(found, expected) <= 1e-12
    torch.testing.assert_close(found.sum(1), writes(X)[:, 1].detach())
