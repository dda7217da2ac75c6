"""How relevance is asked for and compared where dense formulas judge it."""

import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from tests.helpers.layers import relative_error

EXACT, DIFFERENT = 1e-10, 1e-3
TARGET = 1


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explained(model: nn.Module, inputs, rule: str = "attnlrp", rules=None):
    """The relevance of the target, without a single fallback."""
    rules = presets.zero() if rules is None else rules
    fallbacks = plan(model, inputs, rules, attention=rule).fallbacks
    assert not fallbacks, fallbacks
    return LRP(model, rules, attention=rule, strict=True).attribute(inputs, target=TARGET)


def assert_differs(actual: Tensor, other: Tensor) -> None:
    assert relative_error(actual, other) > DIFFERENT, "the control agrees: the test shows nothing"


def without_biases(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
    return model
