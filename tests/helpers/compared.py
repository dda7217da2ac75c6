"""A network, and ``compare`` with one argument changed, as the tests of errors ask it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import compare, presets
from captum_lrp_stab.comparison import Comparison
from tests.helpers.networks import build
from tests.helpers.random_maps import drawn
from tests.helpers.states import Trouble

TARGET = 1


VECTORS = drawn(3, 6)


NAMED = ("zennit", "captum", "captum_driver", "float64", "modified_forward")


EPSILON = presets.epsilon(0.01)


every_named = pytest.mark.parametrize("reference", NAMED)


def dense() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)))


def ones(model: nn.Module, inputs: Any, target: Any) -> Any:
    """A reference that works, though it knows nothing."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    relevances = tuple(torch.ones_like(x) for x in several)
    return relevances if isinstance(inputs, tuple) else relevances[0]


def asked(reference: Any = ones, **changes: Any) -> Comparison:
    """A comparison that works, but for what is changed."""
    arguments = {"model": dense(), "inputs": VECTORS, "target": TARGET, "rules": EPSILON}
    return compare(**arguments | {"reference": reference} | changes)


def fails(model: nn.Module, inputs: Any, target: Any) -> Tensor:
    raise Trouble("of its own")
