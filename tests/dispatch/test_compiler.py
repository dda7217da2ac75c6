"""A function that attributes may be compiled: what is around the attribution is, it is not."""

import subprocess
import sys
import types

import pytest
import torch

from captum_lrp_stab import LRP, LayerLRP, plan, presets
from captum_lrp_stab.dispatch.compiler import Eager, uncompiled
from captum_lrp_stab.errors import NonFiniteRelevanceWarning
from tests.helpers.networks import build
from tests.helpers.several import Several, assert_same

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


WAYS = {
    "attribute": lambda lrp, layer, x: lrp.attribute(x, target=1),
    "attribute_many": lambda lrp, layer, x: lrp.attribute_many(x, [0, 1]),
    "layer": lambda lrp, layer, x: layer.attribute(x, target=1),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_result_is_the_same(way) -> None:
    model = build(Several)
    rules = presets.epsilon_plus()
    explainers = LRP(model, rules), LayerLRP(model, model.norm, rules)
    compiled = 0

    def backend(graph, inputs):
        nonlocal compiled
        compiled += 1
        assert not any("conv2d" in str(node.target) for node in graph.graph.nodes)
        return graph.forward

    @torch.compile(backend=backend)
    def outer(x):
        return WAYS[way](*explainers, x.sin() * 2)

    assert_same(outer(X), WAYS[way](*explainers, X.sin() * 2), tolerance=0)
    assert compiled > 0  # the control: torch.compile did something


def test_a_warning_is_of_the_users_line() -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    torch.nn.init.constant_(model.weight, 3.0)
    x = torch.full((1, 3), 3e38)
    with pytest.warns(NonFiniteRelevanceWarning) as caught:
        LRP(model).attribute(x, target=0)
    assert [w.filename for w in caught] == [__file__]


def test_another_thread_may_be_importing_the_compiler(monkeypatch) -> None:
    half = types.ModuleType("torch._dynamo")  # without what it is going to have
    monkeypatch.setitem(sys.modules, "torch._dynamo", half)
    assert uncompiled(lambda x: x + 1)(1) == 2


def test_importing_does_not_load_the_compiler() -> None:
    code = "import sys, captum_lrp_stab; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# functions that a model has compiled -------------------------------------------------------------

with_stance = pytest.mark.skipif(
    not hasattr(torch.compiler, "set_stance"), reason="needs PyTorch 2.6"
)


def stance() -> str:
    return torch._dynamo.eval_frame._stance.stance


class Compiles(torch.nn.Module):
    """A compiled function between two layers."""

    def __init__(self, compiled: bool) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
        self.function = torch.compile(self.gated, backend="eager") if compiled else self.gated

    @staticmethod
    def gated(z: torch.Tensor) -> torch.Tensor:
        return torch.relu(z) * torch.sigmoid(z)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.first(x)))


@with_stance
@pytest.mark.parametrize("checkpoint", [(), ("first",), ("last",)])
def test_compiled_functions_are_followed(checkpoint) -> None:
    x = X.flatten(1)[:, :4]
    found, expected = (
        LRP(build(lambda c=c: Compiles(c)), strict=True, checkpoint=checkpoint).attribute(x, 1)
        for c in (True, False)
    )
    assert torch.equal(found, expected)
    rows = plan(build(lambda: Compiles(True)), x).rows
    assert [row.type for row in rows] == ["Linear", "relu", "sigmoid", "mul", "Linear"]
    assert stance() == "default"


@with_stance
def test_the_compiler_is_as_it_was() -> None:
    model = build(lambda: Compiles(True))
    with pytest.raises(RuntimeError, match="shapes"):
        LRP(model).attribute(X.flatten(1)[:, :3], 1)
    assert stance() == "default"
    some, other = Eager(), Eager()  # of two threads
    some.__enter__()
    other.__enter__()
    some.__exit__()
    assert stance() == "force_eager"
    other.__exit__()
    assert stance() == "default"
    with torch.compiler.set_stance("fail_on_recompile"):
        with some:
            assert stance() == "force_eager"
        assert stance() == "fail_on_recompile"


@with_stance
@pytest.mark.slow
def test_the_compiler_may_be_loaded_by_the_model() -> None:
    code = """
import sys
import warnings
import torch
from captum_lrp_stab import plan
warnings.simplefilter("ignore")
def gated(z):
    return torch.relu(z) * torch.sigmoid(z)
class Late(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)
    def forward(self, x):
        return self.last(torch.compile(gated, backend="eager")(self.first(x)))
assert "torch._dynamo" not in sys.modules
rows = plan(Late(), torch.ones(1, 4)).rows
sys.exit([row.type for row in rows] != ["Linear", "relu", "sigmoid", "mul", "Linear"])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
