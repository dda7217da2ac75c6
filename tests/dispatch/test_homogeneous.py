"""Roots, powers, norms, products and variances as signals: nothing is lost, and nothing is NaN."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, FlatRule, plan, presets
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WITH_ZEROS = torch.cat([X, torch.zeros(1, 6).double()])
Step = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A layer, a function, and the sum or a layer behind it."""

    def __init__(self, step: Step, bias: bool = False, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.step = nn.Linear(6, 8, bias), step
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y = self.step(self.first(x)).reshape(len(x), -1)
        return y.sum(1, keepdim=True) if self.last is None else self.last(y)


def pairs(y: Tensor) -> Tensor:
    return y.reshape(-1, 2, 4)


def squares(y: Tensor) -> Tensor:
    return y[:, :4].reshape(-1, 2, 2)


P = torch.tensor([3.0, 2.5, 1.5, 4.0, 3.0, 0.5, 2.0, 1.0]).double()


def modulus(y: Tensor) -> Tensor:
    real, imaginary = y.flatten(1).chunk(2, 1)
    return (real**2 + imaginary**2).sqrt()


CONSERVING: dict[str, Step] = {
    "y.pow(2).sqrt()": lambda y: y.pow(2).sqrt(),
    "(y * y) ** 0.5": lambda y: (y * y) ** 0.5,
    "in place": lambda y: y.square().clone().pow_(0.25),
    "cube root": lambda y: y.abs().pow(1 / 3) * y.sign(),
    "float_power": lambda y: y.abs().float_power(0.1),
    "LPPool1d": lambda y: nn.LPPool1d(2, 2)(y[:, None]),
    "LPPool2d": lambda y: F.lp_pool2d(y.relu().reshape(-1, 1, 2, 4), 3.0, 2),
    "modulus": modulus,
    "modulus of a spectrum": lambda y: modulus(torch.view_as_real(torch.fft.fft(y[:, :4])).mT),
    "root mean square": lambda y: y.square().mean(1).sqrt(),
    "generalized mean": lambda y: y.abs().pow(P).mean(1).pow(1 / P[0]),
    "hypot": lambda y: torch.hypot(y[:, :4], y[:, 4:]),
    "prod": lambda y: y.prod(1),
    "prod, dim by name": lambda y: torch.prod(pairs(y), dim=1, keepdim=True),
    "prod of all": lambda y: torch.stack([row.prod() for row in y]),
    "cumprod": lambda y: y.cumprod(1),
    "cumprod in place": lambda y: pairs(y.clone()).cumprod_(-2),
    "var": lambda y: y.var(1),
    "var, correction": lambda y: torch.var(pairs(y), dim=(1, 2), correction=0),
    "var_mean": lambda y: torch.stack(torch.var_mean(y, 1), 1),
    "std": lambda y: y.std(1),
    "std_mean": lambda y: torch.stack(torch.std_mean(y, 1), 1),
    "fourth moment": lambda y: ((y - y.mean(1, keepdim=True)) ** 4).mean(1),
    "covariance": lambda y: torch.stack([torch.cov(row.reshape(2, 4)) for row in y]),
    "norm": lambda y: y.norm(dim=1),
    "norm of order 3": lambda y: y.norm(3, 1),
    "largest": lambda y: torch.linalg.vector_norm(y, math.inf, dim=1),
    "Frobenius norm": lambda y: torch.linalg.matrix_norm(pairs(y)),
    "nuclear norm": lambda y: torch.linalg.matrix_norm(pairs(y), "nuc"),
    "det": lambda y: torch.linalg.det(squares(y)),
    "matrix_power": lambda y: torch.linalg.matrix_power(squares(y), 3),
    "cdist": lambda y: torch.cdist(pairs(y), 2 * pairs(y.flip(1))),
    "dist": lambda y: torch.stack([torch.dist(row[:4], row[4:]) for row in y]),
    "mse_loss": lambda y: F.mse_loss(y[:, :4], y[:, 4:], reduction="none"),
    "l1_loss": lambda y: F.l1_loss(y[:, :4], y[:, 4:], reduction="none"),
    "copysign": lambda y: torch.copysign(y, y.flip(1)),
    "asin": lambda y: torch.asin(y.tanh()),
    "atanh": lambda y: torch.atanh(y.tanh() / 2),
    "tan": lambda y: torch.tan(y.tanh()),
    "erfinv": lambda y: torch.erfinv(y.tanh() / 2),
    "threshold": lambda y: F.threshold(y, -0.1, 5.0),
}
OTHER_DEGREES = {
    *(
        "in place",
        "cube root",
        "float_power",
        "prod",
        "prod, dim by name",
        "prod of all",
        "cumprod",
    ),
    *("cumprod in place", "var", "var, correction", "var_mean", "fourth moment", "covariance"),
    *("det", "matrix_power", "mse_loss", "asin", "atanh", "tan", "erfinv"),
}
"""Of these gradient x input is not the value; the others are of degree 1 as a whole."""


@pytest.mark.parametrize("name", CONSERVING)
def test_nothing_is_lost(name) -> None:
    model = build(lambda: Net(CONSERVING[name]))
    found = LRP(model, presets.zero(), strict=True).attribute(WITH_ZEROS, 0)
    score = model(WITH_ZEROS)[:, 0].detach()
    if "prod" in name or name == "threshold":  # products of 8 have little
        score, found = score[:-1], found[:-1]
    torch.testing.assert_close(found.sum(1), score, rtol=1e-10, atol=1e-14)
    assert found.isfinite().all()
    assert not plan(model, WITH_ZEROS).fallbacks
    if name in OTHER_DEGREES:  # the control
        plain = gradient_x_input(model, X, 0).sum(1)
        assert relative_error(plain, score[: len(X)]) > 1e-3


@pytest.mark.parametrize("name", CONSERVING)
def test_the_forms_agree(name) -> None:
    """Flat behind it: what it reads runs in relevance form; and without a rule that needs it."""
    step = CONSERVING[name]
    width = build(lambda: Net(step)).double().step(torch.ones(1, 8).double()).numel()
    model = build(lambda: Net(step, True, nn.Linear(width, 3)))
    rules = RuleSet({}, EpsilonRule(1e-9))
    gradient, relevance = (
        propagate(model, X, 1, rule_set=rules, form=form_of(form, *given)).relevances[0]
        for form, given in (("gradient", ()), ("relevance", (1e-12,)))
    )
    assert relative_error(relevance, gradient) <= 1e-6
    if "in place" in name:  # not over what a layer below such a rule has read
        return
    flat = LRP(model, [(["last"], FlatRule, {})], strict=True).attribute(X, 1)
    assert flat.isfinite().all()


WRITTEN_OUT: dict[str, tuple[Step, Step]] = {
    "sqrt": (lambda y: y.square().sqrt(), lambda y: y.abs()),
    "modulus": (modulus, lambda y: torch.complex(y[:, :4], y[:, 4:]).abs()),
    "hypot": (lambda y: torch.hypot(y[:, :4], y[:, 4:]), modulus),
    "hypot of a constant": (lambda y: torch.hypot(y, P), lambda y: (y**2 + P**2).sqrt()),
    "norm": (lambda y: y.norm(dim=1), lambda y: y.square().sum(1).sqrt()),
    "prod of two": (lambda y: pairs(y).prod(1), lambda y: y[:, :4] * y[:, 4:]),
    "prod": (
        lambda y: y[:, :3].prod(1),
        lambda y: torch.einsum("i,i,i->i", y[:, 0], y[:, 1], y[:, 2]),
    ),
    "cumprod": (
        lambda y: y.cumprod(1),
        lambda y: torch.stack([y[:, : i + 1].prod(1) for i in range(8)], 1),
    ),
    "var": (
        lambda y: y.var(1),
        lambda y: (y - y.mean(1, keepdim=True)).square().sum(1) / 7,
    ),
    "std": (lambda y: y.std(1), lambda y: y.var(1).sqrt()),
    "mse_loss": (
        lambda y: F.mse_loss(y[:, :4], y[:, 4:], reduction="none"),
        lambda y: (y[:, :4] - y[:, 4:]).square(),
    ),
    "mse_loss to a constant": (
        lambda y: F.mse_loss(y, P.expand_as(y), reduction="none"),
        lambda y: (y - P) ** 2,
    ),
    "cdist": (
        lambda y: torch.cdist(pairs(y), pairs(y.flip(1))),
        lambda y: (pairs(y)[:, :, None] - pairs(y.flip(1))[:, None]).square().sum(-1).sqrt(),
    ),
    "exponents": (lambda y: y.abs().pow(P[0]), lambda y: y.abs().pow(3)),
    "threshold": (lambda y: F.threshold(y, 0.2, 0.0), lambda y: F.hardshrink(y.relu(), 0.2)),
    "LPPool2d": (
        lambda y: F.lp_pool2d(y.reshape(-1, 1, 2, 4), 2.0, 2),
        lambda y: y.reshape(-1, 2, 2, 2).transpose(1, 2).flatten(2).norm(dim=-1),
    ),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_written_out_it_is_the_same(name) -> None:
    one, other = WRITTEN_OUT[name]
    torch.testing.assert_close(
        one(X @ torch.ones(6, 8).double()).flatten(), other(X @ torch.ones(6, 8).double()).flatten()
    )
    models = (build(lambda step=step: Net(step, True)) for step in (one, other))
    found = [LRP(m, presets.zero(), strict=True).attribute(X, 0) for m in models]
    assert relative_error(*found) <= 1e-12


FALLBACKS: dict[str, Step] = {
    "logsumexp": lambda y: y.logsumexp(1),
    "logcumsumexp": lambda y: y.logcumsumexp(1),
    "logaddexp": lambda y: torch.logaddexp(y[:, :4], y[:, 4:]),
    "vector_norm": lambda y: torch.linalg.vector_norm(y, 0, dim=1) + y[:, 0],
    "matrix_power": lambda y: torch.linalg.matrix_power(squares(y), -1),
    "pow": lambda y: torch.pow(2.0, y) + y.abs().pow(y),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_does_not_conserve_is_listed(name) -> None:
    planned = plan(build(lambda: Net(FALLBACKS[name])), X)
    assert {row.type for row in planned.fallbacks} == {name}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_near_zero_a_root_stays_finite(dtype) -> None:
    """The slope is infinite at 0, and times a coefficient of 0 it would be NaN."""
    tiny = torch.finfo(dtype).smallest_normal / 2
    x = torch.tensor([[0.0, tiny, 1.0], [tiny, 0.0, 0.0]], dtype=dtype)

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.pow(0.01)
            return torch.stack([y[:, 0] * 0 + y[:, 2], y.sum(1)], 1)

    found = LRP(Root(), presets.zero(), strict=True).attribute(x, 0)
    assert found.tolist() == [[0, 0, 1], [0, 0, 0]]


def test_gates_stay_gates() -> None:
    def rule(gate: Step) -> str:
        model = build(lambda: Net(lambda y: gate(y) * y))
        return [row.rule for row in plan(model, X).rows if row.type == "mul"][-1]

    for gate in (
        lambda y: y.sigmoid().sqrt(),
        lambda y: pairs(y.sigmoid()).prod(1).repeat(1, 2),
        lambda y: y.softmax(1).norm(dim=1, keepdim=True),
        lambda y: y.sigmoid().clamp(min=torch.tensor(0.2).double()),
        lambda y: (1 + y.square()) ** (-P),
        lambda y: torch.clamp(y + 3.0, 0, 6) / 6,
    ):
        assert rule(gate) == "gate held constant"
    assert rule(lambda y: y.square().sqrt()) == "1/2 to each factor"
    assert rule(lambda y: torch.clamp(y + 3.0, 0, torch.tensor(6.0))) == "1/2 to each factor"
