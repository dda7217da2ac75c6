"""What trips LRP implementations up without a word, each found by attack, against oracles."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captum_lrp_stab import LRP, FlatRule, GammaRule, LayerLRP, PassRule, ZBoxRule, plan, presets
from captum_lrp_stab.errors import FallbackError, ModelError, RuleError
from tests.helpers.layers import relative_error
from tests.helpers.networks import Net, build, gradient_x_input, net

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()

# writing in place --------------------------------------------------------------------------------


def crelu(s, x):
    z = s.a(x)
    negative = -z
    F.relu_(z)
    return s.b(torch.cat([z, F.relu(negative)], 1))


def clone_before_relu(s, x):
    z = s.a(x)
    before = z.clone()
    F.relu_(z)
    return s.b(torch.cat([z, before], 1))


def write_after_pad(s, x):
    padded = F.pad(x, (1, 1, 1, 1))
    padded.mul_(3.0)
    return s.c(padded).mean((2, 3))


def write_before_conv(s, x):
    x = x * 1.0
    padded = F.pad(x, (1, 1, 1, 1))
    x.zero_()
    return s.c(padded).mean((2, 3))


@pytest.mark.parametrize("function", [crelu, clone_before_relu, write_after_pad, write_before_conv])
def test_in_place_writes_between_operations(function) -> None:
    model = net(function, a=nn.Linear(4, 5), b=nn.Linear(10, 2), c=nn.Conv2d(3, 4, 3))
    x = IMAGES if "conv" in function.__name__ or "pad" in function.__name__ else X
    expected = gradient_x_input(model, x, target=1)
    assert relative_error(LRP(model, presets.zero()).attribute(x, target=1), expected) <= 1e-12


def test_a_pool_that_returns_a_view_may_be_written_over() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.AvgPool1d(2), nn.ReLU(inplace=True), nn.Flatten())
    model = build(lambda: nn.Sequential(*model, nn.Linear(8, 2)))
    x = torch.randn(2, 3, 6).double()
    relevance = LRP(model, presets.zero()).attribute(x, target=0)
    assert relative_error(relevance, gradient_x_input(model, x, target=0)) <= 1e-12


def test_an_input_written_over_after_its_layer_is_named() -> None:
    def function(s, x):
        h = s.a(x)
        y = s.b(h)
        h.add_(1.0)
        return y + h

    with pytest.raises(ModelError, match="layer 'b': the model writes over the layer's input"):
        LRP(net(function, a=nn.Linear(4, 2), b=nn.Linear(2, 2))).attribute(X, target=0)


# what depends on the input -----------------------------------------------------------------------


def test_weights_that_depend_on_the_input_are_factors() -> None:
    modules = {"a": nn.Linear(4, 5), "w": nn.Linear(4, 10)}
    model = net(lambda s, x: F.linear(s.a(x), s.w(x[:1]).reshape(2, 5)), **modules)
    written = net(lambda s, x: (s.a(x)[:, None] * s.w(x[:1]).reshape(2, 5)).sum(2), **modules)
    written.load_state_dict(model.state_dict())
    relevance = LRP(model, presets.zero(), strict=True).attribute(X, target=1)
    expected = LRP(written, presets.zero()).attribute(X, target=1)
    assert relative_error(relevance, expected) <= 1e-12
    assert relative_error(relevance, gradient_x_input(model, X, target=1)) > 1e-3


def test_a_bias_that_depends_on_the_input_is_one_more_summand() -> None:
    modules = {"a": nn.Linear(4, 5), "b": nn.Linear(5, 2), "v": nn.Linear(4, 2)}
    model = net(lambda s, x: F.linear(s.a(x), s.b.weight, bias=s.v(x[:1])[0]), **modules)
    relevance = LRP(model, presets.zero(), strict=True).attribute(X, target=1)
    assert relative_error(relevance, gradient_x_input(model, X, target=1)) <= 1e-12


DEPENDENT = {
    "batch norm": lambda s, x: F.batch_norm(s.a(x), s.m, s.m + 1, weight=s.a(x)[0]),
    "layer norm": lambda s, x: F.layer_norm(s.a(x), (5,), weight=s.a(x)[0]),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_weights_that_depend_on_the_input_keep_their_gradient_and_are_listed(name) -> None:
    model = net(DEPENDENT[name], a=nn.Linear(4, 5))
    model.register_buffer("m", torch.zeros(5).double())
    relevance = LRP(model, presets.zero(), fallbacks="ignore").attribute(X, target=1)
    assert relative_error(relevance, gradient_x_input(model, X, target=1)) <= 1e-12
    assert any("depend on the input" in row.fallback for row in plan(model, X).fallbacks)
    with pytest.raises(FallbackError, match="depend on the input"):
        LRP(model, strict=True).attribute(X, target=1)


def test_operations_on_parameters_alone_are_no_fallbacks() -> None:
    def function(s, x):
        return s.a(x) * torch.sigmoid(s.gate.weight[:, 0])

    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    model = net(function, a=layer, gate=nn.Linear(4, 5))
    assert not plan(model, X).fallbacks
    relevance = LRP(model, presets.zero(), strict=True).attribute(X, target=1)
    assert relative_error(relevance, gradient_x_input(model, X, target=1)) <= 1e-12


def test_operations_with_several_outputs_are_listed() -> None:
    x = torch.randn(2, 5, 4).double()
    model = net(lambda s, x: s.inner(x)[0].sum((1, 2)), inner=nn.LSTM(4, 3, batch_first=True))
    assert [row.type for row in plan(model, x).fallbacks] == ["LSTM"]
    with pytest.raises(FallbackError):
        LRP(model, strict=True).attribute(x)


def test_a_warped_grid_is_listed_and_a_fixed_one_is_not() -> None:
    grid = torch.rand(2, 6, 6, 2).double() - 0.5
    fixed = net(
        lambda s, x: F.grid_sample(s.c(x), grid, align_corners=False).mean((2, 3)),
        c=nn.Conv2d(3, 4, 3),
    )
    warped = net(
        lambda s, x: F.grid_sample(x, grid + x[:, :1].mean(), align_corners=False).mean((2, 3))
    )
    assert not plan(fixed, IMAGES).fallbacks
    assert [row.fallback for row in plan(warped, IMAGES).fallbacks] == [
        "it is not linear in an argument that depends on the input"
    ]


# names and rules ---------------------------------------------------------------------------------


class Squared(nn.Module):
    """A leaf of a type of its own, without a linear operation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()


@pytest.mark.parametrize(
    ("layer", "rule"),
    [(nn.Sigmoid(), PassRule), (nn.LayerNorm(5), PassRule), (Squared(), GammaRule)],
)
def test_a_rule_that_serves_no_operation_of_its_layer_is_an_error(layer, rule) -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 5), layer, nn.Linear(5, 2)))
    with pytest.raises(RuleError, match=f"on layer '1' .{type(layer).__name__}.: the layer ran no"):
        LRP(model, [(["1"], rule, {})]).attribute(X, target=0)


def test_a_layer_that_never_runs_may_have_a_rule() -> None:
    model = net(lambda s, x: s.a(x), a=nn.Linear(4, 2), spare=nn.Linear(2, 2))
    LRP(model, [(["a", "spare"], GammaRule, {})]).attribute(X, target=0)


def test_a_functional_call_does_not_take_a_modules_rule_by_its_name() -> None:
    model = net(
        lambda s, x: F.linear(s.linear_0(x).relu(), s.w.weight),
        linear_0=nn.Linear(4, 5),
        w=nn.Linear(5, 2),
    )
    rows = plan(model, X, [(["linear_0"], GammaRule, {})]).layers
    assert [(row.name, row.rule) for row in rows] == [
        ("linear_0", "GammaRule"),
        ("linear_1", "EpsilonRule (default)"),
    ]


def test_a_module_that_raises_does_not_leave_its_name_behind() -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError

    def function(s, x):
        try:
            return s.a(x)
        except ArithmeticError:
            return F.linear(x, s.a.weight)

    model = net(function, a=Fails(4, 2))
    (row,) = plan(model, X).rows
    assert (row.name, row.rule) == ("linear_0", "EpsilonRule (default)")


def test_rules_that_read_the_input_through_a_reshape() -> None:
    model = build(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.ReLU(), nn.Linear(5, 2))
    )
    bare = nn.Sequential(*model[1:])
    for rule, parameters in ((FlatRule, {}), (ZBoxRule, {"low": -5.0, "high": 5.0})):
        relevance = LRP(model, [(["1"], rule, parameters)]).attribute(IMAGES, target=0)
        expected = LRP(bare, [(["0"], rule, parameters)]).attribute(IMAGES.flatten(1), target=0)
        assert torch.equal(relevance, expected.reshape(IMAGES.shape))
    assert LRP(model, presets.epsilon_plus_flat()).attribute(IMAGES, target=0).abs().max() > 0
    clamped = nn.Sequential(nn.Hardtanh(), *bare)  # which relevance passes as it is
    relevance = LRP(clamped, [(["1"], FlatRule, {})]).attribute(IMAGES.flatten(1), target=0)
    expected = LRP(bare, [(["0"], FlatRule, {})]).attribute(IMAGES.flatten(1).clamp(-1, 1), 0)
    torch.testing.assert_close(relevance, expected)


def test_numbers_of_numpy_are_numbers() -> None:
    assert GammaRule(np.float32(0.25)) is not None
    assert GammaRule(np.int64(1)).gamma == 1.0


# models that cannot be followed ------------------------------------------------------------------


def test_checkpointing_is_refused() -> None:
    def function(s, x):
        return checkpoint(lambda y: s.b(s.a(y).relu()), x, use_reentrant=False)

    with pytest.raises(ModelError, match="activation checkpointing"):
        LRP(net(function, a=nn.Linear(4, 4), b=nn.Linear(4, 4))).attribute(X, target=0)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x) * torch.bernoulli(torch.full((5,), 0.5, dtype=x.dtype)),
        lambda s, x: s.a(x) + torch.randn(5, dtype=x.dtype),
        lambda s, x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.5)[0],
    ],
    ids=["bernoulli", "randn", "attention dropout"],
)
def test_randomness_in_train_mode_is_refused(function) -> None:
    model = net(function, a=nn.Linear(4, 5)).train()
    with pytest.raises(ModelError, match=r"is random, .*call model.eval\(\)"):
        LRP(model).attribute(X, target=0)


def test_layers_with_dropout_of_their_own_are_refused_in_train_mode() -> None:
    model = net(lambda s, x: s.r(x[:, None])[0][:, 0], r=nn.LSTM(4, 3, 2, dropout=0.5)).train()
    with pytest.raises(ModelError, match=r"'r' \(LSTM\) in train mode"):
        LRP(model).attribute(X, target=0)


def test_a_layer_compiled_in_place_is_refused() -> None:
    model = net(lambda s, x: s.a(x), a=nn.Linear(4, 2))
    model.a.compile()
    with pytest.raises(ModelError, match=r"'a' \(Linear\) was made by torch.compile"):
        LRP(model).attribute(X, target=0)


def test_a_full_backward_hook_of_the_user_is_no_fallback() -> None:
    model = net(lambda s, x: s.b(s.a(x).relu()), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    expected = LRP(model).attribute(X, target=0)
    model.a.register_full_backward_hook(lambda module, given, handed: None)
    assert torch.equal(LRP(model, strict=True).attribute(X, target=0), expected)


def test_autocast_inside_the_model() -> None:
    def function(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return s.b(s.a(x).relu()).float()

    model = build(lambda: Net(function, a=nn.Linear(4, 5), b=nn.Linear(5, 2)), dtype=torch.float32)
    rules = [(["a", "b"], GammaRule, {})]
    relevance = LRP(model, rules).attribute(X.float(), target=0)
    plain = copy.deepcopy(model).double()
    plain.function = lambda s, x: s.b(s.a(x).relu())
    assert relative_error(relevance, LRP(plain, rules).attribute(X, target=0)) <= 0.05


def test_layer_lrp_of_a_padding_before_the_box_rule() -> None:
    model = build(lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.Flatten()))
    rules = [(["1"], ZBoxRule, {"low": -5.0, "high": 5.0})]
    expected = LRP(model, rules).attribute(IMAGES, target=20)
    relevance = LayerLRP(model, model[0], rules).attribute(
        IMAGES, target=20, attribute_to_layer_input=True
    )
    assert torch.equal(relevance, expected)
