"""Functional layers and operations: addressed by name, by index and by preset, as modules are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    LayerFilter,
    LayerLRP,
    ZBoxRule,
    attach_rules,
    plan,
    presets,
    types,
)
from captum_lrp_stab.errors import LayerFilterError, ModelError, RuleError, RuleMapError
from captum_lrp_stab.layer_filter import layers_of
from tests.helpers.layers import relative_error
from tests.helpers.networks import (
    Functional,
    Modules,
    build,
    gradient_x_activation,
    gradient_x_input,
)

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
BOX = {"low": -5.0, "high": 5.0}


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module]:
    modules, functional = build(Modules), build(Functional)
    state = {name.replace(".", "_"): t for name, t in modules.state_dict().items()}
    functional.load_state_dict(state)
    return modules, functional


NAMES = {
    "first": "conv2d_0",
    "inner": "conv2d_1",
    "pool": "avg_pool2d_0",
    "last": "conv2d_2",
    "head": "linear_0",
}


def test_a_name_map_gives_rules_to_functional_layers(pair) -> None:
    modules, functional = pair
    choices = {
        "first": (ZBoxRule, BOX),
        "inner": (GammaRule, {"gamma": 0.5}),
        "pool": (EpsilonRule, {"epsilon": 0.1}),
        "last": (AlphaBetaRule, {}),
        "head": (EpsilonRule, {"epsilon": 0.01}),
    }
    expected = LRP(modules, [([n], *c) for n, c in choices.items()]).attribute(X, target=1)
    name_map = [([NAMES[n]], *choice) for n, choice in choices.items()]
    assert relative_error(LRP(functional, name_map).attribute(X, target=1), expected) <= 1e-12
    for i in range(len(name_map)):  # the control: each entry counts
        without = LRP(functional, name_map[:i] + name_map[i + 1 :]).attribute(X, target=1)
        assert relative_error(without, expected) > 1e-6


PRESETS = [
    presets.zero(),
    presets.epsilon(0.1),
    presets.epsilon_plus(0.1),
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(**BOX),
]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_presets_mean_the_same_on_functional_layers(pair, preset) -> None:
    modules, functional = pair
    expected = LRP(modules, preset).attribute(X, target=1)
    assert relative_error(LRP(functional, preset).attribute(X, target=1), expected) <= 1e-12
    named = preset(functional, X)
    assert sorted(n for names, _, _ in named for n in names) == sorted(NAMES.values())
    assert relative_error(LRP(functional, named).attribute(X, target=1), expected) <= 1e-12


def test_the_tutorials_map_counts_functional_layers_by_depth(pair) -> None:
    modules, functional = pair
    preset = presets.lrp_tutorial(**BOX)
    expected = LRP(modules, preset).attribute(X, target=1)
    named = preset(functional, X)
    assert [(names, rule) for names, rule, _ in named] == [
        ([NAMES[n] for n in names], rule) for names, rule, _ in preset(modules)
    ]
    assert relative_error(LRP(functional, named).attribute(X, target=1), expected) <= 1e-12
    rules = {row.name: row.rule for row in plan(functional, X, preset).layers}
    assert rules == {name: rule.__name__ for names, rule, _ in named for name in names}
    assert relative_error(LRP(functional, preset).attribute(X, target=1), expected) <= 1e-12


def test_a_filter_with_inputs_counts_as_the_plan_does(pair) -> None:
    _, functional = pair
    rows = plan(functional, X).rows
    layers = LayerFilter(functional, inputs=X)
    assert layers(lambda n: True) == list(NAMES.values())
    for row in rows:
        assert LayerFilter(functional, (nn.Module,), X)(lambda n, i=row.index: n == i) == [row.name]
    assert layers(lambda n: n >= 2, types.Convolution) == ["conv2d_1", "conv2d_2"]
    assert layers(lambda n: True, types.Activation) == ["relu_0", "relu_1", "relu_2"]
    assert layers(lambda n: True, types.AvgPool) == ["avg_pool2d_0"]
    with pytest.raises(LayerFilterError, match=rf"of its plan indices 0 to {len(rows) - 1} it me"):
        layers(lambda n: n > len(rows))
    modules = build(Modules)
    kinds = {**dict(modules.named_modules())}
    assert [(n, k) for n, k in layers_of(modules, X) if n in kinds] == [
        (n, type(kinds[n])) for n in NAMES
    ]


def test_names_that_no_layer_has(pair) -> None:
    _, functional = pair
    with pytest.raises(RuleMapError, match="names 'conv9d_0', which is not a leaf module"):
        LRP(functional, [(["conv9d_0"], GammaRule, {})])
    with pytest.raises(RuleMapError, match=r"names 'body\.conv2d_0', which is not a leaf module"):
        LRP(functional, [(["body.conv2d_0"], GammaRule, {})])
    explainer = LRP(functional, [(["conv2d_3"], GammaRule, {})])
    with pytest.raises(
        RuleError, match=r"'conv2d_3': the pass ran no layer or sum of this name; .*conv2d"
    ):
        explainer.attribute(X, target=0)
    message = "'conv2d_0' is a functional call, and stock Captum only sees modules"
    with pytest.raises(RuleMapError, match=message):
        attach_rules(build(Modules), [(["conv2d_0"], GammaRule, {})])


# LayerLRP ----------------------------------------------------------------------------------------


def test_relevance_of_functional_operations_in_one_pass(pair) -> None:
    """Against the same network cut in two at the operation."""
    _, model = pair

    def upper(y: Tensor) -> Tensor:
        y = F.conv2d(F.avg_pool2d(y, 2), weight=model.last_weight, bias=model.last_bias).relu_()
        return F.linear(torch.flatten(y, 1), model.head_weight, model.head_bias)

    with torch.no_grad():
        x = F.conv2d(X, model.first_weight, model.first_bias, padding=1).relu()
        inner = F.conv2d(x, model.inner_weight, model.inner_bias, padding=1)
    total = (x + inner.relu()).requires_grad_()
    (c,) = torch.autograd.grad(upper(total)[:, 1].sum(), total)
    explainer = LayerLRP(model, ["add_0", "conv2d_1", "linear_0"], presets.zero())
    add, conv, logits = explainer.attribute(X, target=1)
    assert relative_error(add, total.detach() * c) <= 1e-12
    assert relative_error(conv, inner * c * (inner > 0)) <= 1e-12
    torch.testing.assert_close(logits, model(X).detach() * torch.eye(3, dtype=X.dtype)[1])
    left, right = LayerLRP(model, "add_0", presets.zero()).attribute(
        X, target=1, attribute_to_layer_input=True
    )
    assert relative_error(left, inner.relu() * c) <= 1e-12
    assert relative_error(right, x * c) <= 1e-12
    untouched = LRP(model, presets.zero()).attribute(X, target=1)
    assert relative_error(untouched, gradient_x_input(model, X, 1)) <= 1e-12


def test_a_module_by_its_name(pair) -> None:
    modules, _ = pair
    by_name = LayerLRP(modules, ["inner", "head"]).attribute(X, target=1)
    by_module = LayerLRP(modules, [modules.inner, modules.head]).attribute(X, target=1)
    assert all(torch.equal(a, b) for a, b in zip(by_name, by_module, strict=True))
    whole, add = LayerLRP(modules, [modules.pool, "add_0"], presets.zero()).attribute(X, target=1)
    pooled = gradient_x_activation(modules, modules.pool, X, 1)
    assert relative_error(whole, pooled) <= 1e-12
    torch.testing.assert_close(add.sum((1, 2, 3)), whole.sum((1, 2, 3)))


def test_names_that_no_operation_has(pair) -> None:
    modules, _ = pair
    with pytest.raises(ModelError, match=r"'add_1' is no module, .* did you mean 'add_0'"):
        LayerLRP(modules, "add_1").attribute(X, target=1)


class Twice(nn.Module):
    """A block of functional code that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.weight = nn.Parameter(torch.randn(4, 4))
        self.block.forward = lambda x: F.linear(x, self.block.weight).relu() + x

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x))


def test_a_block_that_runs_twice_has_the_same_names_twice() -> None:
    model = build(Twice)
    x = torch.randn(3, 4).double()
    names = ["block.linear_0", "block.relu_0", "block.add_0"]
    assert [row.name for row in plan(model, x).rows] == names * 2
    rules = [(["block.linear_0"], GammaRule, {"gamma": 0.5})]
    assert [r.rule for r in plan(model, x, rules).layers] == ["GammaRule"] * 2
    relevance = LayerLRP(model, "block.add_0", presets.zero()).attribute(x, target=0)
    expected = gradient_x_activation(model, model.block, x, target=0)
    assert relative_error(relevance, expected) <= 1e-12


def test_the_projections_of_attention_have_names() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0].sum(1)

    model = build(Attends)
    x = torch.randn(2, 5, 4).double()
    names = ["attention.linear_0", "attention.out_proj"]
    assert [row.name for row in plan(model, x).layers] == names
    plain = LRP(model, presets.zero()).attribute(x, target=1)
    for name in names:
        rules = [([name], GammaRule, {"gamma": 0.5})]
        assert {r.name: r.rule for r in plan(model, x, rules).layers}[name] == "GammaRule"
        assert relative_error(LRP(model, rules).attribute(x, target=1), plain) > 1e-3
    weights = LayerLRP(model, "attention.softmax_0").attribute(x, target=1)
    assert weights.shape == (2, 2, 5, 5)
