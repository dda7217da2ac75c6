"""Networks with the short ways and without: the same, at the input and at every layer."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    LayerLRP,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    presets,
    stabilizers,
)
from captum_lrp_stab.errors import NonFiniteRelevanceWarning
from captum_lrp_stab.fast import coefficients
from tests.helpers import short_ways as ways
from tests.helpers.networks import Residual, build
from tests.helpers.short_ways import (
    IMAGES,
    ROWS,
    assert_agree,
    assert_layers_agree,
    both,
    distance,
    steps,
)

CLIP = stabilizers.Clip(0.1)
USERS: dict[str, Any] = {
    "stabilize": ways.OwnStabilize,
    "groups": ways.OwnGroups,
    "coefficient": ways.OwnCoefficient,
    "messages": ways.OwnMessages,
}


@pytest.mark.parametrize("stabilizer", ways.STABILIZERS)
@pytest.mark.parametrize("rule", [EpsilonRule, GammaRule, AlphaBetaRule, ZPlusRule, ZeroRule])
def test_a_network_under_every_stabilizer(rule, stabilizer) -> None:
    model = build(lambda: Residual(inplace=True))
    rules = [(["first", "shared", "last"], rule, {"stabilizer": ways.STABILIZERS[stabilizer]})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteRelevanceWarning)  # identity: 1/0 is possible
        short, long = both(model, rules, IMAGES)
    assert torch.equal(short.isfinite(), long.isfinite())
    assert distance(short.nan_to_num(), long.nan_to_num()) <= 1e-13


LAYOUTS = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1, :, :, :1].expand(3, 3, 8, 8),
    "transposed": lambda x: x.transpose(2, 3),
    "every other": lambda x: torch.cat([x, x], 3)[..., ::2],
    "one sample": lambda x: x[:1],
    "three samples": lambda x: torch.cat([x, x[:1]]),
    "not negative": lambda x: x.abs(),
    "zeros": lambda x: x * (x > 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_input(layout, inplace, dtype, block) -> None:
    model = build(lambda: ways.Normed(inplace), dtype=dtype)
    x = LAYOUTS[layout](IMAGES).to(dtype)
    for preset in (presets.epsilon_gamma_box(-6, 6), presets.epsilon_alpha2_beta1()):
        assert_agree(model, preset, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_precision_is_as_near_to_double(dtype) -> None:
    model = build(ways.Normed, dtype=torch.float64)
    rules = [(["conv", "second", "head"], GammaRule, {"stabilizer": 1e-3})]
    exact = LRP(model, rules, optimize=False).attribute(IMAGES, 1)
    model.to(dtype)
    short, long = both(model, rules, IMAGES.to(dtype))
    assert short.dtype == dtype
    assert distance(short, exact) <= 1.5 * distance(long, exact) <= 0.3


ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky": lambda inplace=False: nn.LeakyReLU(0.1, inplace),
    "elu": lambda inplace=False: nn.ELU(inplace=inplace),
    "gelu": lambda inplace=False: nn.GELU(),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_probes_at_every_layer(name, inplace, block) -> None:
    act = ACTIVATIONS[name]
    model = build(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), act(inplace=inplace), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 5, 3), act(inplace=inplace), nn.Flatten(), nn.Linear(5, 3)),
        )
    )
    rules = [(["0"], ZBoxRule, {"low": -6.0, "high": 6.0}), (["4"], GammaRule, {})]
    assert_agree(model, rules, IMAGES)
    names = ["2", "4", "5", "6", "7"]  # 0 and 1 are one layer, of pixels
    assert_layers_agree(model, rules, IMAGES, names)


READ_TWICE = {
    "z is added": lambda s, z: z.relu() + z,
    "z is read before": lambda s, z: z.sigmoid() + z.relu(),
    "z goes through a layer": lambda s, z: s.inner(z) + z.relu(),
    "a view of z": lambda s, z: torch.cat([z[:, :4], z.relu()[:, 4:]], 1),
    "a view before writing": lambda s, z: z[:, :4].repeat(1, 2) + z.relu_(),
    "relu of a view": lambda s, z: torch.cat([z[:, :4].relu_(), z[:, 4:]], 1) + z,
    "relu written over": lambda s, z: (z.relu() * 1.0).add_(z),
    "relu twice": lambda s, z: z.relu_().relu(),
    "an activation written over": lambda s, z: F.silu(z).mul_(2).add_(1),
    "reused": lambda s, z: s.inner(s.inner(z.relu()).relu()).relu(),
    "reused in place": lambda s, z: s.inner(s.inner(z.relu_()).relu_()).relu_(),
    "max of both": lambda s, z: torch.maximum(z, s.inner(z.relu())),
}


@pytest.mark.parametrize("rule", [EpsilonRule, GammaRule, AlphaBetaRule])
@pytest.mark.parametrize("name", READ_TWICE)
def test_a_pre_activation_read_twice(name, rule) -> None:
    model = steps(READ_TWICE[name])
    assert_agree(model, ways.everywhere(rule, stabilizer=0.05), ROWS)
    assert_layers_agree(model, ways.everywhere(rule), ROWS, ["first", "inner", "last"][:1])


WRITTEN_AFTER = {
    "added to": lambda s, z, a: z.add_(a),
    "scaled": lambda s, z, a: z.mul_(2) + a,
    "silu": lambda s, z, a: F.silu(z, inplace=True) + a,
    "leaky relu": lambda s, z, a: F.leaky_relu(z, 0.1, inplace=True) + a,
}


@pytest.mark.parametrize("name", WRITTEN_AFTER)
def test_a_pre_activation_written_over_after_its_relu(name) -> None:
    assert_agree(
        steps(lambda s, z: WRITTEN_AFTER[name](s, z, z.relu())), presets.epsilon(0.1), ROWS
    )


class BothSidesOfItsNorm(nn.Module):
    """A convolution that an activation reads as it is, and another with its batch norm."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.activation(y) + self.norm(y)).mean((2, 3)))


@pytest.mark.parametrize("stabilizer", [1e-6, CLIP])
@pytest.mark.parametrize("rule", [EpsilonRule, GammaRule, AlphaBetaRule])
@pytest.mark.parametrize("activation", [F.relu, F.relu6, F.silu, F.leaky_relu])
def test_what_is_known_of_a_layer_alone_is_not_of_it_with_its_norm(
    activation, rule, stabilizer
) -> None:
    model = build(lambda: BothSidesOfItsNorm(activation))
    rules = ways.everywhere(rule, "conv", stabilizer=stabilizer)
    assert_agree(model, rules, IMAGES.abs())  # half of a rule is empty then


class ReturnsBoth(nn.Module):
    """The pre-activation is returned as well as rectified."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return torch.cat([self.last(z.relu()), z], 1)


@pytest.mark.parametrize("target", [1, 4, 9])
def test_a_pre_activation_that_is_returned(target) -> None:
    model = build(ReturnsBoth)
    for rule in (EpsilonRule, GammaRule, ZPlusRule):
        assert_agree(model, ways.everywhere(rule, "first", "last"), ROWS, target)


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize("step", ["plain", "rectified"])
def test_a_users_rule(name, step) -> None:
    model = steps((lambda s, z: z.relu()) if step == "rectified" else (lambda s, z: s.inner(z)))
    assert_agree(model, ways.everywhere(USERS[name], "first"), ROWS)


def test_a_users_stabilizer_that_sees_all_of_z() -> None:
    rules = ways.everywhere(EpsilonRule, "first", stabilizer=ways.MeanStabilizer())
    assert_agree(steps(lambda s, z: z.relu()), rules, ROWS)


def test_a_callable_that_sees_all_of_z() -> None:
    rules = ways.everywhere(EpsilonRule, "first", stabilizer=ways.MeanStabilizer().stabilize)
    assert_agree(steps(lambda s, z: z.relu()), rules, ROWS)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("rule", [ways.BySign, ways.Favouring])
def test_a_users_terms_by_sign(rule, rectified) -> None:
    model = steps(lambda s, z: s.inner(z.relu() if rectified else z))
    assert_agree(model, ways.everywhere(rule, "inner"), ROWS)


# that these tests can fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "step", "rule", "parameters"),
    [
        ((True, False, False), lambda s, z: s.inner(z), GammaRule, {}),
        ((True, False, False), lambda s, z: s.inner(z), AlphaBetaRule, {}),
        ((False, True, False), lambda s, z: z.relu() + z, GammaRule, {"stabilizer": CLIP}),
        ((False, True, True), lambda s, z: z.relu() + z, EpsilonRule, {"epsilon": 0.1}),
        ((False, True, True), lambda s, z: z.relu() + z, ZeroRule, {"stabilizer": 0.1}),
    ],
)
def test_what_is_not_so_changes_the_result(claims, step, rule, parameters, monkeypatch) -> None:
    model, rules = steps(step), ways.everywhere(rule, **parameters)
    truth = coefficients.Known
    short, long = both(model, rules, ROWS)
    assert distance(short, long) <= 1e-13
    monkeypatch.setattr(coefficients, "Known", lambda *known: truth(*claims))
    wrong, again = both(model, rules, ROWS)
    assert torch.equal(again, long)
    assert distance(wrong, long) > 1e-3


def test_without_short_ways_lean_is_never_asked(monkeypatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(coefficients, "coefficient", refuse)
    model = steps(lambda s, z: z.relu())
    LRP(model, presets.epsilon(), optimize=False).attribute(ROWS, 1)
    LayerLRP(model, "first", optimize=False).attribute(ROWS, 1)
    with pytest.raises(AssertionError):
        LRP(model, presets.epsilon()).attribute(ROWS, 1)


@pytest.mark.parametrize("g", [F.silu, F.gelu, F.relu6, torch.tanh], ids=lambda g: g.__name__)
def test_what_an_activation_made_may_be_written_over(g) -> None:
    """Its factor is made from it in the backward pass, as long as it is what it was."""
    rules = presets.epsilon(0.1)
    written = LRP(steps(lambda s, z: g(z).mul_(2).add_(1)), rules).attribute(ROWS, 1)
    assert distance(written, LRP(steps(lambda s, z: g(z) * 2 + 1), rules).attribute(ROWS, 1)) == 0
