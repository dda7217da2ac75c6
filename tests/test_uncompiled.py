"""A function that attributes may be compiled: what is around the attribution is, it is not."""

import subprocess
import sys
import types

import pytest
import torch
from networks import build
from several import Several, assert_same

from captum_lrp_stab import LRP, LayerLRP, presets
from captum_lrp_stab.errors import NonFiniteRelevanceWarning
from captum_lrp_stab.uncompiled import uncompiled

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
