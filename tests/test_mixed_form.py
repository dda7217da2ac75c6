"""Rules that give relevance, at any depth: against the relevance form, which serves them too."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layers import relative_error
from networks import Residual, build, cnn
from studies import random_input
from torch import Tensor, nn
from torchvision.models import resnet18, vgg11_bn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    FlatRule,
    GammaRule,
    LayerLRP,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    plan,
)
from captum_lrp_stab.errors import ModelError, RuleError
from captum_lrp_stab.forms import form_of
from captum_lrp_stab.propagation import propagate
from captum_lrp_stab.rule_set import RuleSet
from captum_lrp_stab.translation import rule_set_of

DIRECT = {
    "flat": (FlatRule, {}),
    "w_square": (WSquareRule, {}),
    "z_box": (ZBoxRule, {"low": -50.0, "high": 50.0}),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], list[str], list[str]]] = {
    # model, layers with a rule that gives relevance, layers with gamma
    "second layer": (lambda: cnn(nn.GELU()), ["3"], ["0"]),
    "first two layers": (cnn, ["0", "3"], ["6"]),
    "in place": (lambda: cnn(inplace=True), ["3"], ["0", "6"]),
    "last layer": (cnn, ["6"], ["3"]),
    "residual, used twice": (Residual, ["shared"], ["first"]),
    "residual in place": (lambda: Residual(inplace=True), ["shared"], ["first"]),
    "vgg11_bn": (lambda: vgg11_bn(num_classes=5), ["features.4", "features.8"], ["features.0"]),
    "resnet18": (
        lambda: resnet18(num_classes=5),
        ["layer1.0.conv2", "layer2.0.downsample.0"],
        ["conv1", "layer1.0.conv1"],
    ),
}


@pytest.mark.filterwarnings("ignore:ZBoxRule.* outside the box")
@pytest.mark.parametrize("rule", DIRECT)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_relevance_form(name, rule) -> None:
    make, direct, proportional = MODELS[name]
    model, x = build(make), random_input(2, 3, 32 if "1" in name else 8, 32 if "1" in name else 8)
    name_map = [(direct, *DIRECT[rule]), (proportional, GammaRule, {"gamma": 0.3})]
    relevance = LRP(model, name_map, strict=True).attribute(x, target=1)
    rules = rule_set_of(model, name_map).named
    # a tiny epsilon at additions and the like keeps 0 / 0 at 0 there
    rule_set = RuleSet(rules, EpsilonRule())
    expected = propagate(
        model, x, 1, rule_set=rule_set, form=form_of("relevance", 1e-300)
    ).relevances[0]
    assert relative_error(relevance, expected) <= 1e-10
    epsilon = [(direct, EpsilonRule, {}), (proportional, GammaRule, {"gamma": 0.3})]
    assert relative_error(LRP(model, epsilon).attribute(x, target=1), expected) > 1e-3  # control


def test_an_input_of_zero_has_relevance_under_the_flat_rule() -> None:
    """By hand: a dead neuron hands its share on, as no coefficient could."""
    model = build(lambda: nn.Sequential(nn.Linear(2, 2, False), nn.ReLU(), nn.Linear(2, 1, False)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, -3.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, 5.0]]))
    x = torch.tensor([[1.0, 2.0]]).double()  # pre-activations 3 and -7, score 6
    rules = [(["0"], ZeroRule, {}), (["2"], FlatRule, {"stabilizer": 0.0})]
    relevance = LRP(model, rules).attribute(x)
    expected = torch.tensor([[3 * (1 / 3 + 1 / 7), 3 * (2 / 3 + 6 / 7)]]).double()
    torch.testing.assert_close(relevance, expected)
    hidden, logits = LayerLRP(model, [model[1], model[2]], rules).attribute(x)
    torch.testing.assert_close(hidden, torch.full((1, 2), 3.0).double())
    torch.testing.assert_close(logits, torch.full((1, 1), 6.0).double())
    given = LayerLRP(model, model[0], rules).attribute(x)
    torch.testing.assert_close(given, hidden)


def test_a_zero_that_gets_relevance_hands_nothing_on() -> None:
    """0 / 0 is 0: additions of dead neurons give no NaN."""
    model = build(lambda: Residual(inplace=False))
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    x[..., :4] = random_input(1, 3, 8, 4)
    model.first.bias.detach().zero_()
    model.norm.running_mean.zero_()
    model.norm.bias.detach().zero_()
    relevance = LRP(model, [(["shared"], FlatRule, {})], nonfinite="raise").attribute(x, target=1)
    assert relevance.isfinite().all()


class Branches(nn.Module):
    """A gate, a product, a norm and functional layers below; the input read above as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(F.silu(self.a(x)))
        h = h * self.b(h).sigmoid() + h * h.roll(1, 1)
        h = h / (1 + h.abs().mean(1, keepdim=True))
        h = F.softmax(h, 1).mul_(h) * 8
        y = F.linear(100 * h, self.b.weight)
        return self.head(y.relu()) + x[:, :3] * h[:, :3]


def test_other_operations_below() -> None:
    model, x = build(Branches), random_input(3, 6)
    rules = {"linear_0": FlatRule(stabilizer=1e-9)}
    rule_set = RuleSet(rules, EpsilonRule())
    found = propagate(model, x, 1, rule_set=rule_set).relevances[0]
    expected = propagate(model, x, 1, rule_set=rule_set, form=form_of("relevance", 1e-300))
    assert relative_error(found, expected.relevances[0]) <= 1e-9
    assert relative_error(found, propagate(model, x, 1, rule_set=RuleSet({})).relevances[0]) > 1e-3


def test_relevance_of_inner_layers_of_the_stretch() -> None:
    model, x = build(cnn), random_input(2, 3, 8, 8)
    rules = [(["3"], FlatRule, {})]
    explainer = LayerLRP(model, ["0", "1", "3", "6"], rules)
    below, activation, _, _ = explainer.attribute(x, target=1)
    assert torch.equal(below, activation)  # relevance passes the activation as it is
    (given,) = LayerLRP(model, ["3"], rules).attribute(x, 1, attribute_to_layer_input=True)
    pooled = LayerLRP(model, model[2], rules).attribute(x, target=1)
    assert torch.equal(given, pooled)
    torch.testing.assert_close(pooled.sum((1, 2, 3)), activation.sum((1, 2, 3)))
    relevance = LRP(model, rules).attribute(x, target=1)
    again = LRP(model, rules)
    assert torch.equal(again.attribute(x, target=1), relevance)
    assert torch.equal(again.attribute(x, target=1), relevance)


def test_what_has_no_rule_below_is_named() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)))
    x = random_input(2, 4)
    rules = [(["2"], FlatRule, {})]
    message = r"FlatRule on layer '2': .* operation 1 \(Sigmoid: no LRP rule .* EpsilonRule"
    for call in (lambda: LRP(model, rules).attribute(x, 1), lambda: plan(model, x, rules)):
        with pytest.raises(RuleError, match=message):
            call()
    above = nn.Sequential(*model[:1], nn.ReLU(), model[2], nn.Sigmoid())
    assert LRP(above, rules).attribute(x, target=1).isfinite().all()


class Writes(nn.Module):
    def __init__(self, write: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.write = nn.Linear(4, 4), nn.Linear(4, 2), write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(self.a(x).clone(), self.b)


def through_a_view(h: Tensor, b: nn.Module) -> Tensor:
    h[:, :2].mul_(2.0)
    return b(h)


def after_it_was_read(h: Tensor, b: nn.Module) -> Tensor:
    y = b(h)
    h.add_(1.0)
    return y + h[:, :2]


@pytest.mark.parametrize("write", [through_a_view, after_it_was_read])
def test_writing_below_is_refused(write) -> None:
    model, x = build(lambda: Writes(write)), random_input(2, 4)
    with pytest.raises(ModelError, match=r"in place.* out of place"):
        LRP(model, [(["b"], FlatRule, {})]).attribute(x, target=1)
