"""What runs where no mode sees it is listed, and does not mislead the layers that it reads."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, FlatRule, LayerLRP, plan, presets
from captum_lrp_stab.errors import FallbackError, ModelError, RuleError
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]
X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Function = Callable[[Tensor], Tensor]


def doubled(z: Tensor) -> Tensor:
    return torch.add(z, z)


def squashed(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.exp(z)


def scripted(function: Function) -> Function:
    return torch.jit.script(function)


def traced(function: Function) -> Function:
    return torch.jit.trace(function, torch.ones(3, 5).double())


def in_a_thread(function: Function) -> Function:
    def run(z: Tensor) -> Tensor:
        results: list[Tensor] = []
        thread = threading.Thread(target=lambda: results.append(function(z)))
        thread.start()
        thread.join()
        return results[0]

    return run


def in_cpp(function: Function) -> Function:
    """As an extension in C++ does it, past the dispatch of Python."""

    def run(z: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return function(z)

    return run


WAYS = {"script": scripted, "trace": traced, "thread": in_a_thread, "C++": in_cpp}


class Net(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.__dict__["function"] = function  # a scripted function is no module

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def explained(function: Function, **options) -> Tensor:
    model = build(lambda: Net(function))
    return LRP(model, presets.epsilon(0.1), fallbacks="ignore", **options).attribute(X, 1)


@pytest.mark.parametrize("way", WAYS)
def test_it_is_listed(way) -> None:
    hidden = WAYS[way](squashed)
    model = build(lambda: Net(hidden))
    for _ in range(3):  # torch.jit runs a function in another way when it knows it
        planned = plan(model, X)
        assert [row.name for row in planned.rows] == ["first", "unseen_0", "last"]
        (row,) = planned.fallbacks
        assert row.type == "unseen" and row.fallback.startswith("run out of sight: ")
        with pytest.raises(FallbackError, match="unseen_0"):
            LRP(model, strict=True).attribute(X, 1)
    assert plan(build(lambda: Net(torch.relu)), X).fallbacks == ()


@pytest.mark.parametrize("way", WAYS)
def test_it_is_listed_at_the_end_too(way) -> None:
    hidden = WAYS[way](squashed)

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            unread = hidden(y)  # noqa: F841
            return hidden(y)

    rows = plan(build(Ends), X).rows
    assert [row.name for row in rows] == ["first", "unseen_0"]


@pytest.mark.parametrize("way", WAYS)
def test_its_result_has_a_relevance(way) -> None:
    model = build(lambda: Net(WAYS[way](squashed)))
    seen = build(lambda: Net(squashed))
    with torch.no_grad():
        value = squashed(model.first(X))
    last = nn.Sequential(seen.last)
    options = {"rules": presets.epsilon(0.1), "fallbacks": "ignore"}
    found = LayerLRP(model, "unseen_0", **options).attribute(X, target=1)
    assert relative_error(found, LRP(last, **options).attribute(value, target=1)) <= 1e-12


READERS: dict[str, Function] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "relu in place": lambda z: F.relu(z.clone(), inplace=True),
}


@pytest.mark.parametrize("options", [{}, {"optimize": False}], ids=["short", "plain"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_knows_that_it_is_read(way, reader, options) -> None:
    """Doubling is linear: its plain gradient is right, beside whatever reads the layer too."""
    hidden, function = WAYS[way](doubled), READERS[reader]
    expected = explained(lambda z: 2 * z + function(z))
    for _ in range(3):
        found = explained(lambda z: hidden(z) + function(z), **options)
        assert relative_error(found, expected) <= 1e-12


def test_a_custom_function_that_runs_out_of_sight() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return 2 * z

        @staticmethod
        def backward(ctx, c: Tensor) -> Tensor:
            return 2 * c

    for function in READERS.values():
        found = explained(lambda z, f=function: Doubled.apply(z) + f(z))
        assert relative_error(found, explained(lambda z, f=function: 2 * z + f(z))) <= 1e-12
    planned = plan(build(lambda: Net(Doubled.apply)), X)
    assert [row.name for row in planned.fallbacks] == ["Doubled"]


@pytest.mark.parametrize("way", WAYS)
def test_other_forms_refuse_it(way) -> None:
    model = build(lambda: Net(WAYS[way](squashed)))
    with pytest.raises(RuleError, match="unseen_0"):
        LRP(model, [(["last"], FlatRule, {})]).attribute(X, 1)
    with pytest.raises(ModelError, match="unseen_0"):
        propagate(model, X, 1, rule_set=RuleSet({}, EpsilonRule()), form=form_of("relevance"))


def test_what_is_seen_is_not_listed() -> None:
    """Views whose base is written to get nodes that no operation has made."""

    def step(z: Tensor) -> Tensor:
        z = z.clone()
        left, right = z[:, :2], z.T[2:].T
        left *= 2
        z[:, 4:] += right[:, :1]
        buffer = torch.zeros(5, 3, dtype=z.dtype).T
        part = buffer[:, 1:]
        part.copy_(z[:, 1:])
        part[:, 0].neg_()
        return buffer + z.view(-1).unflatten(0, (3, 5)) + F.pad(left + right[:, :2], (0, 3))

    for hooked in (False, True):
        model = build(lambda: Net(step))
        if hooked:
            model.first.register_full_backward_hook(lambda *given: None)
        assert plan(model, X).fallbacks == ()
        LayerLRP(model, "first", presets.zero()).attribute(X, 1)
        LRP(model, strict=True, checkpoint=["first"]).attribute(X, 1)


def test_parameters_may_do_as_they_like() -> None:
    class Hidden(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) * self.function(self.first.bias)

    for way in ("thread", "C++"):
        planned = plan(build(lambda way=way: Hidden(WAYS[way](squashed))), X)
        assert [row.name for row in planned.rows] == ["first", "mul_0"]
        assert planned.fallbacks == ()
