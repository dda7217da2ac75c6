"""What a model may contain without being rewritten: each against the same written plainly."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZPlusRule,
    plan,
    presets,
    stabilizers,
)
from captum_lrp_stab.errors import StabilizerWarning
from tests.helpers.layers import relative_error
from tests.helpers.networks import Residual, build, cnn

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("s", [1e-6, stabilizers.RootMeanSquare(0.1), lambda z: z + 0.3])
def test_in_place_operations_change_nothing(s) -> None:
    relevances = []
    for inplace in (False, True):
        model = build(lambda inplace=inplace: Residual(inplace))
        rules = [(["first", "shared", "last"], EpsilonRule, {"epsilon": 0.0, "stabilizer": s})]
        relevances.append(LRP(model, rules).attribute(IMAGES, target=1))
    assert torch.equal(*relevances)


@pytest.mark.parametrize(
    "write",
    [
        lambda z: z.add_(1.0),
        lambda z: z.mul_(2.0),
        lambda z: F.leaky_relu(z, 0.1, inplace=True),
        lambda z: F.hardswish(z, inplace=True),
        lambda z: F.relu6(z, inplace=True),
        lambda z: z.clamp_(-0.5, 0.5),
        lambda z: F.silu(z, True),
        lambda z: z.tanh_(),
    ],
    ids="add_ mul_ leaky_relu hardswish relu6 clamp_ silu tanh_".split(),
)
def test_writing_over_a_pre_activation_changes_nothing(write) -> None:
    class Writes(nn.Module):
        def __init__(self, copy: bool) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)
            self.copy = copy

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            z = write(z.clone() if self.copy else z)
            return self.second(z)

    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double() * 3
    rules = [(["first", "second"], GammaRule, {"gamma": 0.4})]
    copied, written = (
        LRP(build(lambda copy=copy: Writes(copy)), rules).attribute(x, target=1)
        for copy in (True, False)
    )
    torch.testing.assert_close(written, copied, rtol=1e-12, atol=1e-14)


def test_an_in_place_activation_is_seen_through_every_alias() -> None:
    """Pre-activation residual networks read the tensor their in-place ReLU wrote to."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            return self.second(F.hardswish(z, inplace=True)) + z

    model = build(Shortcut)
    x = torch.randn(3, 4).double()
    with torch.no_grad():
        model.first.bias.zero_()
        model.second.bias.zero_()
    relevance, delta = LRP(model, presets.zero()).attribute(x, 1, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12 * relevance.abs().max()


def test_functional_and_module_spelling_agree() -> None:
    modules = build(cnn, seed=4)

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = modules

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = modules[0], modules[3], modules[6]
            x = torch.relu(torch.conv2d(x, a.weight, a.bias, padding=1))
            x = F.conv2d(F.max_pool2d(x, kernel_size=2), b.weight, bias=b.bias).relu()
            x = x.mean((2, 3), keepdim=True)
            return F.conv2d(input=x, weight=c.weight, bias=c.bias)[..., 0, 0]

    expected = LRP(modules).attribute(IMAGES, target=2)
    assert relative_error(LRP(Functional()).attribute(IMAGES, target=2), expected) <= 1e-12
    rows = plan(Functional(), IMAGES).layers
    assert [row.name for row in rows] == ["conv2d_0", "conv2d_1", "conv2d_2"]


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Tanh(),
        nn.ELU(),
        nn.ReLU6(),
        nn.Mish(),
    ],
    ids=repr,
)
def test_activations_pass_relevance_unchanged(activation) -> None:
    model = nn.Sequential(nn.Linear(5, 6, bias=False), activation, nn.Linear(6, 1, bias=False))
    model = build(lambda: model).double()
    x = 4 * torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double()
    x[0] = 0.0
    relevance, delta = LRP(model, presets.zero()).attribute(x, 0, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12
    assert relevance[0].abs().max() == 0


class Total(nn.Module):
    """One score per sample."""

    def forward(self, z: Tensor) -> Tensor:
        return z.flatten(1).sum(1)


MERGED = {
    "conv2d": (lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], (3, 6, 6)),
    "conv2d-no-bias": (
        lambda: [nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)],
        (4, 6, 6),
    ),
    "transposed": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)],
        (4, 3, 3),
    ),
    "conv1d": (lambda: [nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4)], (3, 7)),
    "linear": (lambda: [nn.Linear(5, 4), nn.BatchNorm1d(4)], (5,)),
}


@pytest.mark.parametrize("rule", [GammaRule, ZPlusRule, AlphaBetaRule, EpsilonRule, WSquareRule])
@pytest.mark.parametrize("name", MERGED)
def test_batch_norm_is_merged_with_the_layer_before_it(name, rule) -> None:
    """The oracle: one layer with the weights w s and the bias b s + t, written out."""
    make, shape = MERGED[name]
    layer, norm = build(lambda: nn.Sequential(*make()))
    pair = nn.Sequential(layer, norm, Total())
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    one = build(lambda: make()[0])
    if isinstance(layer, nn.ConvTranspose2d):  # weight is (in, out / groups, ...)
        halves = zip(layer.weight.chunk(2), scale.chunk(2), strict=True)
        weight = torch.cat([w * s.reshape(1, -1, 1, 1) for w, s in halves])
    else:
        weight = layer.weight * scale.reshape(-1, *(1,) * (layer.weight.dim() - 1))
    one.weight = nn.Parameter(weight.detach())
    one.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    merged = nn.Sequential(one, Total())
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5)).double()
    rules = [(["0"], rule, {})]
    state = {key: value.clone() for key, value in pair.state_dict().items()}
    actual = LRP(pair, rules).attribute(x)
    assert all(torch.equal(value, state[key]) for key, value in pair.state_dict().items())
    assert relative_error(actual, LRP(merged, rules).attribute(x)) <= 1e-11
    assert plan(pair, x, rules).rows[0].batch_norm == "1"
    apart = LRP(pair, rules, merge_batch_norm=False).attribute(x)
    assert relative_error(actual, apart) > 1e-6


def test_padding_child_belongs_to_its_convolution() -> None:
    """EfficientNet-Lite's convolutions: the zB rule sees the unpadded input."""

    class SamePad(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3, stride=2)
            self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(self.static_padding(x), self.weight, self.bias)

    inner = build(SamePad)
    model = nn.Sequential(inner, nn.Flatten())
    plain = build(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1))
    plain.load_state_dict(inner.state_dict())

    class ShiftedPlain(nn.Module):
        """The same by a symmetric padding: the picture shifted by one, its first row cut off."""

        def __init__(self) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(x)[:, :, 1:, 1:].flatten(1)

    x = torch.rand(1, 3, 8, 8).double()
    shifted = F.pad(x, (1, 0, 1, 0), value=0.5)
    box = {"low": -0.25, "high": 1.25}
    actual = LRP(model, [(["0"], ZBoxRule, box)]).attribute(x, target=3)
    expected = LRP(ShiftedPlain(), [(["plain"], ZBoxRule, box)]).attribute(shifted, target=3)
    assert relative_error(actual, expected[:, :, 1:, 1:]) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite_and_near_float64(dtype) -> None:
    model = build(Residual)
    expected_warning = pytest.warns(StabilizerWarning) if dtype == torch.float16 else nullcontext()
    with expected_warning:
        relevance = LRP(build(Residual, dtype=dtype)).attribute(IMAGES.to(dtype), target=1)
    assert relevance.dtype == dtype
    expected = LRP(model).attribute(IMAGES, target=1)
    assert relative_error(relevance, expected) <= 200 * torch.finfo(dtype).eps


@pytest.mark.parametrize("native", [False, True], ids=["functional", "native"])
def test_functional_batch_norm_is_merged_too(native) -> None:
    model = build(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Total()))

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            norm = model[1]
            z = F.conv2d(x, model[0].weight, model[0].bias)
            mean, var, weight, bias = norm.running_mean, norm.running_var, norm.weight, norm.bias
            if native:
                z = torch.batch_norm(z, weight, bias, mean, var, False, 0.1, norm.eps, False)
            else:
                z = F.batch_norm(z, mean, var, weight=weight, bias=bias)
            return z.flatten(1).sum(1)

    expected = LRP(model, [(["0"], GammaRule, {})]).attribute(IMAGES)
    rules = [(["conv2d_0"], GammaRule, {})]
    assert relative_error(LRP(Functional(), rules).attribute(IMAGES), expected) <= 1e-12
    assert plan(Functional(), IMAGES, rules).layers[0].batch_norm == "batch_norm_0"
