"""Rules that give relevance, at any depth: against the relevance form, which serves them too."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
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
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.errors import ModelError, RuleError
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.layers import relative_error
from tests.helpers.networks import Doubled, Residual, build, cnn, padded
from tests.helpers.studies import random_input

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
    "reflected": (lambda: padded("reflect"), ["2"], ["0"]),
    "circular at the layer": (lambda: padded("circular"), ["0", "2"], []),
    "zeros before the layer": (lambda: padded("zeros", nn.ZeroPad2d(1)), ["3"], ["0"]),
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
    gamma = [(proportional, GammaRule, {"gamma": 0.3})] if proportional else []
    name_map = [(direct, *DIRECT[rule]), *gamma]
    relevance = LRP(model, name_map, strict=True).attribute(x, target=1)
    rules = rule_set_of(model, name_map).named
    # a tiny epsilon at additions and the like keeps 0 / 0 at 0 there
    rule_set = RuleSet(rules, EpsilonRule())
    expected = propagate(
        model, x, 1, rule_set=rule_set, form=form_of("relevance", 1e-300)
    ).relevances[0]
    assert relative_error(relevance, expected) <= 1e-10
    epsilon = [(direct, EpsilonRule, {}), *gamma]
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
    relevance = LRP(above, rules, fallbacks="ignore").attribute(x, target=1)
    assert relevance.isfinite().all()


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


def by_keyword(h: Tensor, b: nn.Module) -> Tensor:
    return b(h) + F.leaky_relu(input=h, inplace=True)[:, :2]


@pytest.mark.parametrize("write", [through_a_view, after_it_was_read, by_keyword])
def test_writing_below_is_refused(write) -> None:
    model, x = build(lambda: Writes(write)), random_input(2, 4)
    with pytest.raises(ModelError, match=r"in place.* out of place"):
        LRP(model, [(["b"], FlatRule, {})]).attribute(x, target=1)


ACROSS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    # what is read above the layer keeps its marks: h is a gate, weights, a shift, a layer's output
    "gate": lambda s, x: (lambda h: s.b(h) + s.c(x) * (h + 1)[:, :3])(s.a(x).tanh()),
    "weights": lambda s, x: (lambda h: s.b(h) + s.c(x) * h[:, :3])(s.a(x).softmax(1)),
    "shift": lambda s, x: (lambda h: s.b(h) + s.c(x) * (F.relu6(h) / 6)[:, :3])(s.a(x) + 3),
    "batch norm": lambda s, x: (lambda h: s.b(h) + s.norm(h)[:, :3])(s.a(x)),
    "constant buffer": lambda s, x: (lambda h: s.b(h) + s.c(halves(h, s.d(h))))(s.a(x)),
    "keyword of a sum": lambda s, x: (lambda h: s.b(h) + h.sum(1, True))(s.a(x).relu()),
    "dropout": lambda s, x: (lambda h: s.b(F.dropout(h, training=False)) + s.c(h))(s.a(x)),
}


def halves(a: Tensor, b: Tensor) -> Tensor:
    buffer = torch.zeros(len(a), 6, dtype=a.dtype)
    buffer[:, :3] = a[:, :3]
    buffer[:, 3:] = b
    return buffer


class Across(nn.Module):
    """Layers a, b (flat), c, d and a batch norm, in a forward given as a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.c, self.d, self.norm = nn.Linear(6, 3), nn.Linear(6, 3), nn.BatchNorm1d(6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize("name", ACROSS)
def test_what_is_known_crosses_the_border(name) -> None:
    model, x = build(lambda: Across(ACROSS[name])), random_input(3, 6)
    rules = {"b": FlatRule(), "a": GammaRule()}
    found = propagate(model, x, 1, rule_set=RuleSet(rules)).relevances[0]
    expected = propagate(
        model, x, 1, rule_set=RuleSet(rules), form=form_of("relevance", 1e-300)
    ).relevances[0]
    assert relative_error(found, expected) <= 1e-9


def test_relevance_of_every_layer_of_a_network_with_batch_norm() -> None:
    model, x = build(lambda: vgg11_bn(num_classes=5)), random_input(1, 3, 32, 32)
    leaves = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ReLU, nn.Linear))]
    rules = rule_set_of(model, [(["features.8"], FlatRule, {})]).named
    seen = {}
    for form in (GradientForm, form_of("relevance", 1e-300)):
        probes = tuple(Probe(name, at_input) for name in leaves for at_input in (False, True))
        done = propagate(model, x, 1, rule_set=RuleSet(rules), form=form, probes=probes)
        seen[form] = [r for probe in probes for r in probe.relevances] + [*done.relevances]
    for found, expected in zip(*seen.values(), strict=True):
        assert relative_error(found, expected) <= 1e-8


def test_a_dead_input_of_the_flat_rule_keeps_its_share() -> None:
    """Flat rules all the way spread the score over black areas as over any other."""
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(2, 2, 3, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 2, bias=False),
        )
    )
    x = random_input(1, 1, 8, 8)
    x[..., 4:] = 0.0
    rules = [(["0", "2", "5"], FlatRule, {"stabilizer": 0.0})]
    relevance, delta = LRP(model, rules).attribute(x, 1, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12
    assert relevance[..., 4:].abs().sum() > 0.1 * relevance.abs().sum()


def test_a_stabilizer_below_protects_as_it_does_anywhere() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([1e-40, 0.0]))
        model[2].weight.fill_(0.5)
    rules = [(["0"], EpsilonRule, {"epsilon": 1e-3}), (["2"], FlatRule, {"stabilizer": 1e-3})]
    relevance = LRP(model, rules, nonfinite="raise").attribute(torch.ones(1, 2))
    rule_set = RuleSet(rule_set_of(model, rules).named)
    form = form_of("relevance", 1e-30)
    expected = propagate(model, torch.ones(1, 2), rule_set=rule_set, form=form).relevances[0]
    torch.testing.assert_close(relevance, expected)


def test_custom_functions_below_are_refused() -> None:
    model = build(lambda: Across(lambda s, x: s.b(Doubled.apply(s.a(x)).relu())))
    with pytest.raises(RuleError, match="custom autograd function Doubled has none"):
        LRP(model, [(["b"], FlatRule, {})]).attribute(random_input(2, 6), target=1)


def view_of_what_is_written(h: Tensor, b: nn.Module) -> Tensor:
    v = h[:, :2]
    h.mul_(2.0)
    return b(h) + v


def test_a_view_of_what_is_written_below_is_refused() -> None:
    model, x = build(lambda: Writes(view_of_what_is_written)), random_input(2, 4)
    with pytest.raises(ModelError, match=r"by a view or another name"):
        LRP(model, [(["b"], FlatRule, {})]).attribute(x, target=1)
