"""What trips stock Captum up while our rules are attached, each found by attack."""

import copy
import pickle

import pytest
import torch
from captum.attr import LRP as CaptumLRP
from captum.attr._utils.custom_modules import Addition_Module
from torch import nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, attach_rules
from captum_lrp_stab.errors import RuleError, RuleMapError
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input, net

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    "make",
    [nn.ReLU, nn.SELU, nn.CELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.ELU, nn.LeakyReLU, nn.ReLU6],
    ids=lambda make: make.__name__,
)
def test_in_place_activations_under_stock_captum(make) -> None:
    model = build(
        lambda: nn.Sequential(
            nn.Linear(4, 6),
            make(inplace=True),
            nn.Linear(6, 6),
            make(inplace=True),
            nn.Linear(6, 2),
        )
    )
    rules = [(["0", "2", "4"], EpsilonRule, {})]
    with attach_rules(model, rules):
        stock = CaptumLRP(model).attribute(X.clone(), target=1)
    assert model[1].inplace is True
    assert relative_error(stock, LRP(model, rules).attribute(X, target=1)) <= 1e-9


def test_a_tensor_that_feeds_a_relu_and_another_layer_under_stock_captum() -> None:
    torch.manual_seed(0)
    model = net(
        lambda s, x: s.head(s.add(s.a(s.first(x)), s.b(s.relu(s.keep(s.first(x)))))),
        first=nn.Linear(4, 6),
        keep=nn.Identity(),
        relu=nn.ReLU(),
        a=nn.Linear(6, 3),
        b=nn.Linear(6, 3),
        add=Addition_Module(),
        head=nn.Linear(3, 2),
    )

    def shared(s, x):
        h = s.first(x)
        return s.head(s.add(s.a(h), s.b(s.relu(h))))

    model.function = shared
    rules = [(["first", "a", "b", "head"], EpsilonRule, {"epsilon": 1e-9})]
    with attach_rules(model, rules):
        stock = CaptumLRP(model).attribute(X.clone(), target=1)
    assert relative_error(stock, gradient_x_input(model, X, target=1)) <= 1e-4


def test_copies_and_pickles_of_a_model_with_rules_are_plain_models() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
    with attach_rules(model, [(["0"], GammaRule, {})]):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for copied in copies:
        assert type(copied[0]) is nn.Linear
        assert not hasattr(copied[0], "rule")
        assert torch.equal(copied(X), model(X))


def test_rules_attached_later_are_restored_first() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 2)))
    first = attach_rules(model, [(["0"], GammaRule, {})])
    second = attach_rules(model, [(["0"], EpsilonRule, {})])
    with pytest.raises(RuleMapError, match="restore the rules attached last first"):
        first.restore()
    second.restore()
    first.restore()
    assert type(model[0]) is nn.Linear


def test_keyword_arguments_and_output_sizes_under_stock_captum_are_refused() -> None:
    by_name = net(lambda s, x: s.a(input=x), a=nn.Linear(4, 2))
    sized = net(
        lambda s, x: s.a(x, output_size=(12, 12)).mean((2, 3)),
        a=nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1),
    )
    for model, x, message in ((by_name, X, "keyword arguments"), (sized, IMAGES, "output_size")):
        with (
            attach_rules(model, [(["a"], EpsilonRule, {})]),
            pytest.raises(RuleError, match=message),
        ):
            CaptumLRP(model).attribute(x.clone(), target=0)
    assert LRP(sized).attribute(IMAGES, target=0).isfinite().all()
