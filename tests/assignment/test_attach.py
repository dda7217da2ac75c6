"""Our rules on modules under stock Captum."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from captum.attr import LRP as CaptumLRP
from captum.attr import LayerLRP as CaptumLayerLRP
from captum.attr._utils import lrp_rules as captum_rules
from captum.attr._utils.custom_modules import Addition_Module
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerFilter, attach_rules, types
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.errors import RuleError, RuleMapError
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule, PassRule, ZeroRule


def padded() -> nn.Module:
    with torch.device("meta"):  # names and types alone
        return EfficientNet.from_name("efficientnet-lite0")


# attach_rules puts everything back


def net(shape: tuple[int, ...], *layers: nn.Module) -> tuple[nn.Module, Tensor]:
    """The layers and a classifier, in float64 with random parameters, and a sample."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    flatten = [nn.Flatten()] if len(shape) > 1 else []
    model = nn.Sequential(*layers, *flatten, nn.LazyLinear(3)).double().eval()
    model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model, x.requires_grad_()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Class and attributes of every module, hook by hook."""
    return {
        name: (type(m), {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(m).items()})
        for name, m in model.named_modules()
    }


ONE_GAMMA: NameMap = [(["0"], GammaRule, {"gamma": 0.5})]


@pytest.mark.parametrize("target", [1, 99], ids=["success", "exception"])
@pytest.mark.parametrize("way", ["context", "restore"])
def test_everything_is_put_back(way, target) -> None:
    model, x = net((4,), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU())
    model[0].rule, model[0].activations = EpsilonRule(0.25), "a user's own"
    model[2].rule = EpsilonRule(0.5)
    before = snapshot(model)
    attached = attach_rules(model, ONE_GAMMA)
    assert isinstance(model[0], nn.Linear) and isinstance(model[0].rule, GammaRule)
    assert isinstance(model[1].rule, PassRule)
    assert model[2].rule is before["2"][1]["rule"]
    expected = pytest.raises(IndexError) if target == 99 else nullcontext()
    with expected, attached if way == "context" else nullcontext():
        CaptumLRP(model).attribute(x, target=target)
    attached.restore()  # a second time changes nothing
    assert snapshot(model) == before


def test_rules_survive_calls_and_serve_our_driver_too() -> None:
    model, x = net((4,), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU())
    model[2].rule = EpsilonRule(0.5)
    with attach_rules(model, ONE_GAMMA) as attached:
        first, second = (CaptumLRP(model).attribute(x, target=1) for _ in range(2))
        assert model[0].rule is attached.rules["0"] and model[2].rule is attached.rules["2"]
        ours = LRP(model).attribute(x, target=1)
    assert torch.equal(first, second)
    torch.testing.assert_close(first.detach(), ours, rtol=1e-12, atol=1e-14)


# Our rules under stock Captum: LRP-0 is gradient x input


class MyConv(nn.Conv2d):
    """Captum compares types exactly."""


NETS = {
    "Flatten": lambda: net((2, 5, 5), nn.Conv2d(2, 4, 3), nn.ReLU()),
    "Identity": lambda: net((4,), nn.Linear(4, 6), nn.ReLU(), nn.Identity()),
    "GELU": lambda: net((4,), nn.Linear(4, 6), nn.GELU()),
    "Conv1d": lambda: net((2, 5), nn.Conv1d(2, 4, 3), nn.ReLU()),
    "MyConv": lambda: net((2, 5, 5), MyConv(2, 4, 3), nn.ReLU()),
    "Sequential": lambda: net((4,), nn.Linear(4, 6), nn.ReLU(), nn.Sequential()),
    "BatchNorm1d": lambda: net((4,), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()),
    "AdaptiveMaxPool2d": lambda: net((2, 5, 5), nn.Conv2d(2, 4, 3), nn.AdaptiveMaxPool2d(2)),
    "ZeroPad2d": lambda: net((2, 5, 5), nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3), nn.ReLU()),
    "MaxPool2d": lambda: net((2, 5, 5), nn.Conv2d(2, 4, 2), nn.ReLU(), nn.MaxPool2d(2)),
    "ReLU-in-place": lambda: net((4,), nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6)),
}
STOCK_SERVES = {"MaxPool2d", "ReLU-in-place"}


class Share(nn.Module):
    """An activation as z times the constant g(z)/z, whose gradient x input is LRP-0."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g = g

    def forward(self, z: Tensor) -> Tensor:
        return z * (self.g(z.clone()) / z).detach()


@pytest.mark.parametrize("name", NETS)
def test_leaves_work_under_stock_captum(name) -> None:
    model, x = NETS[name]()
    if name not in STOCK_SERVES:
        with pytest.raises(TypeError, match=rf"type .*{name}.* has no rule"):
            CaptumLRP(copy.deepcopy(model)).attribute(x, target=1)
    with attach_rules(model, [(LayerFilter(model)(lambda n: True), ZeroRule, {})]):
        relevance = CaptumLRP(model).attribute(x, target=1)
    linear = nn.Sequential(*(Share(m) if isinstance(m, types.Activation) else m for m in model))
    gradient = torch.autograd.grad(linear(x)[:, 1].sum(), x)[0]
    torch.testing.assert_close(relevance, x * gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 2), "the model is a single Linear.*wrap it in torch.nn.Sequential"),
        (nn.Sequential(nn.LSTM(4, 2)), "'0' is a LSTM, for which stock Captum has no rule"),
        (padded(), "contains a module of its"),
    ],
    ids=["no-children", "unknown", "padded"],
)
def test_what_stock_captum_cannot_serve_is_refused(model, message) -> None:
    with pytest.raises(RuleMapError, match=f"{message}.*use captum_lrp_stab.LRP"):
        attach_rules(model, [])


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)
        self.add, self.relu = Addition_Module(), nn.ReLU()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.out(self.relu(self.add(self.a(x), self.b(x if y is None else y))))


def two_inputs() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = TwoInputs().double()
    return model, tuple(torch.randn(2, n, dtype=torch.float64).requires_grad_() for n in (4, 3))


def test_several_inputs_and_captums_addition() -> None:
    model, inputs = two_inputs()
    with attach_rules(model, [(["a", "b", "out", "add"], ZeroRule, {})]):
        relevances = CaptumLRP(model).attribute(inputs, target=1)
    gradients = torch.autograd.grad(model(*inputs)[:, 1].sum(), inputs)
    for relevance, x, gradient in zip(relevances, inputs, gradients, strict=True):
        torch.testing.assert_close(relevance, x * gradient, rtol=1e-10, atol=1e-12)
    with attach_rules(model, []) as attached:
        assert repr(attached.rules["add"]) == repr(EpsilonRule())


# Beside Captum's own rules

EPSILON = {"epsilon": 0.1}
STOCK: NameMap = [
    (["0"], captum_rules.GammaRule, {"gamma": 0.5}),
    (["2"], captum_rules.EpsilonRule, EPSILON),
    (["4"], captum_rules.EpsilonRule, EPSILON),
]


def chain() -> tuple[nn.Module, Tensor]:
    return net((4,), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU())


def with_stock_rules(model: nn.Module) -> nn.Module:
    for (name,), rule, parameters in STOCK:
        model.get_submodule(name).rule = rule(**parameters)
    return model


def mixed(ours: tuple[str, ...]) -> NameMap:
    return [(n, EpsilonRule if n[0] in ours else rule, p) for n, rule, p in STOCK]


@pytest.mark.parametrize("ours", [(), ("2",), ("4",), ("2", "4")], ids=str)
def test_mixed_with_captums_own_rules(ours) -> None:
    model, x = chain()
    expected = CaptumLRP(with_stock_rules(model)).attribute(x, target=1)
    with attach_rules(model, mixed(ours)):
        relevance = CaptumLRP(model).attribute(x, target=1)
    torch.testing.assert_close(relevance, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_layer_lrp_of_stock_captum(index, at_input) -> None:
    model, x = chain()
    options = {"target": 1, "attribute_to_layer_input": at_input}
    stock = CaptumLayerLRP(with_stock_rules(model), model[index])
    expected = stock.attribute(x, **options)
    with attach_rules(model, mixed(("2", "4"))):
        relevance = CaptumLayerLRP(model, model[index]).attribute(x, **options)
    torch.testing.assert_close(relevance, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ours", ["a", "b"])
def test_tensor_shared_with_captums_own_rule_is_refused(ours) -> None:
    model, (x, _) = two_inputs()
    model.b = nn.Linear(4, 5).double()
    rules = {ours: EpsilonRule, "ab".replace(ours, ""): captum_rules.EpsilonRule}
    with attach_rules(model, [([name], rule, EPSILON) for name, rule in rules.items()]):
        with pytest.raises(RuleError, match=f"layer '{ours}'.*also feeds a layer with one of Capt"):
            CaptumLRP(model).attribute(x, target=1)
