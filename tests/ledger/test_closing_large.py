"""The ledger closes on whole networks, every preset: what this takes minutes for is marked slow."""

from functools import lru_cache

import pytest
import torch
import torchvision
from torch import Tensor, nn

from captum_lrp_stab import by_name, diagnose, zoo
from captum_lrp_stab.names import PRESETS
from tests.helpers.ledgers import CLOSES, off

NETWORKS = ("vgg16", "resnet18", "efficientnet_lite0", "vit_b_16")
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}
"""The float32 sums themselves are only so exact; what a network reaches is printed."""


def preprocessing() -> zoo.Preprocessing:
    return zoo.load("resnet18", "none", 0).preprocessing


@lru_cache(maxsize=2)  # they are large
def network(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, zoo.Preprocessing]:
    if name == "efficientnet_lite0":
        loaded = zoo.load(name, "DEFAULT")
        model, prepared = loaded.model, loaded.preprocessing
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torchvision.models.get_model(name, weights=None)
            if name.startswith("vit"):
                nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros by default
        prepared = preprocessing()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, 14, 14, dtype=torch.float64, generator=generator)
    pixels = nn.functional.interpolate(pixels, 224, mode="bicubic").clamp(0, 1)
    low, high = (torch.as_tensor(b).double() for b in (prepared.low, prepared.high))
    x = low + (high - low) * pixels
    return model.eval().to(dtype), x.to(dtype), prepared


@pytest.mark.slow
@pytest.mark.parametrize("dtype", CLOSES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_ledger_closes(name, preset, dtype) -> None:
    model, x, prepared = network(name, dtype)
    found = diagnose(model, x, 7, by_name.preset_of(preset, *prepared.bounds))
    elsewhere, rounding = off(found)
    print(
        f"\n{name} {preset} {dtype}: elsewhere {elsewhere:.1e}, rounding {rounding:.1e}, "
        f"{found.verdict}, L1 over score {found.ledger.inputs.l1 / abs(found.ledger.score):.2g}"
    )
    assert elsewhere <= CLOSES[dtype]
    assert rounding <= ROUNDING[dtype]
    score = float(model(x)[0, 7].detach())
    assert found.ledger.score == pytest.approx(score, rel=1e-6 if dtype == torch.float64 else 1e-3)
    assert found.verdict != "not finite"
