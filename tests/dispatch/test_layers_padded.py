"""A padding with zeros before a convolution is part of it, in whatever steps it is written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, presets
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.rand(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PRESETS = {
    "flat": presets.epsilon_plus_flat(),
    "box": presets.epsilon_gamma_box(-1, 2),
    "epsilon": presets.epsilon(0.1),
}
Step = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A convolution of a padded input."""

    def __init__(self, step: Step, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 3, padding=padding)
        self.head, self.step = nn.Linear(3, 3), step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(self.step(x))).mean((2, 3)))


STEPS: dict[str, Step] = {
    "at once": lambda x: F.pad(x, (1, 1, 1, 1)),
    "each dimension": lambda x: F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1)),
    "each side": lambda x: F.pad(F.pad(F.pad(x, (1, 0)), (0, 1, 1, 0)), (0, 0, 0, 1)),
    "modules": nn.Sequential(nn.ZeroPad2d((1, 1, 0, 0)), nn.ConstantPad2d((0, 0, 1, 1), 0.0)),
    "torch.constant_pad_nd": lambda x: torch.constant_pad_nd(x, (1, 1, 1, 1)),
    "operator": lambda x: torch.ops.aten.constant_pad_nd.default(x, [1, 1, 1, 1]),
    "no samples": lambda x: F.pad(x, (1, 1, 1, 1, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_convolutions_own_padding(name, preset) -> None:
    expected = LRP(build(lambda: Net(nn.Identity(), 1)), PRESETS[preset]).attribute(X, 1)
    found = LRP(build(lambda: Net(STEPS[name])), PRESETS[preset]).attribute(X, 1)
    assert relative_error(found, expected) <= 1e-12


def test_samples_that_a_padding_adds_take_nothing_from_others() -> None:
    model = build(lambda: Net(lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1))))
    expected = LRP(build(lambda: Net(nn.Identity())), PRESETS["flat"]).attribute(X, 1)
    target = torch.tensor([1, 1, 0])
    found = LRP(model, PRESETS["flat"]).attribute(X, target)
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("second", [(-1, 2, 1, 1), (0, 1, 1, 1)])
def test_a_crop_between_paddings_is_none(second) -> None:
    steps = [
        lambda x: F.pad(F.pad(x, (-1, 0)), second),
        lambda x: F.pad(x[..., 1:], second),
    ]
    found, expected = (
        LRP(build(lambda s=s: Net(s)), PRESETS["flat"]).attribute(X, 1) for s in steps
    )
    assert relative_error(found, expected) <= 1e-12
