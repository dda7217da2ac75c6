"""What attention weights multiply is the signal, whatever made it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from captum_lrp_stab.errors import FallbackError
from tests.helpers import dense_attention as ra
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGET = 2
Function = Callable[[Tensor], Tensor]


def unseen(function: Function) -> Function:
    """The same by a custom autograd function: its plain gradient, and nothing known of it."""

    class Unseen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            with torch._C.DisableTorchFunction():
                return function(z)

        @staticmethod
        def backward(ctx, c: Tensor) -> Tensor:
            with torch.enable_grad(), torch._C.DisableTorchFunction():
                z = ctx.saved_tensors[0].detach().requires_grad_()
                return torch.autograd.grad(function(z), z, c)[0]

    return Unseen.apply


VALUES: dict[str, Function] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "reciprocal": torch.reciprocal,
    "sigmoid of halves": lambda v: torch.sigmoid(v / 2) * 3,
}


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.softmax(torch.bmm(q, k.mT), -1), v)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("ntu,nup->ntp", torch.einsum("ntp,nup->ntu", q, k).softmax(-1), v)


def channels_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.matmul(v.mT, (q @ k.mT).softmax(-1).mT).mT


def baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.baddbmm(torch.zeros(5, 4).to(q), (q @ k.mT).softmax(-1), v)


def element_by_element(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT).softmax(-1)[..., None] * v[:, None]).sum(2)


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)[..., None].expand(-1, -1, -1, 4).contiguous()
    weights *= v[:, None]
    return weights.sum(2)


SPELLINGS = {
    "matmul": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "scaled_dot_product_attention": lambda q, k, v: F.scaled_dot_product_attention(
        q, k, v, scale=1.0
    ),
    "bmm": batched,
    "einsum": einsum,
    "v^T a^T": channels_first,
    "baddbmm": baddbmm,
    "element by element": element_by_element,
    "in place": in_place,
}


class Attends(nn.Module):
    def __init__(self, spelling, values: Function, bias: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4, bias) for _ in range(3))
        self.out = nn.Linear(4, 3, bias)
        self.spelling, self.values = spelling, values

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.spelling(self.q(x), self.k(x), self.values(self.v(x)))).mean(1)


def explained(spelling, values: Function, attention: str) -> Tensor:
    model = build(lambda: Attends(SPELLINGS[spelling], values))
    return LRP(model, presets.zero(), attention=attention, fallbacks="ignore").attribute(X, TARGET)


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_values_are_the_signal(spelling, values, attention) -> None:
    function = VALUES[values]
    found = explained(spelling, function, attention)
    assert relative_error(found, explained(spelling, unseen(function), attention)) <= 1e-12
    model = build(lambda: Attends(SPELLINGS[spelling], function))
    planned = plan(model, X, attention=attention)
    assert len(planned.fallbacks) == 1
    with pytest.raises(FallbackError):
        LRP(model, strict=True, attention=attention).attribute(X, TARGET)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_papers_formulas(spelling) -> None:
    """AttnLRP, prop. 3.1 and 3.3, with the sigmoid's gradient: v s'(v) R / s(v)."""
    model = build(lambda: Attends(SPELLINGS[spelling], torch.sigmoid))
    held = spelling in ("element by element", "in place")  # weights that multiply by element
    rows = []
    for x in X:
        q, k, v = model.q(x).detach(), model.k(x).detach(), model.v(x).detach()
        scores = q @ k.T
        a, values = scores.softmax(-1), v.sigmoid()
        o = a @ values
        R_o = ra.linear(o, *model.out.parameters(), ra.mean_of_tokens(model.out(o), TARGET))
        R_a, R_values = ra.matrix_product(a, values, R_o)
        R_values = 2 * R_values if held else R_values
        R_x = ra.linear(x, *model.v.parameters(), v * (1 - values) * R_values)
        if not held:
            R_q, R_k = ra.matrix_product(q, k.T, ra.softmax(scores, R_a))
            R_x += ra.linear(x, *model.q.parameters(), R_q)
            R_x += ra.linear(x, *model.k.parameters(), R_k.T)
        rows.append(R_x.detach())
    assert relative_error(explained(spelling, torch.sigmoid, "attnlrp"), torch.stack(rows)) <= 1e-12


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
def test_a_gate_beside_a_signal_stays_a_gate(attention) -> None:
    """Weights, values and a gate on these: of three factors the gate alone is held."""

    def gated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("ntu,nup,nup->ntp", (q @ k.mT).softmax(-1), v, k.sigmoid())

    def held(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("ntu,nup->ntp", (q @ k.mT).softmax(-1), v * k.sigmoid().detach())

    found = [
        LRP(
            build(lambda f=f: Attends(f, lambda v: v, bias=False)),
            presets.zero(),
            strict=True,
            attention=attention,
        ).attribute(X, TARGET)
        for f in (gated, held)
    ]
    assert relative_error(*found) <= 1e-12


# weights of weights ------------------------------------------------------------------------------


def rules_of(step, attention: str = "attnlrp") -> list[str]:
    model = build(lambda: Attends(step, lambda v: v))
    return [row.rule for row in plan(model, X, attention=attention).rows if row.type != "Linear"]


def nystroem(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A product of two stochastic matrices, as in Nyströmformers, is one."""
    return (q @ k.mT).softmax(-1) @ (k @ q.mT).softmax(-1) @ v


def test_weights_of_weights_are_weights() -> None:
    assert rules_of(nystroem)[-3:-1] == ["1/2 to each factor"] * 2
    assert rules_of(nystroem, "cp")[-3:-1] == ["constant", "gate held constant"]

    def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(-1) @ (k @ q.mT).softmax(-1)
        return (weights[..., None] * v[:, None]).sum(2)

    for attention in ("attnlrp", "cp"):
        assert rules_of(multiplied, attention)[-3] == "gate held constant"
        model = build(lambda: Attends(multiplied, lambda v: v, bias=False))
        found = LRP(model, presets.zero(), strict=True, attention=attention).attribute(X, TARGET)
        torch.testing.assert_close(found.sum((1, 2)), model(X)[:, TARGET].detach())


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
def test_values_that_are_a_softmax_share(attention) -> None:
    """Which of the two are the values, nobody can see: half each, and nothing is lost."""

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v.softmax(-1)

    rules = rules_of(step, attention)
    assert rules[-2] == "1/2 to each factor" and "constant" not in rules


def test_a_matrix_product_of_gates_is_no_gate() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q.sigmoid() @ k.sigmoid().mT @ v.sigmoid()) * v

    assert rules_of(step)[-2] == "1/2 to each factor"


SIGNALS: dict[str, Function] = {  # what a softmax gives is neither attention weights nor a gate
    "a hidden layer": lambda z: z.softmax(-1),
    "a memory": lambda z: z.softmax(-1) @ torch.arange(6.0).double().reshape(6, 1).expand(6, 3),
    "an expectation": lambda z: (F.softmin(z, -1) * torch.arange(6.0).double()).cumsum(-1),
    "mixed heads": lambda z: (z.softmax(-1) @ torch.ones(6, 5).double().tril()) @ z,
}


class Signal(nn.Module):
    """A softmax between two layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6, bias=False), nn.LazyLinear(3, bias=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x))).mean(1)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_softmax_that_is_a_signal_is_listed_where_only_attention_has_a_rule(name) -> None:
    model = Signal(SIGNALS[name]).double().eval()
    model(X)
    listed = [row.name for row in plan(model, X, attention="cp").fallbacks]
    assert listed == ["softmin_0" if "expectation" in name else "softmax_0"]
    with pytest.raises(FallbackError, match="neither attention weights nor a gate"):
        LRP(model, presets.zero(), attention="cp", strict=True).attribute(X, TARGET)
    assert plan(model, X).fallbacks == ()  # AttnLRP's rule for a softmax is its gradient


@pytest.mark.parametrize("products", [batched, einsum, channels_first])
def test_attention_weights_are_not(products) -> None:
    model = Signal(lambda z: products(z, z.flip(1), z)).double().eval()
    model(X)
    assert plan(model, X, attention="cp").fallbacks == ()
    explainer = LRP(model, presets.zero(), attention="cp", strict=True)
    found, delta = explainer.attribute(X, TARGET, return_convergence_delta=True)
    assert float(delta.abs().max()) <= 1e-9 * float(found.abs().sum())
