"""What the documentation's snippets and commands find where they are run.

A reader has a picture, a folder of them, and torchvision's ImageNet weights. Here the pictures come
from scikit-image, and torchvision's weights are random ones, because nothing is downloaded: what a
page says about values with ``weights="DEFAULT"`` must not depend on them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from skimage import data
from torchvision.models import WeightsEnum


def fill(folder: Path) -> None:
    """Put ``cat.jpg`` and ``photographs/`` into a folder."""
    Image.fromarray(photograph("chelsea")).save(folder / "cat.jpg", quality=95)
    photographs = folder / "photographs"
    photographs.mkdir()
    for name in ("chelsea", "coffee"):
        Image.fromarray(photograph(name)).save(photographs / f"{name}.jpg", quality=95)


def photograph(name: str) -> Any:
    """Return a photograph of scikit-image as 8-bit RGB."""
    return getattr(data, name)()


def random_weights(weights: WeightsEnum, *args: Any, **options: Any) -> Mapping[str, Any]:
    """Return a state dict for the model that ``weights`` belongs to, the same in every call.

    Stands in for ``WeightsEnum.get_state_dict``, which downloads.
    """
    models = torchvision.models
    name = next(
        name
        for name in models.list_models(module=models)
        if models.get_model_weights(name) is type(weights)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state: Mapping[str, Any] = models.get_model(name, weights=None).state_dict()
    return state
