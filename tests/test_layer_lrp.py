"""LayerLRP: the relevance of inner layers, against stock Captum and gradient x activation."""

import captum.attr
import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, GammaRule, LayerLRP, ZBoxRule, presets
from captum_lrp_stab.errors import ModelError, RuleError
from captum_lrp_stab.propagation.probes import Probe
from tests.helpers.layers import relative_error
from tests.helpers.networks import Residual, TwoInputs, build, cnn, gradient_x_activation

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _name(model: nn.Module, layer: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is layer)


@pytest.mark.parametrize("index", range(8))
def test_lrp_0_of_a_layer_is_gradient_x_activation(index) -> None:
    model = build(cnn)
    explainer = LayerLRP(model, model[index], presets.zero())
    assert isinstance(explainer, captum.attr.LayerLRP)
    expected = gradient_x_activation(model, model[index], IMAGES, target=2)
    assert relative_error(explainer.attribute(IMAGES, target=2), expected) <= 1e-12


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("index", [0, 2, 3, 6])
def test_equals_stock_layer_lrp(index, at_input) -> None:
    """With Captum's own rules on both sides."""
    relevances = []
    for explainer in (captum.attr.LayerLRP, LayerLRP):
        model = build(cnn)[:7]
        for i in (0, 3, 6):
            model[i].rule = captum_rules.EpsilonRule(0.1)
        explained = explainer(model, model[index])
        relevances.append(
            explained.attribute(IMAGES.clone(), (2, 0, 0), attribute_to_layer_input=at_input)
        )
    assert relevances[0].shape == relevances[1].shape
    assert relative_error(relevances[1], relevances[0]) <= 1e-6  # Captum's 1e-9 in the pools


def test_list_of_layers_and_deltas() -> None:
    model = build(cnn)
    layers = [model[0], model[3]]
    relevances, deltas = LayerLRP(model, layers).attribute(
        IMAGES, target=1, return_convergence_delta=True
    )
    score = model(IMAGES)[:, 1]
    for layer, relevance, delta in zip(layers, relevances, deltas, strict=True):
        assert torch.equal(relevance, LayerLRP(model, layer).attribute(IMAGES, target=1))
        torch.testing.assert_close(delta, score - relevance.sum((1, 2, 3)))


def test_none_means_every_layer_that_takes_part() -> None:
    model = build(cnn)
    model.unused = None  # an empty place in a container is no layer
    explainer = LayerLRP(model, None)
    relevances = explainer.attribute(IMAGES, target=1)
    assert explainer.layers == [module for module in model if module is not None]
    assert len(relevances) == len(explainer.layers)
    assert torch.equal(relevances[3], LayerLRP(model, model[3]).attribute(IMAGES, target=1))


def test_asking_for_layers_does_not_change_the_input_relevance() -> None:
    model = build(lambda: Residual(inplace=True))
    rules = [(["first"], ZBoxRule, {"low": -5.0, "high": 5.0}), (["shared"], GammaRule, {})]
    whole = LRP(model, rules).attribute(IMAGES, target=1)
    for module in (model.first, model.norm, model.last):
        probes = (Probe(_name(model, module), False), Probe(_name(model, module), True))
        (done,) = LRP(model, rules)._propagate(IMAGES, [1], None, probes=probes)
        assert torch.equal(done.relevances[0], whole)
        explained = LayerLRP(model, [module, model.last], rules).attribute(IMAGES, target=1)
        assert explained[0].abs().max() > 0


def test_a_layer_used_with_two_shapes_has_no_single_relevance() -> None:
    model = build(Residual)
    with pytest.raises(RuleError, match=r"layer 'shared' is used with shapes .* another layer"):
        LayerLRP(model, model.shared).attribute(IMAGES, target=1)


@pytest.mark.parametrize("rule", [(ZBoxRule, {"low": -5.0, "high": 5.0}), (FlatRule, {})], ids=str)
def test_input_of_a_layer_whose_rule_is_not_proportional(rule) -> None:
    """What the first layer propagates is the model's relevance."""
    model = build(cnn)
    rules = [(["0"], *rule)]
    expected = LRP(model, rules).attribute(IMAGES, target=1)
    actual = LayerLRP(model, model[0], rules).attribute(
        IMAGES, target=1, attribute_to_layer_input=True
    )
    assert torch.equal(actual, expected)


def test_a_layer_merged_with_its_batch_norm_has_the_relevance_behind_it() -> None:
    model = build(Residual)
    first = LayerLRP(model, model.first).attribute(IMAGES, target=1)
    norm = LayerLRP(model, model.norm).attribute(IMAGES, target=1)
    assert first.abs().max() > 0
    assert torch.equal(first, norm)


def test_a_reused_layer_has_the_sum_over_its_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(x).relu()).relu())

    model = build(Twice)
    x = torch.randn(3, 4).double()
    relevance = LayerLRP(model, model.shared, presets.zero()).attribute(x, target=0)
    expected = gradient_x_activation(model, model.shared, x, target=0)
    assert relative_error(relevance, expected) <= 1e-12


def test_tuples_of_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    class Model(TwoInputs):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(self.sum(self.left(a), self.right(b)).relu())

    model = build(Model)
    a, b = torch.rand(2, 4).double(), torch.rand(2, 3).double()
    explainer = LayerLRP(model, model.sum, presets.zero())
    left, right = explainer.attribute((a, b), target=0, attribute_to_layer_input=True)
    together = explainer.attribute((a, b), target=0)
    torch.testing.assert_close(left + right, together)


def test_a_layer_that_takes_no_part_is_an_error() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = build(cnn), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    skips = Skips()
    with pytest.raises(ModelError, match="'spare' takes no part"):
        LayerLRP(skips, skips.spare).attribute(IMAGES, target=0)
