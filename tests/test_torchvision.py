"""Every torchvision classifier, as it is: no fallback, exact where there is an oracle."""

import pytest
from torchvision_models import NAMES, OF_RELU_ONLY, check

REPRESENTATIVE = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
)
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
