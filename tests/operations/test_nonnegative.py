"""Tensors that are marked as not negative are not negative."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lrp_stab import GammaRule
from captum_lrp_stab.dispatch.mode import Interception
from captum_lrp_stab.operations import nonnegative
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.short_ways import ROWS, both, distance, everywhere, steps

PLUS = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(4)).double()
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "relu": F.relu,
    "relu method": lambda x: x.relu(),
    "abs": abs,
    "exp": torch.exp,
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "softmax": lambda x: x.softmax(1),
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(0, 1),
    "clamp from below": lambda x: x.clamp(min=0.2),
    "clamp below 0": lambda x: x.clamp(-0.1, 1),
    "clamp from above": lambda x: x.clamp(max=1),
    "clamp by a tensor": lambda x: x.clamp(min=-torch.ones(()).double()),
    "hardtanh": F.hardtanh,
    "hardtanh from 0": lambda x: F.hardtanh(x, 0.0, 1.0),
    "norm": lambda x: x.norm(dim=1),
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "gelu": F.gelu,
    "add": lambda x: x + x,
    "add number": lambda x: x + 0.5,
    "add below 0": lambda x: x + -0.5,
    "add with alpha": lambda x: torch.add(x, 2 * x, alpha=-1),
    "add method": lambda x: x.add(other=x, alpha=-2),
    "subtract": lambda x: x - 0.5,
    "rsub": lambda x: 0.5 - x,
    "mul": lambda x: x * 0.5,
    "mul below 0": lambda x: x * -0.5,
    "mul by true": lambda x: x * (x > 0),
    "mul by minus": lambda x: x * -torch.ones(6).double(),
    "mul by integers": lambda x: x * -torch.ones(6, dtype=torch.long),
    "div": lambda x: x / 2,
    "div below 0": lambda x: x / -2.0,
    "div by itself": lambda x: x / (x + 1),
    "neg": lambda x: -x,
    "cat": lambda x: torch.cat([x, x], 1),
    "cat with minus": lambda x: torch.cat([x, -x], 1),
    "cat with constants": lambda x: torch.cat([x, -PLUS], 1),
    "stack": lambda x: torch.stack([x, x]),
    "maximum": lambda x: torch.maximum(x, x),
    "minimum of minus": lambda x: torch.minimum(x, -PLUS),
    "max": lambda x: x.max(1),
    "min": lambda x: x.min(1),
    "amax": lambda x: x.amax((1, 2)),
    "amin": lambda x: x.amin(1),
    "mean": lambda x: x.mean(1),
    "sum": lambda x: x.sum((1, 2)),
    "std": lambda x: x.std(1),
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "avg pool": lambda x: F.avg_pool2d(x, 3, padding=1),
    "adaptive avg pool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad below 0": lambda x: F.pad(x, (1, 1), "constant", -1.0),
    "pad by name": lambda x: F.pad(x, (1, 1), value=-2.0),
    "pad reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "getitem": lambda x: x[:, 1:, ..., 2],
    "index": lambda x: x[:, torch.tensor([0, 2])],
    "mask": lambda x: x[x > 0.1],
    "flatten": lambda x: x.flatten(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "T": lambda x: x.mT,
    "unbind": lambda x: x.unbind(1),
    "split": lambda x: x.split(2, 1),
    "expand": lambda x: x.unsqueeze(0).expand(2, -1, -1, -1, -1),
    "roll": lambda x: x.roll(1, 2).flip(1),
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float16),
    "to another": lambda x: x.to(torch.zeros((), dtype=torch.float32)),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "where": lambda x: torch.where(x > 1, x, -1.0),
    "masked fill": lambda x: x.masked_fill(x < 0.5, -1.0),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "matmul": lambda x: x @ x.mT,
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 6, 6, dtype=torch.long)),
    "index select": lambda x: torch.index_select(x, 1, torch.tensor([0, 2])),
    "sort": lambda x: x.sort(1),
    "cumsum": lambda x: x.cumsum(1),
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "double": lambda x: x.double(),
    "type as": lambda x: x.type_as(torch.zeros(1)),
    "stacked": lambda x: torch.hstack([x, x]),
    "stacked with minus": lambda x: torch.vstack([x, -x]),
    "clip": lambda x: torch.clip(x, 0.1, 1),
    "fill": lambda x: x.clone().fill_(-1.0),
    "index fill": lambda x: x.index_fill(0, torch.tensor([0]), -1.0),
    "scatter": lambda x: x.scatter(1, torch.zeros(2, 1, 6, 6, dtype=torch.long), -1.0),
    "nan to num": lambda x: torch.nan_to_num(x, neginf=-1.0),
    "pad sequence": lambda x: torch.nn.utils.rnn.pad_sequence([x[0], x[1, :2]], padding_value=-1.0),
    "copy over": lambda x: x.clone().copy_(-PLUS),
    "imaginary": lambda x: torch.complex(x, -x).imag,
    "in place relu": lambda x: x.clone().relu_(),
    "in place add": lambda x: x.clone().add_(-0.5),
    "in place mul": lambda x: x.clone().mul_(-1),
    "in place add of its own": lambda x: x.clone().add_(x),
    "in place clamp": lambda x: x.clone().clamp_(0, 1),
}
FALSE = {  # what only looks as if it had no negative element
    "integers beside it": lambda x: torch.cat([x, -torch.ones(2, 4, 6, 6, dtype=torch.long)], 1),
    "stacked integers": lambda x: torch.stack([x, -torch.ones(2, 4, 6, 6, dtype=torch.int32)]),
    "minimum of integers": lambda x: torch.minimum(x, torch.tensor([-1] * 6)),
    "min of integers": lambda x: torch.min(x, torch.tensor([-1] * 6)),
    "softplus upside down": lambda x: F.softplus(x, beta=-1.0),
    "clamp with its ends exchanged": lambda x: x.clamp(0, -1),
    "average with a negative divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=-1),
    "divided by minus 0": lambda x: x / -0.0,
}


def made_under_the_mode(call: Callable[[Tensor], Any], positive: bool) -> list[tuple[bool, float]]:
    """Whether each tensor that a call makes is marked, and its smallest element."""
    found: list[tuple[bool, float]] = []
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(3)).double()
    mode = GradientForm(nn.Identity(), RuleSet({}))
    (stand_in,) = mode.prepare((x,), (), None)
    with mode:
        given = stand_in.abs() if positive else stand_in * 1.0
        out = call(given)
    for t in out if isinstance(out, (tuple, list)) else (out,):
        smallest = float(t.detach().double().nan_to_num(0.0).min()) if t.numel() else 0.0
        found.append((nonnegative.is_nonnegative(t), smallest))
    return found


@pytest.mark.parametrize("positive", [False, True], ids=["mixed", "positive"])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_marked_is_not_negative(name, positive) -> None:
    for marked, smallest in made_under_the_mode(CALLS[name], positive):
        assert not marked or smallest >= 0


@pytest.mark.parametrize(
    "name",
    """relu abs exp square sigmoid softmax relu6 norm hardsigmoid clamp""".split(),
)
def test_what_can_be_known_of_any_input_is_known(name) -> None:
    assert all(marked for marked, _ in made_under_the_mode(CALLS[name], False))


@pytest.mark.parametrize(
    "name",
    ["max pool", "avg pool", "cat", "add", "mul", "div", "flatten", "permute", "mean", "index"],
)
def test_what_is_kept_is_known(name) -> None:
    assert all(marked for marked, _ in made_under_the_mode(CALLS[name], True))
    assert not any(marked for marked, _ in made_under_the_mode(CALLS[name], False))


@pytest.mark.parametrize("name", FALSE)
def test_what_only_looks_positive_is_not_marked(name) -> None:
    for marked, smallest in made_under_the_mode(FALSE[name], True):
        assert not marked or smallest >= 0


@pytest.mark.parametrize("name", ["integers beside it", "minimum of integers", "softplus"])
def test_a_layer_after_what_only_looks_positive_has_its_whole_rule(name) -> None:
    made = {
        "integers beside it": lambda y: torch.cat(
            [y[:, :4].relu(), -torch.ones(4, 4, dtype=torch.long)], 1
        ),
        "minimum of integers": lambda y: torch.minimum(
            y.relu(), torch.tensor([1, -1, 2, 0, 1, -2, 1, 1])
        ),
        "softplus": lambda y: F.softplus(y, beta=-1.0),
    }[name]
    model = steps(lambda s, z: s.inner(made(z)))
    short, long = both(model, everywhere(GammaRule), ROWS)
    assert distance(short, long) <= 1e-13


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "sub_": lambda y: y.sub_(1),
    "through a view": lambda y: y[:, :2].sub_(1),
    "through a detached alias": lambda y: y.detach().sub_(1),
    "setitem": lambda y: y.__setitem__((slice(None), 0), -1.0),
    "copy_": lambda y: y.copy_(-y.detach()),
    "through flatten": lambda y: y.flatten(1).mul_(-1),
    "masked_fill_": lambda y: y.masked_fill_(y > 0.5, -1.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_makes_a_mark_stale(name) -> None:
    def call(x: Tensor) -> Tensor:
        y = x.abs() + 0.0
        assert nonnegative.is_nonnegative(y)
        WRITES[name](y)
        return y

    ((marked, smallest),) = made_under_the_mode(call, True)
    assert smallest < 0 and not marked


def _written(y: Tensor) -> Tensor:
    y.data.sub_(1)
    return y


def test_a_write_that_autograd_does_not_see() -> None:
    ((marked, smallest),) = made_under_the_mode(lambda x: _written(x.relu()), True)
    assert smallest < 0 and not marked


@pytest.mark.parametrize("name", [n for n in WRITES if n != "copy_"])
def test_a_layer_after_a_write_has_its_whole_rule(name) -> None:
    def step(s: nn.Module, z: Tensor) -> Tensor:
        y = z.relu() + 0.0
        WRITES[name](y)
        return s.inner(y)

    short, long = both(steps(step), everywhere(GammaRule), ROWS)
    assert distance(short, long) <= 1e-13


@pytest.mark.parametrize(
    "name", ["unbind", "pad", "dropout", "expand", "split", "getitem", "to", "roll", "stack"]
)
def test_what_is_moved_is_known(name) -> None:
    assert all(marked for marked, _ in made_under_the_mode(CALLS[name], True))
    assert not any(marked for marked, _ in made_under_the_mode(CALLS[name], False))


def test_a_mark_that_nobody_gave_changes_the_relevance(monkeypatch) -> None:
    """The control."""
    monkeypatch.setattr(nonnegative, "gives_nonnegative", lambda *call: True)
    short, long = both(steps(lambda s, z: s.inner(z)), everywhere(GammaRule), ROWS)
    assert distance(short, long) > 1e-3


def test_the_mode_asks_before_a_call_writes() -> None:
    assert issubclass(Interception, TorchFunctionMode)
    found = made_under_the_mode(lambda x: x.clone().neg_().relu_(), True)
    assert found == [(True, 0.0)]
