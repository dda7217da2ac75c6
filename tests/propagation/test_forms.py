"""The three forms against each other: on whole networks, and on the two pictures of the study."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from captum_lrp_stab import EpsilonRule, GammaRule, presets, stabilizers, zoo
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.ledger.locating import locate
from captum_lrp_stab.ledger.watching import Collector, records_of
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation.forms import NAMES, form_of
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.stabilizers import Signed
from tests.helpers import networks
from tests.helpers.repository import DATA
from tests.helpers.studies import random_input, run

OTHERS = ("relevance", "modified-forward")

# whole networks ----------------------------------------------------------------------------------


def vgg16_bn() -> nn.Module:
    """VGG16 with batch norm, with a smaller classifier."""
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: zoo._torchvision("resnet18", init_weights=True),
    "vgg16_bn": vgg16_bn,
    "efficientnet_lite0": zoo._lite0,
    "googlenet": lambda: zoo._torchvision("googlenet", init_weights=False),
    "shufflenet": lambda: zoo._torchvision("shufflenet_v2_x0_5", init_weights=True),
    "densenet-like": networks.Residual,
    "in place": lambda: networks.Residual(inplace=True),
}
PRESETS = [
    presets.zero(),
    presets.lrp_tutorial(-1.0, 1.0),
    presets.epsilon_plus(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(-1.0, 1.0),
]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return networks.build(NETWORKS[request.param])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_relevance_form_is_the_gradient_form(network: nn.Module, preset: Preset) -> None:
    stabilizer = stabilizers.RoundingAware()  # leaves every denominator but noise alone
    chosen = rule_set_of(network, preset(network))
    rules = chosen.changed(lambda rule: rule.with_stabilizer(stabilizer)).named
    x = random_input(2, 3, 32, 32)
    expected = run(network, x, "gradient", rules, stabilizer)
    done = run(network, x, "relevance", rules, stabilizer)
    assert torch.equal(done.score, expected.score)
    error = (done.relevances[0] - expected.relevances[0]).norm() / expected.relevances[0].norm()
    assert error < 1e-8


@pytest.mark.parametrize("preset", [PRESETS[0], PRESETS[-1]], ids=lambda preset: preset.name)
def test_modified_forward_is_the_gradient_form(network: nn.Module, preset: Preset) -> None:
    """Where no denominator is 0 but with z, and the stabilizer too small to change the output."""
    stabilizer = Signed(1e-12)
    small = [
        (n, r, p | ({"epsilon": 0.0} if r is EpsilonRule else {})) for n, r, p in preset(network)
    ]
    chosen = rule_set_of(network, small)
    rules = chosen.changed(lambda rule: rule.with_stabilizer(stabilizer)).named
    x = random_input(2, 3, 32, 32)
    expected = run(network, x, "gradient", rules)
    done = run(network, x, "modified-forward", rules)
    torch.testing.assert_close(done.score, expected.score, rtol=1e-5, atol=1e-9)
    error = (done.relevances[0] - expected.relevances[0]).norm() / expected.relevances[0].norm()
    assert error < 1e-5


@pytest.mark.parametrize("form", NAMES)
def test_several_inputs(form: str) -> None:
    model = networks.build(networks.TwoInputs)
    inputs = random_input(3, 4), random_input(3, 3)
    expected = run(model, inputs, "gradient", target=(1, 2))
    done = run(model, inputs, form, target=(1, 2))
    for relevance, wanted in zip(done.relevances, expected.relevances, strict=True):
        torch.testing.assert_close(relevance, wanted)


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("make", [nn.ReLU6, nn.SiLU, nn.ELU, nn.ReLU])
def test_activations_that_write_over_their_input(form: str, make: type[nn.Module]) -> None:
    def network(inplace: bool) -> nn.Module:
        return networks.build(
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3),
                make(inplace=inplace),
                nn.Conv2d(4, 2, 2),
                make(inplace=inplace),
                nn.Flatten(),
                nn.Linear(50, 3),
            )
        )

    x = 5 * random_input(2, 3, 8, 8)
    done, expected = (run(network(inplace), x, form) for inplace in (True, False))
    assert expected.relevances[0].abs().max() > 0
    torch.testing.assert_close(done.relevances[0], expected.relevances[0])


@pytest.mark.parametrize("form", NAMES)
def test_layers_in_between_can_be_probed(form: str) -> None:
    model = networks.build(networks.cnn)
    x = random_input(2, 3, 8, 8)
    wanted, probe = Probe("3", True), Probe("3", True)
    run(model, x, "gradient", stabilizer=Signed(1e-12), probes=(wanted,))
    run(model, x, form, stabilizer=Signed(1e-12), probes=(probe,))
    torch.testing.assert_close(probe.relevances[0], wanted.relevances[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", NAMES)
def test_the_model_stays_as_it_is(form: str) -> None:
    model = networks.build(networks.Residual)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, random_input(1, 3, 8, 8), form, {"shared": GammaRule()})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_unknown_form() -> None:
    with pytest.raises(InputError, match="no form has the name 'gradients'; give gradient, rel"):
        form_of("gradients")


# the two pictures of the study -------------------------------------------------------------------


def study_network() -> nn.Module:
    """A first convolution without bias: over black areas its pre-activations are exactly 0."""
    return networks.build(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 4, 54),
            nn.Flatten(),
        ),
        dtype=torch.float32,
    )


def read(name: str) -> Tensor:
    with Image.open(DATA / name) as image:
        return to_tensor(image)[None]


def zero_denominators(model: nn.Sequential, x: Tensor) -> dict[int, int]:
    """How many pre-activations of each layer are exactly 0."""
    counts = {}
    with torch.no_grad():
        for index, module in enumerate(model):
            x = module(x)
            if isinstance(module, nn.Conv2d):
                counts[index] = int((x == 0).sum())
    return counts


def test_constant_areas_make_denominators_exactly_0() -> None:
    counts = zero_denominators(study_network(), read("constant_areas.png"))
    assert counts[0] > 10_000
    assert (counts[2], counts[4]) == (0, 0)


def test_texture_makes_no_denominator_0() -> None:
    assert zero_denominators(study_network(), read("textured.png")) == {0: 0, 2: 0, 4: 0}


@pytest.mark.parametrize("form", OTHERS)
def test_constant_areas_give_nan_where_the_division_is_bare(form: str) -> None:
    collector = Collector()
    done = run(study_network(), read("constant_areas.png"), form, observer=collector)
    assert done.relevances[0].isnan().any()
    origin = locate(records_of(collector, (), done.operations, torch.float32))
    assert origin is not None
    assert origin.name == "0"
    assert origin.direction == ("backward" if form == "relevance" else "forward")


def test_constant_areas_are_finite_in_gradient_form() -> None:
    model, x = study_network(), read("constant_areas.png")
    relevance = run(model, x, "gradient").relevances[0]
    assert relevance.isfinite().all()
    torch.testing.assert_close(relevance, networks.gradient_x_input(model, x, 1))


@pytest.mark.parametrize("form", OTHERS)
def test_a_signed_stabilizer_cures_both(form: str) -> None:
    model, x = study_network(), read("constant_areas.png")
    relevance = run(model, x, form, stabilizer=Signed(1e-6)).relevances[0]
    expected = networks.gradient_x_input(model, x, 1)
    assert relevance.isfinite().all()
    assert (relevance - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("form", NAMES)
def test_texture_is_finite_in_every_form(form: str) -> None:
    model, x = study_network(), read("textured.png")
    relevance = run(model, x, form).relevances[0]
    expected = networks.gradient_x_input(model, x, 1)
    assert relevance.isfinite().all()
    assert (relevance - expected).norm() < 1e-3 * expected.norm()
