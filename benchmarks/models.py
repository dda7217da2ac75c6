"""The networks and their inputs.

torchvision's networks get random weights from a fixed seed, because their trained ones need a
download; EfficientNet-Lite0 has its ImageNet weights from the package registry. Random weights
leave batch norms, ConvNeXt's layer scales and ViT's head at constants under which a wrong rule
would pass unnoticed, so these are random too. None of this changes how long anything takes.
"""

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.settings import Settings
from captum_lrp_stab import zoo

REAL = (zoo.LITE0,)
"""Networks with trained weights."""

_GRAIN = 16  # pixels per cell of the coarse part of an input


@dataclass(frozen=True, eq=False)
class Subject:
    """A model in eval mode, and the box its inputs lie in.

    Args:
        name: Of the model.
        weights: Where they come from, in words.
        model: The model.
        low: The smallest possible input, shape ``(1, 3, 1, 1)``.
        high: The largest one.
        size: Height and width of the inputs.
        seed: Of the inputs.
    """

    name: str
    weights: str
    model: nn.Module
    low: Tensor
    high: Tensor
    size: int
    seed: int

    def inputs(self, batch: int) -> Tensor:
        """Return pictures of random blotches and grain, from all over the box.

        The first of a larger batch are those of a smaller one.
        """
        side = max(2, self.size // _GRAIN)
        pictures = []
        for index in range(batch):
            generator = torch.Generator().manual_seed(1000 * self.seed + index)
            coarse = torch.rand(1, 3, side, side, generator=generator)
            fine = torch.rand(1, 3, self.size, self.size, generator=generator)
            blotches = F.interpolate(coarse, (self.size, self.size), mode="bilinear")
            pictures.append(0.75 * blotches + 0.25 * fine)
        return self.low + (self.high - self.low) * torch.cat(pictures).to(self.low)

    @torch.no_grad()
    def targets(self, inputs: Tensor) -> Tensor:
        """Return the class the model finds in each input, which keeps the score away from 0."""
        output: Tensor = self.model(inputs)
        return output.argmax(1)

    def copied(self) -> "Subject":
        """Return the same with a model of its own, for a library that writes to it."""
        return replace(self, model=copy.deepcopy(self.model))

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Subject":
        """Return a copy in another dtype or on another device, with the same numbers in it."""
        low, high = (bound.to(device, dtype) for bound in (self.low, self.high))
        model = copy.deepcopy(self.model).to(device, dtype)
        return replace(self, model=model, low=low, high=high)


def load(name: str, settings: Settings) -> Subject:
    """Return a network as the settings want it.

    Raises:
        ModelError: No model has this name.
        MissingExtraError: The package with trained weights is not installed.
    """
    if name in REAL:
        classifier = zoo.load(name)
        model, weights = classifier.model, "ImageNet"
        preprocessing = classifier.preprocessing
    else:
        preprocessing = zoo.load(
            "resnet18" if name.startswith("vit") else name, "none"
        ).preprocessing
        model = _random(name, settings)
        weights = f"random, seed {settings.seed}"
    model = model.to(settings.device, settings.torch_dtype)
    bounds = preprocessing.bounds
    low, high = (bound.to(settings.device, settings.torch_dtype) for bound in bounds)
    return Subject(name, weights, model, low, high, settings.size, settings.seed)


def _random(name: str, settings: Settings) -> nn.Module:
    options = {"image_size": settings.size} if name.startswith("vit") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        for key, parameter in model.named_parameters():
            if key.endswith("layer_scale"):
                nn.init.uniform_(parameter, 0.1, 1.0)
            elif key == "heads.head.weight":
                nn.init.normal_(parameter, std=0.02)
    return model.eval()
