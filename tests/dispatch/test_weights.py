"""What parameters alone make is constant, however it is made, and may be written to as in torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Module):
    """The input times what is made of parameters; ReLU networks know LRP-0 otherwise too."""

    def __init__(self, make: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(6, 3))
        self.row = nn.Parameter(torch.randn(6))
        self.last = nn.Linear(6, 3)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x * self.make(self)).relu())


def kept(s: nn.Module) -> Tensor:
    """A view that is older than the pass, and has a graph."""
    if not hasattr(s, "view"):
        s.view = s.row[:]
    return s.view


def halves(s: nn.Module) -> Tensor:
    both = torch.repeat_interleave(s.q, 2, 1)
    left, right = both.narrow(1, 0, 3), both.narrow(1, 3, 3)
    left.mul_(2)
    right += left  # of the same memory
    return both.sum(1)


MADE: dict[str, Callable[[nn.Module], Tensor]] = {
    "repeat_interleave": lambda s: torch.repeat_interleave(s.p, 3, 0).add_(s.q).sum(1),
    "einsum": lambda s: torch.einsum("ij,kj->ki", s.p, s.q).mul_(2).sum(1),
    "tensordot": lambda s: torch.tensordot(s.q, s.p, ([1], [1])).relu_().sum(1),
    "parts of one": halves,
    "tile": lambda s: s.p.flatten().tile(2)[:6].add_(1.0),
    "written by an index": lambda s: (lambda w: w.__setitem__(0, 0.5) or w)(
        torch.einsum("ij,j->i", s.q, s.p[0])
    ),
    "exp of a view": lambda s: torch.exp(kept(s)),
    "sigmoid of a view": lambda s: 1 + torch.sigmoid(kept(s)) * s.row,
    "softplus of a view, in place": lambda s: F.softplus(kept(s)).sqrt_().add_(s.row),
    "repeat_interleave of two": lambda s: (
        torch.repeat_interleave(s.p, 3, 0).add_(s.q[:]).sum(1)  # a view, and no parameter
    ),
    "prelu": lambda s: F.prelu(s.row, torch.exp(kept(s)[:1])),
    "quotient": lambda s: s.row / torch.exp(kept(s)),
}


@pytest.mark.parametrize("name", MADE)
def test_it_is_constant(name) -> None:
    model = build(lambda: Scaled(MADE[name]))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = LRP(model, presets.zero(), strict=True).attribute(X, 1)
    assert relative_error(found, gradient_x_input(model, X, 1)) <= 1e-12
    assert [row.type for row in plan(model, X).rows] == ["mul", "relu", "Linear"]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def filled(constant: Tensor, y: Tensor) -> Tensor:
    constant[:2] = y[:2]
    return constant


WRITTEN: dict[str, tuple] = {
    "repeat_interleave": (
        lambda s, y: torch.repeat_interleave(s.p, 3, 0).add_(y),
        lambda s, y: torch.repeat_interleave(s.p, 3, 0) + y,
    ),
    "einsum": (
        lambda s, y: torch.einsum("ij,kj->ik", s.q, s.q[:3]).mul_(y),
        lambda s, y: torch.einsum("ij,kj->ik", s.q, s.q[:3]) * y,
    ),
    "a part": (
        lambda s, y: filled(torch.einsum("ij,kj->ik", s.q, s.p), y[:, :2]),
        lambda s, y: torch.cat([y[:2, :2], torch.einsum("ij,kj->ik", s.q, s.p)[2:]]),
    ),
    "a view of a parameter": (
        lambda s, y: torch.repeat_interleave(s.p, 3, 0).add_(s.q[:]) * y,
        lambda s, y: (torch.repeat_interleave(s.p, 3, 0) + s.q) * y,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_data_may_be_written_over_it(name) -> None:
    class Written(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            y = self.last(x)
            above, below = self.make(self, torch.cat([y, y.relu()])).chunk(2)
            return above + below

    writes, plain = (build(lambda step=step: Written(step)) for step in WRITTEN[name])
    torch.testing.assert_close(writes(X), plain(X))
    found = [LRP(m, presets.epsilon(0.1), strict=True).attribute(X, 1) for m in (writes, plain)]
    assert relative_error(*found) <= 1e-12


def test_it_is_an_operand_that_depends_on_nothing() -> None:
    """Functions of two arguments are known where the other one is constant."""

    class Slopes(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            slopes = torch.exp(kept(self))
            y = F.prelu(x, slopes) + F.layer_norm(x, (6,), slopes, kept(self))
            return self.last(F.linear(y, torch.diag(slopes)).relu())

    model = build(lambda: Slopes(lambda s: s.row))
    assert not plan(model, X).fallbacks
    rows = [row.rule for row in plan(model, X, presets.epsilon(0.1)).rows]
    assert rows.count("EpsilonRule") == 2 and "statistics held constant" in rows


@pytest.mark.parametrize(
    "make",
    [lambda s: s.row.add_(1.0), lambda s: s.row.view(2, 3).mul_(2.0).flatten()],
    ids=["the parameter", "a view of it"],
)
def test_a_parameter_is_never_written_to(make) -> None:
    model = build(lambda: Scaled(make))
    before = model.row.detach().clone()
    with pytest.raises(RuntimeError, match=r"in-place|inplace"):
        model(X)  # torch itself refuses
    with pytest.raises(RuntimeError, match=r"in-place|inplace"):
        LRP(model).attribute(X, 1)
    assert torch.equal(model.row, before)
