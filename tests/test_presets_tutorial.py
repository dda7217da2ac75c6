"""The castle study's four-part map on torchvision's VGG16: stock Captum, this package, zennit."""

import pytest
import torch
import zennit.rules
from captum.attr import LRP as CaptumLRP
from torch import Tensor, nn
from torchvision.models import vgg16
from zennit.composites import NameMapComposite

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    LayerFilter,
    ZBoxRule,
    ZeroRule,
    attach_rules,
    presets,
    stabilizers,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import narrow

TARGET = 5
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
LOW, HIGH = -MEAN / STD, (1 - MEAN) / STD

STABILIZERS = [
    stabilizers.Identity(),
    stabilizers.Signed(1e-6),
    stabilizers.Signed(0.1),
    stabilizers.Signed(0.01, relative=True),
    stabilizers.RootMeanSquare(0.1),
    stabilizers.RootMeanSquare(0.1, per_sample=False),
    stabilizers.Additive(1e-6),
    stabilizers.Clip(1e-6),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = narrow(vgg16, 32).eval()
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.uniform_(layer.bias, -0.1, 0.1)
    return model


@pytest.fixture(scope="module")
def picture() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(1, 3, 32, 32, generator=generator) - MEAN) / STD


def study_map(model: nn.Module, **stabilizer):
    layers = LayerFilter(model)
    low, high = LOW, HIGH
    name_map = [
        (layers(lambda n: n == 0), ZBoxRule, {"low": low, "high": high}),
        (layers(lambda n: 1 <= n <= 16), GammaRule, {"gamma": 0}),
        (layers(lambda n: 17 <= n <= 30), EpsilonRule, {"epsilon": 0.25}),
        (layers(lambda n: 31 <= n), ZeroRule, {}),
    ]
    return [(names, rule, {**parameters, **stabilizer}) for names, rule, parameters in name_map]


def zennit_relevance(model: nn.Module, x: Tensor, s) -> Tensor:
    names = [tuple(names) for names, _, _ in study_map(model)]

    def shifted(z: Tensor) -> Tensor:
        return s(z + 0.25 * torch.where(z < 0, -1.0, 1.0).to(z))

    hooks = [
        zennit.rules.ZBox(LOW.to(x), HIGH.to(x), stabilizer=s),
        zennit.rules.Gamma(0.0, stabilizer=s),
        zennit.rules.Epsilon(shifted),
        zennit.rules.Epsilon(s),
    ]
    x = x.clone().requires_grad_()
    with NameMapComposite(list(zip(names, hooks, strict=True))).context(model):
        score = model(x)[:, TARGET]
        (relevance,) = torch.autograd.grad(score, x, score)
    return relevance.detach()


@pytest.fixture(scope="module")
def another(model, picture) -> Tensor:
    """The control: relevance under a stabilizer that is none of those tested."""
    return zennit_relevance(model, picture, stabilizers.Signed(1.0))


@pytest.mark.parametrize("s", STABILIZERS, ids=repr)
def test_three_drivers_agree(model, picture, another, s) -> None:
    name_map = study_map(model, stabilizer=s)
    ours = LRP(model, name_map).attribute(picture, target=TARGET)
    theirs = zennit_relevance(model, picture, s)
    with attach_rules(model, name_map):
        stock = CaptumLRP(model).attribute(picture.clone(), target=TARGET)
    assert relative_error(ours, theirs) <= 1e-5
    if s == stabilizers.Identity():
        # dead cells of the average pool: 0/0, which zennit's run loses in the ReLU before it
        assert not stock.isfinite().all()
    else:
        assert relative_error(ours, stock) <= 1e-5
    assert relative_error(ours, another) > 1e-2


def test_the_map_word_for_word_with_default_stabilizers(model, picture) -> None:
    relevance = LRP(model, study_map(model)).attribute(picture, target=TARGET)
    by_preset = LRP(model, presets.lrp_tutorial(LOW, HIGH)).attribute(picture, target=TARGET)
    assert relevance.isfinite().all()
    assert torch.equal(relevance, by_preset)
