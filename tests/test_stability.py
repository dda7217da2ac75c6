"""What the gradient form is for: finite where the relevance form divides by zero, poles named."""

import pytest
import torch
from captum.attr import LRP as CaptumLRP
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    ZeroRule,
    ZPlusRule,
    attach_rules,
    stabilizers,
)
from captum_lrp_stab.errors import NonFiniteRelevanceError, NonFiniteRelevanceWarning
from tests.helpers.networks import build, cnn

BUILT_IN = [
    stabilizers.Identity(),
    stabilizers.Signed(1e-6),
    stabilizers.Signed(1e-3, relative=True),
    stabilizers.RootMeanSquare(1e-6),
    stabilizers.Additive(1e-6),
    stabilizers.Clip(1e-6),
    stabilizers.RoundingAware(),
]
RULES = [ZeroRule, GammaRule, ZPlusRule, AlphaBetaRule]


def dead_network() -> nn.Module:
    """Without biases, so that a black picture makes every pre-activation exactly 0."""
    model = build(cnn, dtype=torch.float32)
    for layer in model:
        if getattr(layer, "bias", None) is not None:
            layer.bias = None
    return model


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    black = torch.zeros(1, 3, 8, 8)
    half = torch.rand(1, 3, 8, 8, generator=generator)
    half[..., :5] = 0
    return torch.cat([black, half])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("s", BUILT_IN, ids=repr)
def test_gradient_form_is_finite_where_denominators_are_zero(rule, s) -> None:
    model, x = dead_network(), pictures()
    assert (model[0](x) == 0).any()
    name_map = [(["0", "3", "5", "6"], rule, {"stabilizer": s})]
    relevance = LRP(model, name_map, nonfinite="raise").attribute(x, target=1)
    assert relevance.isfinite().all()
    assert relevance[0].abs().max() == 0
    if rule is ZeroRule:
        assert relevance[1].abs().max() > 0


@pytest.mark.parametrize("rule", [ZeroRule, ZPlusRule, AlphaBetaRule])  # gamma skips z = 0
def test_relevance_form_without_stabilizer_is_not(rule) -> None:
    name_map = [(["0", "3", "5", "6"], rule, {"stabilizer": stabilizers.Identity()})]
    model = dead_network()
    with attach_rules(model, name_map):
        relevance = CaptumLRP(model).attribute(pictures(), target=1)
    assert relevance.isnan().any()


@settings(max_examples=60, deadline=None)
@given(
    zeros=st.lists(st.booleans(), min_size=6, max_size=6),
    dead=st.lists(st.booleans(), min_size=5, max_size=5),
    scale=st.sampled_from([1e-30, 1e-12, 1.0, 1e12]),
    s=st.sampled_from(BUILT_IN[:4] + BUILT_IN[5:]),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 1000),
)
def test_relu_networks_are_finite_whatever_vanishes(zeros, dead, scale, s, rule, seed) -> None:
    """Zero inputs, dead neurons, tiny and huge pre-activations, in any combination."""
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), seed=seed)
    with torch.no_grad():
        model[0].weight[torch.tensor(dead)] = 0
        model[0].bias[torch.tensor(dead)] = 0
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
    x = torch.linspace(-1, 2, 6).double().masked_fill(torch.tensor(zeros), 0)[None]
    name_map = [(["0", "2"], rule, {"stabilizer": s})]
    relevance = LRP(model, name_map, nonfinite="ignore").attribute(x, target=1)
    # unsigned, a share of the mean can hit a pole for real; all others cannot
    if not isinstance(s, stabilizers.RootMeanSquare):
        assert relevance.isfinite().all()
    assert (relevance[x == 0] == 0).all()


def poles() -> nn.Module:
    """Three layers, of which the first and the second have z = -1 at a live neuron."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)).double()
    for layer, weight in zip(model, (-1.0, 1.0, 2.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.zeros_(layer.bias)
    return model


def test_a_pole_is_reported_at_the_first_layer_it_arises_in() -> None:
    """Backwards: layer 1 comes before layer 0."""
    model, x = poles(), torch.ones(1, 1).double()
    name_map = [(["0", "1", "2"], EpsilonRule, {"epsilon": 1.0, "signed": False})]
    with pytest.raises(
        NonFiniteRelevanceError, match=r"first arose in layer '1' under EpsilonRule"
    ):
        LRP(model, name_map, nonfinite="raise").attribute(x, target=0)
    with pytest.warns(NonFiniteRelevanceWarning, match="layer '1'"):
        relevance = LRP(model, name_map).attribute(x, target=0)
    assert not relevance.isfinite().all()
    assert not LRP(model, name_map, nonfinite="ignore").attribute(x, target=0).isfinite().all()
    only_first = [(["0"], EpsilonRule, {"epsilon": 1.0, "signed": False})]
    with pytest.raises(NonFiniteRelevanceError, match="layer '0'"):
        LRP(model, only_first, nonfinite="raise").attribute(x, target=0)


def test_a_pole_under_a_coefficient_of_zero_is_no_pole() -> None:
    """The layer's output at its pole does not reach the target."""
    model = poles()
    model[2] = nn.Linear(1, 1).double()
    nn.init.zeros_(model[2].weight)
    nn.init.ones_(model[2].bias)
    name_map = [(["0", "1"], EpsilonRule, {"epsilon": 1.0, "signed": False})]
    relevance = LRP(model, name_map, nonfinite="raise").attribute(torch.ones(1, 1).double(), 0)
    assert (relevance == 0).all()


def test_overflow_in_the_forward_pass_is_named() -> None:
    model = build(cnn, dtype=torch.float32)
    with torch.no_grad():
        model[3].weight.fill_(1e38)
    with pytest.raises(NonFiniteRelevanceError, match="pre-activations first arose in layer '3'"):
        LRP(model, nonfinite="raise").attribute(10 * torch.ones(1, 3, 8, 8), target=0)
