"""What the tests of closing share with others."""

from functools import lru_cache
from typing import Any

import torch
import torchvision
from torch import nn

from tests.helpers.networks import randomize


@lru_cache(maxsize=2)  # they are large
def network(name: str, dtype: torch.dtype) -> nn.Module:
    options: dict[str, Any] = {"image_size": 32} if name.startswith("vit") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **options)
        if name.startswith("vit"):
            nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros by default
            nn.init.normal_(model.class_token)
        for m in model.modules():
            if isinstance(m, (nn.LayerNorm, nn.MultiheadAttention)):
                for n, p in m.named_parameters(recurse=False):
                    if "bias" in n:
                        nn.init.normal_(p, std=0.2)
    randomize(model)
    for m in model.modules():  # moderate: else relevance grows by the depth
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.abs_().clamp_(0.3, 1.2)
            m.running_mean.mul_(0.3)
    return model.to(dtype)
