"""Real networks on photographs: heatmaps on the object, in every dtype."""

from contextlib import nullcontext

import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

from captum_lrp_stab import LRP, GammaRule, LayerLRP, presets, zoo
from captum_lrp_stab.errors import StabilizerWarning
from captum_lrp_stab.propagation.gradient_form import GradientForm
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

PICTURES = {"coffee": ("espresso",), "chelsea": ("Egyptian cat", "tabby", "tiger cat")}
OBJECTS = {  # where it is on the square picture, as shares of its side: top, bottom, left, right
    "coffee": (0.0, 0.78, 0.15, 0.85),  # cup and spoon
    "chelsea": (0.15, 1.0, 0.1, 1.0),  # eyes, nose and whiskers
}
HALF = (torch.bfloat16, torch.float16)


def relevance_of(name: str, picture: str, dtype: torch.dtype, target: int) -> Tensor:
    classifier = zoo.load(name)
    preprocessing = classifier.preprocessing
    image = preprocessing.picture(Image.fromarray(getattr(skimage.data, picture)()))
    x = preprocessing.input(image, torch.float64).to(dtype)
    model = classifier.model.to(dtype)
    if dtype == torch.float64:
        assert classifier.label(int(model(x).argmax())) in PICTURES[picture]
    raises_epsilon = dtype == torch.float16
    with pytest.warns(StabilizerWarning) if raises_epsilon else nullcontext():
        preset = presets.epsilon_gamma_box(preprocessing.low, preprocessing.high)
        relevance = LRP(model, preset, nonfinite="raise").attribute(x, target=target)
    assert relevance.dtype == dtype
    return relevance.double()


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", zoo.OFFLINE)
def test_heatmaps_of_real_networks(name, picture) -> None:
    target = {"coffee": 967, "chelsea": 285}[picture]
    expected = relevance_of(name, picture, torch.float64, target)
    assert relative_error(relevance_of(name, picture, torch.float32, target), expected) <= 1e-4
    heatmap = expected[0].sum(0).abs()
    side = len(heatmap)
    top, bottom, left, right = (int(share * side) for share in OBJECTS[picture])
    inside = heatmap[top:bottom, left:right]
    others = heatmap.sum() - inside.sum()
    assert inside.mean() > 1.5 * others / (heatmap.numel() - inside.numel())
    for dtype in HALF:
        relevance = relevance_of(name, picture, dtype, target)
        assert relevance.isfinite().all()
        assert torch.cosine_similarity(relevance.flatten(), expected.flatten(), 0) > 0.99
        heat = relevance[0].sum(0)
        signed = expected[0].sum(0)
        assert torch.cosine_similarity(heat.flatten(), signed.flatten(), 0) > 0.99


class Pooled(nn.Module):
    """A convolution whose outputs are often equal in bfloat16, and a max pool."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act
        self.pool, self.head = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.act(self.norm(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU()], ids=repr)
def test_ties_of_a_max_pool_are_broken_by_what_was_rounded(act) -> None:
    model = build(lambda: Pooled(act)).bfloat16()
    x = (1 + 0.01 * torch.randn(2, 3, 40, 40)).bfloat16()
    rules = [(["conv"], GammaRule, {})]
    relevance = LRP(model, rules).attribute(x, target=1)
    logits = LayerLRP(model, "head").attribute(x, target=1)
    with torch.no_grad():
        assert torch.equal(logits[:, 1], model(x)[:, 1])  # values stay as they are
    wide = build(lambda: Pooled(act))
    wide.load_state_dict(model.state_dict())
    expected = LRP(wide.double(), rules).attribute(x.double(), target=1).flatten()
    assert torch.cosine_similarity(relevance.double().flatten(), expected, 0) > 0.99
    without = LRP(nn.Sequential(Pooling(model)), [(["0.m.conv"], GammaRule, {})])
    control = without.attribute(x, target=1).double().flatten()
    assert torch.cosine_similarity(control, expected, 0) < 0.98


@pytest.mark.parametrize("act", [nn.LeakyReLU(-0.01), nn.PReLU(init=-0.02)], ids=repr)
def test_a_max_pool_keeps_its_values(act) -> None:
    model = build(lambda: Pooled(act)).bfloat16()
    x = (1 + 0.01 * torch.randn(2, 3, 40, 40)).bfloat16()
    pooled = LayerLRP(model, "head", presets.zero()).attribute(x, target=1)
    with torch.no_grad():
        assert torch.equal(pooled[:, 1], model(x)[:, 1])


class Pooling(nn.Module):
    """The same, with a copy before the pool, so that nothing is known of what it pools."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        m = self.m
        return m.head(m.pool(m.act(m.norm(m.conv(x))).clone()).mean((2, 3)))


def test_small_coefficients_survive_float16(monkeypatch) -> None:
    """Coefficients of 1e-7 have no digits in float16, the relevances of 1e-3 they make have."""
    layers = [nn.Linear(32, 32, bias=False) for _ in range(5)]
    pairs = [m for layer in layers for m in (layer, nn.ReLU())]
    model = build(lambda: nn.Sequential(*pairs[:-1]))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    x = 1e4 * torch.rand(3, 32, dtype=torch.float64)
    expected = LRP(model, presets.zero()).attribute(x, target=1)
    expected_inside = LayerLRP(model, "5", presets.zero()).attribute(x, target=1)
    half = model.half()

    def similarity() -> float:
        relevance = LRP(half, presets.zero()).attribute(x.half(), target=1)
        return float(torch.cosine_similarity(relevance.double().flatten(), expected.flatten(), 0))

    assert similarity() > 0.999
    inside = LayerLRP(half, "5", presets.zero()).attribute(x.half(), target=1)
    assert relative_error(inside.double(), expected_inside) <= 0.01
    monkeypatch.setattr(GradientForm, "float16_scale", 1.0)
    assert similarity() < 0.99  # the control


def test_large_coefficients_do_not_overflow_float16() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    with torch.no_grad():
        model[2].weight.mul_(2e4)
    x = 0.1 * torch.rand(3, 8, dtype=torch.float64)
    expected = LRP(model, presets.zero()).attribute(x, target=1)
    relevance = LRP(model.half(), presets.zero(), nonfinite="raise").attribute(x.half(), target=1)
    assert relative_error(relevance.double(), expected) <= 0.02
