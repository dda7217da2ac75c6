"""A sample explained alone has the relevance that it has in a batch of two."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, diagnose, presets
from captum_lrp_stab.errors import ModelError
from tests.helpers.every_kind import NAMES, PICTURES, network
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::captum_lrp_stab.errors.LRPWarning"),
]
ROUNDING = 1e-12
Way = Callable[[nn.Module, tuple[Tensor, ...], Any], tuple[Tensor, ...]]


def lrp(rules: object, **options: Any) -> Way:
    return lambda m, x, t: LRP(m, rules, **options).attribute(x, target=t)


def form(name: str) -> Way:
    return lambda m, x, t: diagnose(m, x, t, presets.epsilon(), form=name).relevances


WAYS: dict[str, Way] = {
    "zero": lrp(presets.zero()),
    "zero, cp, nothing merged": lrp(presets.zero(), attention="cp", merge_batch_norm=False),
    "by formula": lrp(presets.epsilon_alpha2_beta1(), optimize=False),
    "box": lrp(presets.epsilon_gamma_box(-3.0, 3.0)),
    "flat": lrp(presets.epsilon_plus_flat()),
    "relevance form": form("relevance"),
    "modified forward": form("modified-forward"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_alone_as_in_a_batch(name, way) -> None:
    model, pair, target = network(name)
    try:
        both = WAYS[way](model, pair, target)
    except ModelError as error:
        assert way == "relevance form" and "no rule in relevance form" in str(error)
        return
    for index in range(2):
        alone = WAYS[way](model, tuple(x[index : index + 1] for x in pair), target)
        for one, of_both in zip(alone, both, strict=True):
            of_both = of_both[index : index + 1]
            finite = one.isfinite()  # one form divides by 0
            assert torch.equal(finite, of_both.isfinite())
            if finite.any():
                assert relative_error(one[finite], of_both[finite]) <= ROUNDING


@pytest.mark.parametrize("name", [n for n in PICTURES if n.startswith("batch norm apart")])
def test_inner_layers_alone_as_in_a_batch(name) -> None:
    model, (x,), target = network(name)
    for at_input in (False, True):
        both, alone = (
            LayerLRP(model, "norm", presets.zero()).attribute(
                given, target, attribute_to_layer_input=at_input
            )
            for given in (x, x[:1])
        )
        assert relative_error(alone, both[:1]) <= ROUNDING


SHAPES = {
    "transposed": lambda y: y.flatten(2).transpose(1, 2),
    "permuted": lambda y: y.permute(0, 2, 3, 1).flatten(1, 2),
    "expanded": lambda y: y.sum((2, 3), keepdim=True).expand_as(y).flatten(2).mT,
    "flipped": lambda y: y.flip(2).flatten(2).mT[:, ::2],
}


class Functional(nn.Module):
    """A batch norm as a function, with the statistics of a frozen one or by the input itself."""

    def __init__(self, shape: Callable[[Tensor], Tensor], by_data: bool = False) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 5, bias=False)
        self.shape, self.by_data = shape, by_data

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        weight = n.weight * x[0].mean((1, 2)).abs() if self.by_data else n.weight
        y = F.batch_norm(x, n.running_mean, n.running_var, weight, n.bias)
        return self.head(self.shape(y)).mean(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_under_gradients_of_any_strides(shape) -> None:
    model = build(lambda: Functional(SHAPES[shape]))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = LRP(model, presets.zero()).attribute(x, target=1)
    assert relative_error(both, gradient_x_input(model, x, 1)) <= ROUNDING
    assert relative_error(LRP(model, presets.zero()).attribute(x[:1], target=1), both[:1]) == 0


def test_a_batch_norm_whose_scale_the_input_makes_has_its_gradient() -> None:
    model = build(lambda: Functional(SHAPES["transposed"], by_data=True))
    twin = build(lambda: Functional(SHAPES["transposed"], by_data=True))
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def written_out(x: Tensor) -> Tensor:
        n, shape = twin.norm, (1, 3, 1, 1)
        y = (x - n.running_mean.view(shape)) / (n.running_var.view(shape) + n.eps).sqrt()
        weight = n.weight * x[0].mean((1, 2)).abs()
        return twin.head(SHAPES["transposed"](y * weight.view(shape) + n.bias.view(shape))).mean(1)

    twin.forward = written_out
    actual = LRP(model, presets.zero()).attribute(x, target=1)
    assert relative_error(actual, gradient_x_input(twin, x, 1)) <= ROUNDING


def test_torchs_own_backward_pass_is_wrong_for_a_batch_of_one() -> None:
    """The control: where this fails, PyTorch has been mended, and all is as well without care."""
    generator = torch.Generator().manual_seed(0)
    x, tokens = (torch.randn(1, 16, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    variance = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    point = x.mT.contiguous().view(1, 3, 4, 4).requires_grad_()
    handed = tokens.mT.unflatten(2, (4, 4))
    y = F.batch_norm(point, torch.zeros_like(variance), variance, eps=0.0)
    (gradient,) = torch.autograd.grad(y, point, handed)
    assert relative_error(gradient, handed / variance.sqrt().view(3, 1, 1)) > 0.1
