"""A tiny network among those that commands know by name."""

from typing import Any

import pytest
from torch import nn

from captum_lrp_stab import zoo
from tests.helpers import networks


def tiny(seed: int) -> zoo.Classifier:
    """On pictures of 16 x 16 pixels; the first layer has no bias."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 36, 1000),
        )

    preprocessing = zoo.Preprocessing(18, 16, (0.0,) * 3, (1.0,) * 3)
    model = networks.build(make).float()
    return zoo.Classifier("tiny", f"random, seed {seed}", model, preprocessing)


@pytest.fixture(autouse=True)
def _tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    load = zoo.load

    def known(name: str = zoo.LITE0, weights: str = "DEFAULT", seed: int = 0, **more: Any) -> Any:
        return tiny(seed) if name == "tiny" else load(name, weights, seed, **more)

    monkeypatch.setattr(zoo, "load", known)
