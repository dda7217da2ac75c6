"""Layers selected by index and type."""

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from captum_lrp_stab import LayerFilter, types
from captum_lrp_stab.errors import LayerFilterError


def every(n: int) -> bool:
    return True


def nested() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(block, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))


SELECTIONS = {
    "rule-bearing": (every, None, ["0.0", "0.1", "1", "3"]),
    "by-index": (lambda n: n <= 3, None, ["0.0", "0.1", "1"]),
    "linear": (every, types.Linear, ["0.0", "3"]),
    "two-tuples": (every, types.BatchNorm + types.AvgPool, ["0.1", "1"]),
    "one-type": (every, nn.ReLU, ["0.2"]),
    "index-and-type": (lambda n: n == 5, types.Linear, ["3"]),
}


@pytest.mark.parametrize(("condition", "types_", "names"), SELECTIONS.values(), ids=[*SELECTIONS])
def test_filter_selects_by_index_and_type(condition, types_, names) -> None:
    layers = LayerFilter(nested(), target_types=types.Padding)
    assert layers(condition, target_types=types_ or types.RuleBearing) == names
    assert layers.target_types == types.Padding  # it was for that call only
    assert LayerFilter(nested(), types_).filter(condition) == names
    layers.set_target_types(types_)  # from now on
    assert layers(condition) == layers.filter(condition) == names


@pytest.mark.parametrize("target_types", [(), 5, (5,), "Conv2d"], ids=str)
def test_target_types_are_types(target_types) -> None:
    with pytest.raises(LayerFilterError, match="give a tuple of module types"):
        LayerFilter(nested(), target_types)


def test_padded_convolution_counts_as_one_leaf() -> None:
    with torch.device("meta"):  # names and types alone
        model = EfficientNet.from_name("efficientnet-lite0")
    assert isinstance(model._conv_stem.static_padding, nn.ZeroPad2d)
    layers = LayerFilter(model)
    assert layers(lambda n: n < 3) == ["_conv_stem", "_bn0", "_blocks.0._depthwise_conv"]
    assert not [name for name in layers(every, nn.Module) if "static_padding" in name]
