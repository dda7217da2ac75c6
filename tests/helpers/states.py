"""A network that can fail at every stage, and all the state that a pass must leave as it was."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.rules.input_layer import ZBoxRule
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule


class Trouble(Exception):
    """What goes wrong inside."""


class FailingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise Trouble("backward")


class Model(nn.Module):
    """Batch norm, an in-place ReLU, an activation with a factor, and an operation that may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.pool, self.flatten = nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()
        self.hidden, self.gelu, self.out = nn.Linear(16, 5), nn.GELU(), nn.Linear(5, 3)
        self.conv.bias.requires_grad_(False)
        self.register_buffer("scale", torch.ones(5))
        self.fails_in = ""

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        x = self.flatten(self.pool(self.relu(self.norm(self.conv(x)))))
        if self.fails_in == "forward":
            raise Trouble("forward")
        x = self.gelu(self.hidden(x)) * self.scale
        if self.fails_in == "backward":
            x = FailingBackward.apply(x)
        return self.out(x if factor is None else x * factor)


class FailingRule(EpsilonRule):
    def groups(self, op: Any, x: Tensor) -> Any:
        raise Trouble("groups")


def failing_stabilizer(z: Tensor) -> Tensor:
    raise Trouble("stabilizer")


def name_map(failure: str) -> NameMap:
    hidden = FailingRule if failure == "groups" else EpsilonRule
    stabilizer = failing_stabilizer if failure == "stabilizer" else 1e-3
    return [
        (["conv"], ZBoxRule, {"low": -6, "high": 6}),
        (["hidden"], hidden, {"stabilizer": stabilizer}),
        (["out"], GammaRule, {"gamma": 0.5}),
    ]


def make(seed: int = 0) -> tuple[Model, Tensor]:
    torch.manual_seed(seed)
    model = Model().double().eval()
    model.norm.running_var.uniform_(0.5, 2)
    return model, torch.randn(3, 2, 6, 6, dtype=torch.float64)


def tensor_state(t: Tensor) -> tuple[Any, ...]:
    grad = t.grad.numpy().tobytes() if t.is_leaf and t.grad is not None else None
    values = t.detach().numpy().tobytes()
    return id(t), values, t.data_ptr(), t.requires_grad, grad, vars(t).copy()


def state(model: nn.Module) -> dict[str, Any]:
    """Every parameter and buffer bit by bit, every attribute of every module, and hook by hook."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "tensors": {name: tensor_state(t) for name, t in tensors},
        "modules": {
            name: (
                type(module),
                {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()},
            )
            for name, module in model.named_modules()
        },
    }


@contextmanager
def unchanged(model: nn.Module, *inputs: Tensor) -> Iterator[None]:
    before = state(model), [(tensor_state(x), x._version) for x in inputs]
    yield
    assert state(model) == before[0]
    assert [(tensor_state(x), x._version) for x in inputs] == before[1]


FAILURES = ["forward", "groups", "stabilizer", "backward"]


def bad_layer(model: Model) -> None:
    """Make one output of a layer exactly 0, so that there is an origin to follow up."""
    with torch.no_grad():
        model.hidden.weight[1] = 0
        model.hidden.bias[1] = 0
