"""Every torchvision classifier, as it is: no fallback, exact where there is an oracle."""

import pytest

from tests.helpers.torchvision_models import NAMES, OF_RELU_ONLY, REPRESENTATIVE, check

SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n not in REPRESENTATIVE]


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # of older torchvision
@pytest.mark.parametrize("name", [*REPRESENTATIVE, *SLOW])
def test_classifier(name) -> None:
    result = check(name)
    assert result.fallbacks == ()
    assert result.finite
    assert result.conservation <= 1e-10
    assert result.alone <= 1e-10
    if name.startswith(OF_RELU_ONLY):
        assert result.from_gradient <= 1e-10
    elif name != "mobilenet_v2":  # whose ReLU6 does not saturate with random weights
        # the control: here gradient x input is no LRP
        assert result.gradient_conservation > 1e-4


def test_there_are_as_many_as_torchvision_says() -> None:
    assert len(NAMES) >= 80
    assert set(REPRESENTATIVE) <= set(NAMES)
