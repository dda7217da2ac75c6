"""The relevance form, operation by operation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import FlatRule, PassRule
from captum_lrp_stab.errors import ModelError
from tests.helpers import networks
from tests.helpers.studies import random_input, run


class Step(nn.Module):
    """Two layers and one step between them."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x)))


CONSTANT = torch.linspace(0.5, 2, 8, dtype=torch.float64)


def add_in_place(z: Tensor) -> Tensor:
    y = z * 2
    y += z
    y.sub_(CONSTANT)
    return y


def write_to_a_part(z: Tensor) -> Tensor:
    y = z.clone()
    y[:, :4] += z[:, 4:]
    y[:, 5] = z[:, 0]
    return y


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "+": lambda z: z + z.flip(1) + 1,
    "-": lambda z: 3 - (z - CONSTANT),
    "in place": add_in_place,
    "part": write_to_a_part,
    "times constant": lambda z: z * CONSTANT,
    "in place times": lambda z: z.clone().mul_(CONSTANT).div_(3),
    "over constant": lambda z: z / CONSTANT,
    "mean": lambda z: z.reshape(-1, 2, 4).mean(1).repeat(1, 2),
    "sum of a list": lambda z: sum(z.chunk(2, 1)).tile(2),
    "matmul": lambda z: z @ (torch.eye(8, dtype=z.dtype) - 0.2),
    "einsum": lambda z: torch.einsum("ni,ij->nj", z, torch.eye(8, dtype=z.dtype) + 0.3),
    "cat, stack, index": lambda z: torch.cat(
        [torch.stack([z[:, 0], z[:, 1]], 1), z[:, [5, 2, 2]], z[..., -3:]], 1
    ),
    "where": lambda z: torch.where(z > 0.2, z, torch.zeros_like(z)),
    "max": lambda z: torch.maximum(z, z.flip(1)) + z.amax(1, keepdim=True),
    "sort": lambda z: z.sort(1).values,
    "abs": lambda z: z.abs(),
    "norm": lambda z: z.reshape(-1, 4, 2).norm(dim=2).repeat(1, 2),
    "cumsum": lambda z: z.cumsum(1),
    "pool": lambda z: F.avg_pool1d(z[:, None], 3, 1, 1)[:, 0] + F.max_pool1d(z, 3, 1, 1),
    "interpolate": lambda z: F.interpolate(z[:, None], 16, mode="linear")[:, 0, ::2],
    "pad": lambda z: F.pad(z[:, 2:], (1, 1)),
    "relu": lambda z: F.relu(z, inplace=True),
    "leaky": lambda z: F.leaky_relu(z.clone(), 0.3, inplace=True),
    "prelu": lambda z: F.prelu(z, CONSTANT),
    "gelu": F.gelu,
    "hardtanh in place": lambda z: F.hardtanh(z.clone(), -0.5, 0.7, True),
    "dropout": lambda z: torch.dropout(z, 0.5, False),
    "product": lambda z: z * z.flip(1),
    "in place product": lambda z: z.clone().mul_(z.flip(1)),
    "gate": lambda z: z * torch.sigmoid(z.flip(1)).unsqueeze(0).squeeze(0),
    "gated linear unit": lambda z: F.glu(z, 1).repeat(1, 2),
    "divisor": lambda z: z / (1 + z.abs().mean(1, keepdim=True)),
    "square": lambda z: z**2 + z.square(),
    "softmax": lambda z: F.softmax(z, 1),
    "weights of data": lambda z: F.linear(z[:, :2], torch.cat([z, z])[:, :2]),
    "layer norm": lambda z: F.layer_norm(z, (8,), CONSTANT, CONSTANT),
    "rms norm": lambda z: F.rms_norm(z, (8,), CONSTANT),
    "group norm": lambda z: F.group_norm(z, 2, CONSTANT),
    "instance norm": lambda z: F.instance_norm(z.reshape(4, 2, 4)).flatten(1),
    "normalize": lambda z: F.normalize(z, dim=1),
    "attention": lambda z: F.scaled_dot_product_attention(
        *(t.reshape(1, 2, 4, 4) for t in (z, z.flip(0), z.flip(1))), scale=0.7
    ).reshape(4, 8),
    "no gradient": lambda z: z + torch.ones_like(z) * float(z.shape[1] > 3),
}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_of_the_relevance_form(name: str) -> None:
    model = networks.build(lambda: Step(STEPS[name]))
    x = random_input(4, 6)
    expected, done = run(model, x, "gradient").relevances[0], run(model, x, "relevance")
    torch.testing.assert_close(done.score, model(x)[:, 1].detach())
    torch.testing.assert_close(done.relevances[0], expected, rtol=1e-9, atol=1e-12)


def test_a_layer_may_read_what_is_written_over_later() -> None:
    def step(z: Tensor) -> Tensor:
        y = z.clone()
        other = F.linear(y, torch.eye(8, dtype=y.dtype) + 0.1)
        return other + F.relu_(y)

    model = networks.build(lambda: Step(step)).requires_grad_(False)
    x = random_input(4, 6)
    done = run(model, x, "relevance")
    torch.testing.assert_close(done.relevances[0], networks.gradient_x_input(model, x, 1))


def test_parameters_count_as_constants() -> None:
    model = networks.build(lambda: Step(lambda z: z))
    model.step = lambda z: z * model.scale
    x = random_input(4, 6)
    expected = run(model, x, "gradient").relevances[0]
    torch.testing.assert_close(run(model, x, "relevance").relevances[0], expected)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (torch.sigmoid, r"'sigmoid_0' \(sigmoid\) has no rule in relevance form"),
        (lambda z: 1 / z, "a division by a value that depends on the input"),
        (lambda z: F.layer_norm(z, (8,), z[0]), "its scale or its shift depend on the input"),
        (lambda z: z.logsumexp(1, keepdim=True).expand(-1, 8), "logsumexp"),
        (lambda z: torch.add(z, z, out=torch.empty(0, dtype=z.dtype)), "out"),
        (networks.Doubled.apply, "operation 'Doubled'"),
    ],
    ids=["sigmoid", "quotient", "layer norm", "logsumexp", "out", "custom"],
)
def test_unknown_operations_are_refused(step: Callable[[Tensor], Tensor], message: str) -> None:
    model = networks.build(lambda: Step(step))
    with pytest.raises((ModelError, RuntimeError), match=message):
        run(model, random_input(4, 6), "relevance")


def test_rules_without_a_coefficient_serve_any_layer_in_relevance_form() -> None:
    model = networks.build(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    x = random_input(2, 4)
    done = run(model, x, "relevance", {"2": FlatRule(stabilizer=0.0)})
    assert not torch.allclose(done.relevances[0], run(model, x, "gradient").relevances[0])
    first = run(model[0], x, "relevance", target=0).relevances[0] / model[0](x)[:, :1].detach()
    by_hand = sum(
        run(model[0], x, "relevance", target=k).relevances[0] / model[0](x)[:, k : k + 1].detach()
        for k in range(3)
    )
    assert first.shape == x.shape
    torch.testing.assert_close(done.relevances[0], by_hand * done.score[:, None] / 3)


def test_pass_rule_in_relevance_form() -> None:
    model = networks.build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    x = random_input(2, 4)
    done = run(model, x, "relevance", {"0": PassRule()})
    hidden = model[0](x).detach()
    torch.testing.assert_close(done.relevances[0], hidden * model[1].weight[1].detach())
