"""Which layers a preset takes for the first: those that read an input, as the pass finds them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from layers import relative_error
from networks import build
from torch import Tensor, nn
from torchvision.transforms import Normalize

from captum_lrp_stab import LRP, plan, presets
from captum_lrp_stab.forms import form_of
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation import propagate
from captum_lrp_stab.translation import rule_set_of

LOW, HIGH = -4.0, 4.0
PRESETS = [
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(LOW, HIGH),
    presets.lrp_tutorial(LOW, HIGH),
]
FORMS = ["gradient", "relevance", "modified-forward"]
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.5)


def picture(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def firsts(model: nn.Module, x: Tensor | tuple[Tensor, ...], preset: Preset) -> list[str]:
    """The layers with the rule for first layers, by the plan."""
    rows = plan(model, x, preset).rows
    return [row.name for row in rows if row.rule in ("FlatRule", "ZBoxRule")]


def relevance_in(form: str, model: nn.Module, x: Tensor, preset: Preset) -> Tensor:
    """The relevance as a form carries it; a tiny stabilizer keeps 0 / 0 at 0 at additions."""
    tiny = 1e-300 if form == "relevance" else None
    rules = rule_set_of(model, preset)
    return propagate(model, x, 1, rule_set=rules, form=form_of(form, tiny)).relevances[0]


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# networks with several first layers, and one that is not defined first --------------------------


class Stem(nn.Module):
    """A convolution, ReLU and a mean; with the batch norm and without."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


class Siamese(nn.Module):
    """Two stems on two pictures, and the sum of their scores; the last layer is defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3, bias=False)
        self.left, self.right = Stem(), Stem()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.left(a) + self.right(b))


class One(nn.Module):
    """One stem of that, in order."""

    def __init__(self, stem: nn.Module, out: nn.Module) -> None:
        super().__init__()
        self.stem, self.out = stem, out

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.stem(x))


class Stems(nn.Module):
    """Two stems on one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3, bias=False)
        self.fine, self.coarse = Stem(), nn.Conv2d(3, 6, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fine(x) + self.coarse(x.flip(-1)).relu().mean((2, 3)))


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


def _by_views(x: Tensor) -> Tensor:
    x = x.clone()
    for channel in range(3):
        x[:, channel].sub_(MEAN[channel]).div_(STD[channel])
    return x


def _by_assignment(x: Tensor) -> Tensor:
    x = x.clone()
    for channel in range(3):
        x[:, channel] = (x[:, channel] - MEAN[channel]) / STD[channel]
    return x


def _augmented(x: Tensor) -> Tensor:
    x = x.clone()
    for channel in range(3):
        x[:, channel] -= MEAN[channel]
        x[:, channel] /= STD[channel]
    return x


def _of_slices(x: Tensor) -> Tensor:
    parts = [(x[:, c].unsqueeze(1) - MEAN[c]) * (1 / STD[c]) for c in range(3)]
    return torch.cat(parts, 1)


def _of_parts(x: Tensor) -> Tensor:
    return torch.stack([(x - m) / s for x, m, s in zip(x.unbind(1), MEAN, STD, strict=True)], 1)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def _batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3, eps=0.0, affine=False).double()
    norm.running_mean.copy_(_column(MEAN).flatten())
    norm.running_var.copy_(_column(STD).flatten().square())
    return norm.eval()


NORMALISATIONS: dict[str, Callable[[], nn.Module]] = {
    "operators": lambda: Called(lambda x: (x - _column(MEAN)) / _column(STD)),
    "in place": lambda: Called(lambda x: x.sub_(_column(MEAN)).div_(_column(STD))),
    "times and plus": lambda: Called(
        lambda x: torch.add(x * (1 / _column(STD)), -_column(MEAN) / _column(STD))
    ),
    "from the mean": lambda: Called(lambda x: -(_column(MEAN) - x) / _column(STD)),
    "addcmul": lambda: Called(
        lambda x: torch.addcmul(-_column(MEAN) / _column(STD), x, 1 / _column(STD))
    ),
    "addcdiv": lambda: Called(
        lambda x: torch.addcdiv(-_column(MEAN) / _column(STD), x, _column(STD))
    ),
    "lerp": lambda: Called(
        lambda x: torch.lerp(_column(MEAN), x, 1 / _column(STD)) - _column(MEAN)
    ),
    "slices": lambda: Called(_of_slices),
    "parts": lambda: Called(_of_parts),
    "views": lambda: Called(_by_views),
    "assignment": lambda: Called(_by_assignment),
    "augmented assignment": lambda: Called(_augmented),
    "torchvision's": lambda: Normalize(MEAN, STD),
    "torchvision's in place": lambda: Normalize(MEAN, STD, inplace=True),
    "batch norm": _batch_norm,
    "moved": lambda: Called(
        lambda x: ((x.movedim(1, -1) - _column(MEAN).flatten()) / _column(STD).flatten()).movedim(
            -1, 1
        )
    ),
}


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )


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
