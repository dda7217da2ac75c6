"""LRP beside Captum's other methods: where they must agree, and what they make of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import (
    DeepLift,
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerGradientXActivation,
    NoiseTunnel,
)
from captum.concept import TCAV, Classifier, Concept
from torch import Tensor, nn
from torch.utils.data import DataLoader

from captum_lrp_stab import LRP, LayerLRP, presets
from tests.helpers.layers import relative_error
from tests.helpers.networks import Residual, build, cnn
from tests.helpers.small_pictures import IMAGES, SAMPLES, TARGETS, small, without_bias

pytestmark = pytest.mark.usefixtures("one_thread")


# oracles among Captum's own methods --------------------------------------------------------------


@pytest.mark.parametrize("make", [cnn, Residual], ids=["cnn", "residual"])
def test_lrp_0_is_input_x_gradient(make) -> None:
    model = build(make)
    zero = LRP(model, presets.zero())
    expected = InputXGradient(model).attribute(IMAGES.clone(), target=TARGETS)
    assert relative_error(zero.attribute(IMAGES, target=TARGETS), expected) <= 1e-12
    plus = LRP(model, presets.epsilon_plus()).attribute(IMAGES, target=TARGETS)
    assert relative_error(plus, expected) > 0.1
    found = []
    for method in (zero, InputXGradient(model)):
        torch.manual_seed(0)
        found.append(
            NoiseTunnel(method).attribute(IMAGES, nt_samples=SAMPLES, stdevs=0.2, target=TARGETS)
        )
    assert relative_error(found[0], found[1]) <= 1e-12


@pytest.mark.parametrize("index", [0, 2, 3, 6])
def test_lrp_0_of_a_layer_is_gradient_x_activation(index) -> None:
    model = build(cnn)
    found = LayerLRP(model, model[index], presets.zero()).attribute(IMAGES, target=TARGETS)
    expected = LayerGradientXActivation(model, model[index]).attribute(IMAGES, target=TARGETS)
    assert relative_error(found, expected) <= 1e-12


def test_without_biases_it_is_deep_lift_and_integrated_gradients_from_0() -> None:
    """Ancona et al. 2018: on ReLU networks without biases these are one method."""

    def others(model: nn.Module) -> list[Tensor]:
        given: dict[str, Any] = {"baselines": 0, "target": TARGETS}
        return [
            IntegratedGradients(model).attribute(IMAGES, n_steps=20, **given),
            DeepLift(model).attribute(IMAGES.clone().requires_grad_(), **given).detach(),
        ]

    model = build(small)
    with pytest.warns(UserWarning, match="forward, backward hooks"):
        biased = others(model)
        clean = others(without_bias(model))
    relevance = LRP(model, presets.zero()).attribute(IMAGES, target=TARGETS)
    biased_relevance = LRP(build(small), presets.zero()).attribute(IMAGES, target=TARGETS)
    for with_bias, without in zip(biased, clean, strict=True):
        assert relative_error(relevance, without) <= 1e-7  # integrated in float32 steps
        assert relative_error(biased_relevance, with_bias) > 1e-2


def test_on_a_linear_model_it_is_feature_ablation() -> None:
    def both(make: Callable[[], nn.Module]) -> tuple[Tensor, Tensor]:
        model = build(make)
        ablated = FeatureAblation(model).attribute(IMAGES, target=TARGETS)
        return LRP(model, presets.zero()).attribute(IMAGES, target=TARGETS), ablated

    linear = both(lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert relative_error(*linear) <= 1e-12
    assert relative_error(*both(cnn)) > 1e-2


# concepts ----------------------------------------------------------------------------------------


class Given(Classifier):
    """Concept vectors that are there from the start; ``weights`` has a row per concept."""

    def __init__(self) -> None:
        self.features = 0

    def train_and_eval(self, dataloader: DataLoader, **kwargs: Any) -> None:
        self.features = next(iter(dataloader))[0].shape[1]

    def weights(self) -> Tensor:
        return torch.randn(2, self.features, generator=torch.Generator().manual_seed(self.features))

    def classes(self) -> list[int]:
        return [0, 1]


def test_tcav_with_layer_lrp(tmp_path) -> None:
    """Captum's TCAV sets ``layer`` of the method it is given, one layer after the other."""
    model = build(cnn, dtype=torch.float32)
    images = IMAGES.float()
    concepts = [Concept(i, name, DataLoader(images + i)) for i, name in enumerate(("one", "two"))]
    rules = presets.epsilon_plus()
    for folder, start in (("none", None), ("another", model[6])):
        method = LayerLRP(model, start, rules)
        tcav = TCAV(
            model,
            ["0", "3"],
            classifier=Given(),
            layer_attr_method=method,
            save_path=str(tmp_path / folder),
        )
        scores = tcav.interpret(images, [concepts], target=TARGETS)["0-1"]
        for name in ("0", "3"):
            relevance = LayerLRP(model, name, rules).attribute(images, target=TARGETS).flatten(1)
            vectors = torch.randn(
                2, relevance.shape[1], generator=torch.Generator().manual_seed(relevance.shape[1])
            )
            along = vectors @ relevance.T
            share = (along > 0).float().mean(1)
            assert torch.allclose(scores[name]["sign_count"], share)
            assert torch.allclose(scores[name]["magnitude"], along.mean(1), rtol=1e-4, atol=1e-6)
            assert not torch.allclose(along[0].mean(), along[1].mean(), rtol=1e-2)
