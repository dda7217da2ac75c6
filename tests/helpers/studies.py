"""What the tests of the forms and of the study share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captum_lrp_stab import ZeroRule
from captum_lrp_stab.propagation.attribution import Propagation, propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.stabilizers import Identity
from captum_lrp_stab.zoo import Classifier, Preprocessing
from tests.helpers import networks

NONE = Identity()


def run(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    form: str,
    rules: dict | None = None,
    stabilizer: Callable[[Tensor], Tensor] = NONE,
    target: object = 1,
    **options: object,
) -> Propagation:
    """Propagate under one stabilizer, LRP-0 where ``rules`` names no rule."""
    chosen = form_of(form, stabilizer)
    rule_set = RuleSet(rules or {}, ZeroRule(stabilizer))
    return propagate(model, x, target, rule_set=rule_set, form=chosen, **options)


def random_input(*shape: int) -> Tensor:
    """Values from -1 to 1."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return 2 * torch.rand(*shape, dtype=torch.float64) - 1


def classifier(make: Any = None) -> Classifier:
    """A small network on pictures of 16 x 16 pixels; its first layer has no bias."""

    def default() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, bias=False),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 36, 4),
        )

    preprocessing = Preprocessing(18, 16, (0.0,) * 3, (1.0,) * 3)
    model = networks.build(make or default, dtype=torch.float32)
    return Classifier("small", "random", model, preprocessing, ("cat", "dog", "owl", "castle"))


def picture() -> Image.Image:
    """Noise, and above it a black area."""
    values = np.random.default_rng(1).integers(5, 250, (18, 18, 3), dtype=np.uint8)
    values[:9] = 0
    return Image.fromarray(values)
