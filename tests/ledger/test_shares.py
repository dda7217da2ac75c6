"""What each layer and operation absorbs, by what absorbs it, against automatic differentiation.

Where a network is piecewise linear, LRP-0 is gradient x input, and what a constant of the model
absorbs is the constant times the derivative of the score by it. Other networks are made so, by
holding LRP's factors constant.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import EpsilonRule, diagnose, presets
from captum_lrp_stab.propagation import forms
from tests.helpers.ledgers import CLOSES, Calls, assert_closes, assert_score, drawn, network
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")

# constants of the model --------------------------------------------------------------------------


def written(s: Calls, x: Tensor, k: float) -> Tensor:
    h = s.a(x).clone()
    h[:, :, :2] = 3.0 * k
    return s.c(h.mean(1))


def with_token(s: Calls, x: Tensor, k: float) -> Tensor:
    return s.c(torch.cat([(s.token * k).expand(len(x), -1, -1), s.a(x)], 1).relu().mean(1))


def with_detached(s: Calls, x: Tensor, k: float) -> Tensor:
    return s.c((F.relu(s.a(x)) + k * s.b(x).detach()).relu().mean(1))


CONSTANTS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "bias": (lambda s, x, k: s.c(F.linear(x, s.a.weight, k * s.a.bias).relu().mean(1)), "linear_0"),
    "position": (lambda s, x, k: s.c((s.a(x) + k * s.position[:, 1:]).relu().mean(1)), "add_0"),
    "bare token": (lambda s, x, k: s.c((s.a(x) + s.token * k).mean(1)), "add_0"),
    "token": (with_token, "cat_0"),
    "padding": (lambda s, x, k: s.c(F.pad(s.a(x), (1, 1), value=1.5 * k)[..., :6].sum(1)), "pad_0"),
    "padded input": (lambda s, x, k: s.c(F.pad(x[..., :5], (0, 1), value=k).sum(1)), "pad_0"),
    "masked": (lambda s, x, k: s.c(s.a(x).masked_fill(s.mask, 2.0 * k).mean(1)), "masked_fill_0"),
    "where": (lambda s, x, k: s.c(torch.where(s.mask, s.a(x), 3.0 * k).mean(1)), "where_0"),
    "filled": (
        lambda s, x, k: s.c(s.a(x).index_fill(1, torch.tensor([1]), 2.0 * k).mean(1)),
        "index_fill_0",
    ),
    "written": (written, "setitem_0"),
    "added": (lambda s, x, k: s.c((s.a(x) + k * 0.5).relu().mean(1)), "add_0"),
    "subtracted from": (lambda s, x, k: s.c((k * 1.0 - s.a(x)).relu().mean(1)), "rsub_0"),
    "added in place": (lambda s, x, k: s.c(s.a(x).add_(0.5 * k).relu().mean(1)), "add_0"),
    "detached": (with_detached, "add_0"),
    "largest": (
        lambda s, x, k: s.c(torch.maximum(s.a(x), x.new_tensor(0.2 * k)).mean(1)),
        "maximum_0",
    ),
}


@pytest.mark.parametrize(
    ("case", "form", "count"),
    [
        (case, form, 1 + 2 * ((i + j) % 2))
        for i, case in enumerate(CONSTANTS)
        for j, form in enumerate(forms.NAMES)
    ],
)
def test_what_a_constant_absorbs(case, count, form) -> None:
    function, name = CONSTANTS[case]
    model = build(lambda: Calls(function))
    x = drawn(count, 4, 6, seed=3)
    rules = presets.zero() if form == "gradient" else presets.epsilon(1e-12)
    found = diagnose(model, x, 1, rules, form=form, stabilizer=None)
    scores = []
    for size in (1 + 2.0**-20, 1 - 2.0**-20):
        model.size = size
        with torch.no_grad():
            scores.append(float(model(x)[:, 1].sum()))
    expected = (scores[0] - scores[1]) * 2**19  # exact, as nothing is near a kink
    record = next(r for r in found.layers if r.name == name)
    assert abs(expected) > 1e-3
    assert record.shares.bias == pytest.approx(expected, rel=1e-7)
    others = (record.shares.operation, record.shares.rule, record.shares.rounding)
    assert max(map(abs, others)) <= 1e-10
    assert_closes(found, torch.float64)


def test_the_oracle_finds_a_wrong_share() -> None:
    """A bias of another sign, size or place would show: the negative control of the test above."""
    function, name = CONSTANTS["token"]
    model = build(lambda: Calls(function))
    x = drawn(2, 4, 6, seed=3)
    record = next(r for r in diagnose(model, x, 1, presets.zero()).layers if r.name == name)
    model.token.data *= 1.001
    with pytest.raises(AssertionError):
        changed = next(r for r in diagnose(model, x, 1, presets.zero()).layers if r.name == name)
        assert changed.shares.bias == pytest.approx(record.shares.bias, rel=1e-7)


# by gradient: each layer's bias -------------------------------------------------------------------


def bias_by_gradient(model: nn.Module, x: Tensor, target: int) -> dict[str, float]:
    """b times the derivative of the score by b, of each layer, by the name of its weights.

    A batch norm belongs to the convolution it follows if it is merged; here it has its own name.
    """
    layers = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)) and m.bias is not None
    }
    biases = [m.bias for m in layers.values()]
    gradients = torch.autograd.grad(model(x)[:, target].sum(), biases)
    found = {}
    for (name, m), g in zip(layers.items(), gradients, strict=True):
        offset = m.bias
        if isinstance(m, nn.BatchNorm2d):
            offset = m.bias - m.running_mean * m.weight / (m.running_var + m.eps).sqrt()
        found[name] = float((offset * g).detach().sum())
    return found


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vgg11", "densenet121"))],
)
def test_biases_by_gradient(name) -> None:
    model, x = network(name, torch.float64), drawn(2, 3, 40, 40, seed=1)
    found = diagnose(model, x, 7, presets.zero())
    expected = bias_by_gradient(model, x, 7)
    seen = 0
    scale = max(map(abs, expected.values()))
    for record in (r for r in found.layers if r.has_rule or "norm" in r.kind.lower()):
        name = record.batch_norm or record.name
        if name not in expected:
            assert abs(record.shares.bias) <= 1e-12 * scale
            continue
        assert record.shares.bias == pytest.approx(expected[name], rel=1e-8, abs=1e-10 * scale)
        seen += 1
    assert seen == len(expected)
    assert found.ledger.shares.bias == pytest.approx(sum(expected.values()), rel=1e-9)
    assert_closes(found, torch.float64)


# attention, against a network whose factors are constants ----------------------------------------


def held(value: Tensor) -> Tensor:
    return value.detach()


class Encoder(nn.Module):
    """A small vision transformer. ``frozen``: autograd sees LRP's factors, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.token, self.position = (nn.Parameter(torch.randn(1, n, 8)) for n in (1, 5))
        self.before, self.after = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        for norm in (self.before, self.after):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
        self.frozen = ""

    def norm(self, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        if not self.frozen:
            return layer(x)
        spread = x - x.mean(-1, keepdim=True)
        scale = (spread.square().mean(-1, keepdim=True) + layer.eps).rsqrt()
        return spread * held(scale) * layer.weight + layer.bias

    def gelu(self, x: Tensor) -> Tensor:
        return x * held(F.gelu(x) / x) if self.frozen else F.gelu(x)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        out = a @ b
        return (out + held(out)) / 2 if self.frozen == "attnlrp" else out

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        x = tokens + self.position
        y = self.norm(self.before, x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        scores = self.product(q, k.transpose(1, 2)) / 8**0.5
        p = torch.softmax(scores, -1)
        if self.frozen:
            self.kept = scores, p
        y = self.product(held(p) if self.frozen == "cp" else p, v)
        x = x + self.out(y)
        x = x + self.down(self.gelu(self.up(self.norm(self.after, x))))
        return self.head(x[:, 0])


@pytest.mark.parametrize("dtype", CLOSES, ids=str)
@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
def test_attention(attention, dtype) -> None:
    model = build(Encoder)
    x = drawn(3, 4, 5, seed=2)
    names = ("embed", "q", "k", "v", "out", "up", "down", "head")
    rules = [(list(names), EpsilonRule, {"epsilon": 0.0})]
    found = diagnose(model.to(dtype), x.to(dtype), 1, rules, attention=attention)
    assert_closes(found, dtype)
    model.double().frozen = attention
    model.token.requires_grad_()
    constants = {"cat_0": model.token, "add_0": model.position}
    layers = dict(model.named_modules())
    constants |= {n: layers[n].bias for n in (*names, "before", "after")}
    score = model(x)[:, 1].sum()
    scores, p = model.kept
    wanted = [*constants.values(), scores, p]
    *gradients, at_scores, at_p = torch.autograd.grad(score, wanted, allow_unused=True)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    exact = {"rel": tolerance, "abs": tolerance}
    records = {r.name: r for r in found.layers}
    for (name, constant), gradient in zip(constants.items(), gradients, strict=True):
        if gradient is None:
            assert name not in records
            continue
        share = float((constant * gradient).detach().sum())
        # where q and k are linear in what precedes, their books have a rule of their own
        assert records[name].shares.bias == pytest.approx(share, **exact), name
        assert abs(records[name].shares.rounding) <= tolerance
    if attention == "cp":
        assert found.ledger.shares.operation == 0
        return
    lost = float(((p * at_p).sum() - (scores * at_scores).sum()).detach())
    assert records["softmax_0"].shares.operation == pytest.approx(lost, **exact)
    assert found.ledger.shares.operation == pytest.approx(lost, **exact)


# operations that lose something -------------------------------------------------------------------


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: h.clamp(0.1, 1),
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softmax": lambda h: torch.softmax(h, -1),
    "cos": torch.cos,
    "log softmax": lambda h: torch.log_softmax(h, -1),
}


@pytest.mark.parametrize("dtype", CLOSES, ids=str)
@pytest.mark.parametrize("case", LOSSES)
def test_what_an_operation_absorbs(case, dtype) -> None:
    """By its gradient: what comes in is y g, what goes out x f'(x) g; a bound is a constant."""
    f = LOSSES[case]
    model = build(lambda: Calls(lambda s, x, k: s.c(f(s.a(x)).mean(1))))
    x = drawn(2, 4, 6, seed=4)
    found = diagnose(model.to(dtype), x.to(dtype), 1, presets.zero())
    model.double()
    h = model.a(x).detach().requires_grad_()
    y = f(h)
    score = model.c(y.mean(1))[:, 1].sum()
    at_y, at_h = torch.autograd.grad(score, (y, h))
    lost = float(((y * at_y).sum() - (h * at_h).sum()).detach())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    absorbed = found.ledger.shares.operation
    if case == "clamp":
        assert absorbed == 0
        (absorbed,) = (r.shares.bias for r in found.layers if r.name == "clamp_0")
    assert absorbed == pytest.approx(lost, rel=tolerance, abs=tolerance)
    assert_closes(found, dtype)
    assert_score(found, model.to(dtype), x.to(dtype), 1)
