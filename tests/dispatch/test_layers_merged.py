"""A batch norm merged into the layer before it is folded, also under rules for first layers.

The oracle is the network that torch's own ``fuse_conv_bn_eval`` makes.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from captum_lrp_stab import FlatRule, WSquareRule, ZBoxRule
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from tests.helpers.first_layers import FORMS, PRESETS, Called, picture, relevance_in
from tests.helpers.layers import relative_error
from tests.helpers.networks import build


class Shuffled(nn.Module):
    """Layers in a list, in another order than that in which they run."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers[::-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[::-1]:
            x = layer(x)
        return x


def convolutions(dims: int) -> list[nn.Module]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    head = [Called(lambda z: z.flatten(2).mean(2)), nn.Linear(4, 3)]
    return [conv(3, 5, 3), norm(5), nn.ReLU(), conv(5, 4, 3), norm(4), nn.ReLU(), *head]


def transposed() -> list[nn.Module]:
    head = [Called(lambda z: z.flatten(2).mean(2)), nn.Linear(5, 3)]
    return [nn.ConvTranspose2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), *head]


def dense() -> list[nn.Module]:
    first = [Called(lambda z: z.flatten(1)), nn.Linear(3 * 8, 6), nn.BatchNorm1d(6), nn.ReLU()]
    return [*first, nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)]


MERGED: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "1d": (lambda: convolutions(1), (8,)),
    "2d": (lambda: convolutions(2), (7, 7)),
    "3d": (lambda: convolutions(3), (6, 6, 6)),
    "transposed": (transposed, (4, 4)),
    "dense": (dense, (8,)),
}


def fused(layers: list[nn.Module]) -> list[nn.Module]:
    """Each batch norm folded by torch into the layer before it."""
    found: list[nn.Module] = []
    for layer in layers:
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            found.append(layer)
        elif isinstance(found[-1], nn.Linear):
            found[-1] = fuse_linear_bn_eval(found[-1], layer)
        else:
            is_transposed = isinstance(found[-1], nn.ConvTranspose2d)
            found[-1] = fuse_conv_bn_eval(found[-1], layer, is_transposed)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arranged", [lambda layers: nn.Sequential(*layers), Shuffled])
@pytest.mark.parametrize("name", MERGED)
def test_a_merged_batch_norm_is_folded(name, arranged, form) -> None:
    """Under every preset, in whatever order the modules are defined."""
    make, shape = MERGED[name]
    layers = list(build(lambda: nn.Sequential(*make()), seed=3))
    for layer in layers:  # keep neurons alive
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.bias.data.abs_()
    model, x = arranged(layers).eval(), picture(2, 3, *shape)
    plain = nn.Sequential(*fused(layers)).eval()
    assert torch.allclose(model(x), plain(x))
    for preset in PRESETS:
        expected = relevance_in(form, plain, x, preset)
        assert expected.abs().sum() > 0
        assert relative_error(relevance_in(form, model, x, preset), expected) <= 1e-9


@pytest.mark.parametrize(
    "rule", [(FlatRule, {}), (WSquareRule, {}), (ZBoxRule, {"low": -9, "high": 9})]
)
@pytest.mark.parametrize("form", FORMS[:2])
def test_a_merged_batch_norm_is_folded_in_the_stretch(form, rule) -> None:
    """The same of a rule that is not proportional on a layer that reads no input."""
    layers = list(build(lambda: nn.Sequential(*convolutions(2)), seed=3))
    model, plain = nn.Sequential(*layers), nn.Sequential(*fused(layers))
    x, found = picture(2, 3, 7, 7), []
    for network, name in ((model, "3"), (plain, "2")):
        rules = rule_set_of(network.eval(), [([name], *rule)])
        tiny = 1e-300 if form == "relevance" else None
        done = propagate(network, x, 1, rule_set=rules, form=form_of(form, tiny))
        found.append(done.relevances[0])
    assert found[1].abs().sum() > 0
    assert relative_error(*found) <= 1e-9
