"""Gates: what only scales a signal takes no relevance from it, however it is written."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from captum_lrp_stab.operations import gates
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

X = 2 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
THREE, HALF = torch.tensor(3.0).double(), torch.full((8,), 0.5).double()
ROUTES = torch.tensor([[2, 0, 1, 7, 7, 3, 5, 0]] * 4)
Step = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two layers, and a step between them."""

    def __init__(self, step: Step, bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8, bias), nn.Linear(8, 3, bias)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))


def relevance(step: Step, **options) -> Tensor:
    return LRP(build(lambda: Net(step)), presets.zero(), strict=True, **options).attribute(X, 1)


def in_place_swish(z: Tensor) -> Tensor:
    gate = z.clone()
    gate.sigmoid_()
    gate *= z
    return gate


MASK = torch.eye(4, dtype=torch.bool)[:2]


def buffered(gate: Tensor) -> Tensor:
    buffer = torch.zeros_like(gate)
    buffer[:] = gate
    return buffer


BY_HAND: dict[str, tuple[Step, Step]] = {
    "gelu": (lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), F.gelu),
    "gelu by tanh": (
        lambda z: z * 0.5 * (torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)) + 1.0),
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "silu": (lambda z: z * z.sigmoid(), F.silu),
    "silu in place": (in_place_swish, F.silu),
    "hardswish": (lambda z: z * F.relu6(z + 3.0) / 6.0, F.hardswish),
    "hardswish by clamp": (lambda z: z * ((3 + z).clamp(0, 6) / 6), F.hardswish),
    "hardswish by module": (lambda z: F.hardsigmoid(z) * z, F.hardswish),
    "hardswish with a buffer": (lambda z: z * F.relu6(z + THREE) / 6, F.hardswish),
    "gelu of the normal": (lambda z: z * torch.special.ndtr(z), F.gelu),
    "silu by tanh": (lambda z: z * (0.5 + 0.5 * torch.tanh(z / 2)), F.silu),
    "softsign": (lambda z: z / (1 + z.abs()), F.softsign),
    "square": (lambda z: z * z, lambda z: z.pow(2)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_written_out_is_the_activation(name) -> None:
    by_hand, function = BY_HAND[name]
    torch.testing.assert_close(by_hand(X), function(X))
    assert relative_error(relevance(by_hand), relevance(function)) <= 1e-12
    x = X.clone().requires_grad_()
    model = build(lambda: Net(function))
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert relative_error(relevance(by_hand), gradient * X) > 1e-3  # the control


GATED: dict[str, Step] = {
    "highway": lambda z: z.sigmoid() * z.flip(1) + (1 - z.sigmoid()) * z,
    "LSTM cell": lambda z: torch.tanh(z.tanh() * z.flip(1).sigmoid()) * z.roll(1).sigmoid(),
    "twice a sigmoid": lambda z: z * (2 * torch.sigmoid(z.flip(1))),
    "gate of gates": lambda z: z * (z.sigmoid() * z.flip(1).sigmoid()),
    "reshaped": lambda z: (
        z.reshape(4, 2, 4) * z.reshape(4, 2, 4).mean(2).sigmoid()[:, :, None].expand(4, 2, 4)
    ).flatten(1),
    "split": lambda z: (lambda a, b: torch.cat([a * b, a], 1))(
        z[:, :4], z.sigmoid().chunk(2, 1)[1]
    ),
    "concatenated": lambda z: z * torch.cat([z[:, :4].sigmoid(), z[:, 4:].sigmoid()], 1),
    "rms norm": lambda z: z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-3),
    "layer norm": lambda z: (z - z.mean(1, keepdim=True)) / (z.var(1, keepdim=True) + 1e-3).sqrt(),
    "one over": lambda z: z * (1 / (2 + z.abs().amax(1, keepdim=True))),
    "sign": lambda z: z.abs() * torch.sign(z),
    "thresholded": lambda z: z * F.relu(z.flip(1).sigmoid() - 0.4),
    "thresholded weights": lambda z: z * F.relu(z.softmax(1) - 0.05, inplace=True),
    "shaped by the signal": lambda z: z * z.mean(1, keepdim=True).sigmoid().expand_as(z),
    "pooled": lambda z: z * F.avg_pool1d(z.sigmoid(), 2).repeat_interleave(2, 1).clamp(0.1, 0.9),
    "interpolated": lambda z: z * F.interpolate(z[:, None, :4].sigmoid(), 8)[:, 0],
    "negative power": lambda z: z * (z.square().mean(1, keepdim=True) + 1e-3) ** -0.5,
    "lerp": lambda z: torch.lerp(z, z.flip(1), z.sigmoid()),
    "addcdiv": lambda z: torch.addcdiv(z, z.flip(1), 1 + z.abs(), value=0.5),
    "var_mean": lambda z: (lambda v, m: (z - m) / (v + 1e-3).sqrt())(
        *torch.var_mean(z, 1, keepdim=True)
    ),
    "std_mean": lambda z: (lambda s, m: z * m / (s + 1))(*torch.std_mean(z, 1, True, True)),
    "cosine": lambda z: F.cosine_similarity(z, z.flip(1))[:, None] * z,
    "aliases": lambda z: torch.special.expit(z) * torch.special.erf(z),
    "in place": lambda z: z * z.flip(1).clone().add_(3.0).clamp_(0.0, 6.0).div_(6.0),
    "tanh in place": lambda z: z * torch.tanh(z.flip(1)).add_(1).mul_(0.5),
    "sigmoid in place": lambda z: z * torch.sigmoid(z.flip(1)).mul_(2),
    "weights in place": lambda z: (
        z.reshape(4, 2, 4) * z.reshape(4, 2, 4).softmax(1).mul_(2).masked_fill_(MASK, 0.0)
    ).flatten(1),
    "written into a buffer": lambda z: z * buffered(z.sigmoid()),
    "keyword": lambda z: z * torch.add(torch.tanh(z), other=1),
    "constant tensor": lambda z: z * (torch.tanh(z) + torch.ones(8).double()),
    "summand and factor": lambda z: torch.addcmul(z, z, z.sigmoid()),
    "named summand": lambda z: torch.addcmul(tensor1=z.flip(1), tensor2=z.sigmoid(), input=z),
    "softsign gate": lambda z: z * (1 + F.softsign(z.flip(1))) / 2,
    "arc tangent": lambda z: z * (0.5 + torch.atan(z.flip(1)) / math.pi),
    "hard tanh": lambda z: z * (2 - F.hardtanh(z.flip(1), -2.0, 2.0)),
    "half a tanh": lambda z: z * torch.tanh(z.flip(1)).mul_(HALF).add_(HALF),
    "complement of erf": lambda z: z * torch.special.erfc(z.flip(1)),
    "summed weights": lambda z: z * z.flip(1).softmax(1).cumsum(1),
    "scattered weights": lambda z: (
        z * torch.zeros_like(z).scatter_add(1, ROUTES, z.flip(1).softmax(1))
    ),
    "folded": lambda z: (
        z * F.fold(z.flip(1).sigmoid()[:, None].expand(-1, 2, -1), (1, 9), (1, 2))[:, 0, 0, 1:]
    ),
    "branches": lambda z: (
        torch.stack([z, z.flip(1)], 1) * torch.stack([z, 2 * z], 1).softmax(1)
    ).sum(1),
}


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
@pytest.mark.parametrize("name", GATED)
def test_a_gate_keeps_the_sum(name, attention) -> None:
    model = build(lambda: Net(GATED[name], bias=False))
    explainer = LRP(model, presets.zero(), attention=attention, strict=True)
    found, delta = explainer.attribute(X, 1, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12 * found.abs().max()
    rows = plan(model, X).rows
    assert any(row.rule in ("gate held constant", "divisor held constant") for row in rows)
    assert any(row.rule == "constant" for row in rows)


def test_a_quotient_of_one_tensor_keeps_its_sign() -> None:
    model = build(lambda: Net(lambda z: z + z / z, bias=False))
    found, delta = LRP(model, presets.zero(), strict=True).attribute(X, 1, None, True)
    assert delta.abs().max() <= 1e-12 * found.abs().max()


def test_what_no_gate_is_shares() -> None:
    def rules(step: Step) -> list[str]:
        model = build(lambda: Net(step))
        return [row.rule for row in plan(model, X).rows if row.type == "mul"]

    assert rules(lambda z: z * z.flip(1)) == ["1/2 to each factor"]
    assert rules(lambda z: z.tanh() * z.flip(1)) == ["1/2 to each factor"]
    assert rules(lambda z: F.relu6(z) * z) == ["1/2 to each factor"]
    assert rules(lambda z: (z + 3).tanh() * z) == ["1/2 to each factor"]
    assert rules(lambda z: (z + 1e-3).clamp(0, 6) * z) == ["1/2 to each factor"]
    assert rules(lambda z: torch.add(z.tanh(), z.flip(1).tanh(), alpha=1) * z) == [
        "1/2 to each factor"
    ]
    assert rules(lambda z: (z.tanh() + torch.rand(8).double()) * z) == ["1/2 to each factor"]
    assert rules(lambda z: F.relu6(torch.add(z, 3, alpha=2)) * z) == ["1/2 to each factor"]
    assert rules(lambda z: (z + 1).clamp(min=0) * z) == ["1/2 to each factor"]
    assert rules(lambda z: (z - 0.5).clamp(-1, 1) * z) == ["1/2 to each factor"]
    assert rules(lambda z: F.linear(z.sigmoid(), torch.eye(8).double()) * z) == [
        "1/2 to each factor"
    ]


def test_a_mark_does_not_outlive_a_write() -> None:
    t = gates.marked(torch.ones(2), gates.Gate.FACTOR)
    assert gates.of(t) is gates.Gate.FACTOR
    t += 1
    assert gates.of(t) is None


SIGNALS: dict[str, Step] = {  # which no constant that is added makes a gate
    "two of them": lambda z: z * (1 + torch.tanh(z) + torch.tanh(z.flip(1))),
    "their sum": lambda z: z * (1 + (torch.tanh(z) + torch.tanh(z.flip(1)))),
    "scaled": lambda z: z * (1 + 3 * torch.tanh(z)),
    "divided": lambda z: z * (1 + torch.tanh(z) / HALF),
    "summed": lambda z: z * (1 + torch.tanh(z).cumsum(1)),
    "less is added": lambda z: z * (0.5 + torch.tanh(z)),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_what_takes_both_signs_is_no_gate(name) -> None:
    model = build(lambda: Net(SIGNALS[name], bias=False))
    assert "1/2 to each factor" in [row.rule for row in plan(model, X).rows]
