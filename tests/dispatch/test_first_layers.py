"""Which layers a preset takes for the first: those that read an input, as the pass finds them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from tests.helpers.first_layers import (
    FORMS,
    HIGH,
    LOW,
    MEAN,
    NORMALISATIONS,
    PRESETS,
    STD,
    Called,
    Siamese,
    Stems,
    _column,
    firsts,
    picture,
    relevance_in,
    small,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

# networks with several first layers, and one that is not defined first --------------------------


class One(nn.Module):
    """One stem of that, in order."""

    def __init__(self, stem: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.stem, self.out = stem, out

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.stem(x))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_siamese_network_treats_both_of_its_pictures_alike(preset) -> None:
    model, x = build(Siamese), picture(2, 3, 8, 8)
    model.right.load_state_dict(model.left.state_dict())
    left, right = LRP(model, preset).attribute((x, x), target=1)
    assert left.abs().sum() > 0
    assert torch.equal(left, right)
    assert firsts(model, (x, x), preset) == ["left.conv", "right.conv"]


@pytest.mark.parametrize("preset", PRESETS[:3], ids=lambda preset: preset.name)
def test_the_sum_of_two_networks_gets_the_relevance_of_each(preset) -> None:
    """Each for itself: the epsilon rule at the head takes the two apart but for its epsilon."""
    model, a, b = build(Siamese), picture(2, 3, 8, 8), picture(2, 3, 8, 8, seed=1)
    found = LRP(model, preset).attribute((a, b), target=1)
    for stem, x, part in zip((model.left, model.right), (a, b), found, strict=True):
        alone = LRP(One(stem, model.out).eval(), preset).attribute(x, target=1)
        assert relative_error(part, alone) <= 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_the_order_of_definition_has_no_say(preset, form) -> None:
    class OutBeforeStem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Conv2d(6, 3, 1)
            self.stem = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.stem(x).relu()).mean((2, 3))

    model, x = build(OutBeforeStem), picture(2, 3, 6, 6)
    model.stem.bias.data.abs_()
    in_order = nn.Sequential(model.stem, nn.ReLU(), model.out, Called(lambda z: z.mean((2, 3))))
    assert firsts(model, x, preset) == ["stem"]
    found = relevance_in(form, model, x, preset)
    expected = relevance_in(form, in_order, x, preset)
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_stem_is_first(preset) -> None:
    model, x = build(Stems), picture(2, 3, 9, 9)
    assert firsts(model, x, preset) == ["fine.conv", "coarse"]
    name_map = [(["fine.conv", "coarse"], *rule) for _, *rule in preset(model, x)[:1]] + preset(
        model, x
    )[1:]
    explained = LRP(model, preset).attribute(x, target=1)
    assert torch.equal(explained, LRP(model, name_map).attribute(x, target=1))


def test_the_rule_is_for_layers_of_its_types() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense, self.out = nn.Conv1d(2, 3, 3), nn.Linear(12, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.conv(x).mean(2) + self.dense(x.flatten(1))).relu())

    model, x = build(Mixed), picture(2, 2, 6)
    assert firsts(model, x, presets.epsilon_gamma_box(LOW, HIGH)) == ["conv"]
    assert firsts(model, x, presets.epsilon_plus_flat()) == ["conv", "dense"]


# what may lie between ----------------------------------------------------------------------------


def folded(network: nn.Sequential) -> nn.Sequential:
    """The network with the normalisation in its first layer."""
    first = nn.Conv2d(3, 6, 3).double()
    weight = network[0].weight / _column(STD)
    first.weight.data = weight.detach()
    first.bias.data = (network[0].bias - (weight * _column(MEAN)).sum((1, 2, 3))).detach()
    return nn.Sequential(first, *network[1:]).eval()


def box(in_pixels: bool) -> dict[str, Tensor | float]:
    """The values of pixels, or what becomes of them."""
    low, high = (_column((v,) * 3)[None] for v in (0.0, 1.0))
    if in_pixels:
        return {"low": low, "high": high}
    return {
        "low": (low - _column(MEAN)) / _column(STD),
        "high": (high - _column(MEAN)) / _column(STD),
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_normalisation_in_front_is_as_part_of_the_first_layer(name, form) -> None:
    """Flat and zB relevance passes it unchanged, as it does where it is folded into the layer."""
    network, x = build(small, seed=2), picture(2, 3, 8, 8)
    model = nn.Sequential(NORMALISATIONS[name](), network).eval()
    kept, expected = x.clone(), folded(network)
    assert torch.allclose(model(x.clone()), expected(x))
    for preset, in_pixels in (
        (presets.epsilon_plus_flat(), presets.epsilon_plus_flat()),
        (presets.epsilon_gamma_box(**box(False)), presets.epsilon_gamma_box(**box(True))),
    ):
        found = relevance_in(form, model, x, preset)
        assert relative_error(found, relevance_in(form, expected, x, in_pixels)) <= 1e-9
        assert [row.name for row in plan(model, x, preset).rows if row.name == "1.0"] == ["1.0"]
        assert firsts(model, x, preset) == ["1.0"]
    assert torch.equal(x, kept)
    other = relevance_in(form, expected, x, presets.epsilon_plus())  # the control
    assert relative_error(relevance_in(form, model, x, presets.epsilon_plus_flat()), other) > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_a_value_that_is_masked_gets_no_relevance(form) -> None:
    """As it has no part in the score; what the rule gives to its place is lost."""
    mask = (picture(3, 8, 8, seed=5) > 0.5).double()
    network, x = build(small, seed=2), picture(2, 3, 8, 8)
    for multiplied in (lambda x: x * mask, lambda x: x.clone().mul_(mask), lambda x: mask * x):
        model = nn.Sequential(Called(lambda x, f=multiplied: f(x) + 0.5), network)
        found = relevance_in(form, model, x, presets.epsilon_plus_flat())
        below = relevance_in(form, network, model[0](x), presets.epsilon_plus_flat())
        assert below[:, mask == 0].abs().sum() > 0
        assert torch.equal(found, below * mask)


@pytest.mark.parametrize("form", FORMS)
def test_a_resized_picture_gets_relevance_by_the_weights(form) -> None:
    """The adjoint of the interpolation, which hands on all that it gets."""
    network, small_x = build(small, seed=2), picture(2, 3, 5, 5)
    options = {"size": (8, 8), "mode": "bilinear"}
    for resized in (
        lambda x: F.interpolate(x, **options) * 2 - 1,
        lambda x: F.interpolate(x * 2 - 1, **options),
    ):
        model = nn.Sequential(Called(resized), network)
        found = relevance_in(form, model, small_x, presets.epsilon_plus_flat())
        below = relevance_in(form, network, resized(small_x), presets.epsilon_plus_flat())
        point = small_x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.interpolate(point, **options), point, below)
        assert relative_error(found, expected) <= 1e-12
        assert relative_error(found.sum((1, 2, 3)), below.sum((1, 2, 3))) <= 1e-12


# what lies between: more, and less ---------------------------------------------------------------


class Between(nn.Module):
    """A convolution behind an operation."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 3) -> None:
        super().__init__()
        self.function = function
        self.mixer = nn.Conv2d(3, 3, 1)
        self.conv, self.head = nn.Conv2d(channels, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.function(self, x)
        return self.head(self.conv(z).relu().mean((2, 3)))


FIRST_BEHIND: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "resize": lambda m, x: F.interpolate(x, size=(7, 7), mode="bilinear"),
    "average pool": lambda m, x: F.avg_pool2d(x, 2),
    "max pool": lambda m, x: F.max_pool2d(x, 2),
    "activation": lambda m, x: F.gelu(x - 0.5),
    "padding": lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "layer norm": lambda m, x: F.layer_norm(x, x.shape[1:]),
    "own mean": lambda m, x: x - x.mean((2, 3), keepdim=True),
    "own deviation": lambda m, x: (x - x.mean()) / x.std(),
    "normalize": lambda m, x: F.normalize(x, dim=1),
    "its maximum": lambda m, x: x / x.amax((2, 3), keepdim=True),
    "crop and flip": lambda m, x: x[:, :, 1:-1, 1:-1].flip(-1),
    "channels turned": lambda m, x: x[:, [2, 1, 0]],
    "masked": lambda m, x: torch.where(x > 0.2, x, torch.zeros(())),
    "scale with half": lambda m, x: F.interpolate(2 * x - 1, scale_factor=0.8),
}
NOT_BEHIND: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "a layer": lambda m, x: m.mixer(x),
    "a layer and the input": lambda m, x: m.mixer(x) + x,
    "written to": lambda m, x: x.clone().copy_(m.mixer(x)),
    "assigned to": lambda m, x: _assigned(x.clone(), m.mixer(x)),
    "beside": lambda m, x: torch.cat([x[:, :1], m.mixer(x)[:, 1:]], 1),
    "means": lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 5, 5),
    "no rule": lambda m, x: (x + 1).log(),
    "complex layer": lambda m, x: F.conv2d(x.to(torch.complex128), m.mixer.weight + 0j).real,
    "product with weights": lambda m, x: (m.mixer.weight[:, :, 0, 0] @ x.flatten(2)).view_as(x),
}


def _assigned(x: Tensor, value: Tensor) -> Tensor:
    x[:, 0] = value[:, 0]
    return x


@pytest.mark.parametrize("name", FIRST_BEHIND | NOT_BEHIND)
def test_what_a_first_layer_may_read(name) -> None:
    function = (FIRST_BEHIND | NOT_BEHIND)[name]
    model, x = build(lambda: Between(function), seed=1), picture(2, 3, 8, 8)
    preset = presets.epsilon_plus_flat()
    others = {"means": [], "no rule": [], "complex layer": ["conv2d_0"]}
    others["product with weights"] = ["matmul_0"]
    expected = ["conv"] if name in FIRST_BEHIND else others.get(name, ["mixer"])
    assert firsts(model, x, preset) == expected
    found = LRP(model, preset, fallbacks="ignore").attribute(x, target=1)
    assert bool(found.isfinite().all()) and float(found.abs().sum()) > 0
    by_map = LRP(model, preset(model, x), fallbacks="ignore").attribute(x, target=1)
    assert torch.equal(found, by_map)
