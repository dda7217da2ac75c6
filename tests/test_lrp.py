"""Our LRP: whole-model oracles, Captum's arguments, and other parts of Captum."""

import captum.attr
import pytest
import torch
import torchvision.models
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import LRP, GammaRule, presets, stabilizers
from tests.helpers.layers import relative_error
from tests.helpers.networks import TwoInputs, build, cnn, gradient_x_input

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
RELU_MODELS = {
    "vgg16": {},
    "vgg16_bn": {},
    "resnet18": {},
    "squeezenet1_1": {},
    "densenet121": {},
    "googlenet": {"init_weights": False, "aux_logits": False},
}


@pytest.mark.parametrize("name", RELU_MODELS)
def test_lrp_0_is_gradient_x_input_on_relu_networks(name) -> None:
    make = getattr(torchvision.models, name)
    model = build(lambda: make(weights=None, **RELU_MODELS[name]))
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = gradient_x_input(model, x, target=3)
    assert relative_error(LRP(model, presets.zero()).attribute(x, target=3), expected) <= 1e-9
    other = LRP(model, presets.epsilon(0.25)).attribute(x, target=3)
    assert relative_error(other, expected) > 1e-4


@pytest.mark.parametrize("preset", ["zero", "epsilon_plus", "epsilon_alpha2_beta1"])
def test_conserves_the_score_without_biases(preset) -> None:
    model = build(cnn)
    for layer in model.modules():
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    rules = []
    for names, rule, parameters in getattr(presets, preset)()(model):
        exact = {"stabilizer": stabilizers.Identity()}
        if "epsilon" in parameters:
            exact["epsilon"] = 0.0
        rules.append((names, rule, parameters | exact))
    x = IMAGES.abs()
    relevance, delta = LRP(model, rules).attribute(x, target=1, return_convergence_delta=True)
    score = model(x)[:, 1]
    torch.testing.assert_close(relevance.sum((1, 2, 3)), score, rtol=1e-10, atol=0)
    assert delta.abs().max() <= 1e-10 * score.abs().max()


def test_delta_is_what_biases_and_epsilon_absorb() -> None:
    model = build(cnn)
    relevance, delta = LRP(model).attribute(IMAGES, target=1, return_convergence_delta=True)
    assert delta.shape == (2,)
    torch.testing.assert_close(delta, model(IMAGES)[:, 1] - relevance.sum((1, 2, 3)))
    assert delta.abs().min() > 1e-3


# Captum's arguments ------------------------------------------------------------------------------


def test_is_captums_lrp() -> None:
    explainer = LRP(build(cnn))
    assert isinstance(explainer, captum.attr.LRP)
    assert explainer.has_convergence_delta()
    assert explainer.multiplies_by_inputs


@pytest.mark.parametrize(
    ("target", "indices"),
    [
        (2, [2, 2]),
        ([1, 4], [1, 4]),
        (torch.tensor([1, 4]), [1, 4]),
        (torch.tensor([3]), [3, 3]),
        (torch.tensor(3), [3, 3]),
    ],
    ids=["int", "list", "tensor", "one-element tensor", "scalar tensor"],
)
def test_target_of_two_dimensional_output(target, indices) -> None:
    model = build(cnn)
    whole = LRP(model).attribute(IMAGES, target=target)
    for row, index in enumerate(indices):
        alone = LRP(model).attribute(IMAGES[row : row + 1], target=index)
        torch.testing.assert_close(whole[row : row + 1], alone)


@pytest.mark.parametrize("target", [(1, 2), [(0, 1), (1, 3)]], ids=["tuple", "list of tuples"])
def test_tuples_of_inputs_targets_of_three_dimensions_and_extra_arguments(target) -> None:
    model = build(TwoInputs)
    a, b = torch.rand(2, 4).double(), torch.rand(2, 3).double()
    left, right = LRP(model, presets.zero()).attribute((a, b), target, 2.0)
    a_, b_ = a.clone().requires_grad_(), b.clone().requires_grad_()
    rows = target if isinstance(target, list) else [target] * 2
    output = model(a_, b_, 2.0)
    score = sum(output[(i, *row)] for i, row in enumerate(rows))
    g_left, g_right = torch.autograd.grad(score, (a_, b_))
    torch.testing.assert_close(left, g_left * a)
    torch.testing.assert_close(right, g_right * b)


def test_target_none_for_one_score_per_sample() -> None:
    model = nn.Sequential(build(cnn), nn.Linear(6, 1).double(), nn.Flatten(0))
    assert LRP(model).attribute(IMAGES).shape == IMAGES.shape


def test_verbose_prints_the_rule_of_each_layer(capsys) -> None:
    model = build(cnn)
    LRP(model, [(["3"], GammaRule, {"gamma": 0.1})]).attribute(IMAGES, target=0, verbose=True)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "GammaRule(gamma=0.1" in printed[1]
    assert printed[1].endswith("on layer 3")


def stock_rules(model: nn.Module) -> None:
    model[0].rule = captum_rules.EpsilonRule(0.1)
    model[3].rule = captum_rules.GammaRule(0.3)
    model[6].rule = captum_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True)
    model[2].rule = captum_rules.EpsilonRule()


def test_a_stock_script_gives_the_same_after_changing_the_import() -> None:
    """Captum's own rules on the modules, one of them modifying weights on positive inputs."""
    relevances = []
    for explainer in (captum.attr.LRP, LRP):
        layers = build(cnn)[:7]
        stock_rules(layers)
        relevances.append(explainer(Flat(layers)).attribute(IMAGES.clone(), target=2))
    # Captum adds its 1e-9 in the pools as well, where we need none
    assert relative_error(relevances[1], relevances[0]) <= 1e-6


class Flat(nn.Module):
    """Flattens in its forward; stock Captum refuses nn.Flatten."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


class Halve(captum_rules.PropagationRule):
    """A user's own rule on Captum's base class."""

    STABILITY_FACTOR = 1e-6

    def _manipulate_weights(self, module, inputs, outputs) -> None:
        module.weight.data = module.weight.data * 0.5


def test_a_users_rule_on_captums_base_class_is_served() -> None:
    relevances = []
    for explainer in (captum.attr.LRP, LRP):
        model = build(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
        model[0].rule = Halve()
        model[1].rule = captum_rules.EpsilonRule()  # ours would give it 1e-6, Captum 1e-9
        x = torch.ones(2, 4).double()
        weight = model[0].weight.detach().clone()
        relevances.append(explainer(model).attribute(x, target=1))
        assert torch.equal(model[0].weight, weight)
    assert relative_error(relevances[1], relevances[0]) <= 1e-9


def test_rules_persist_from_call_to_call() -> None:
    model = build(cnn)
    model[0].rule = GammaRule(0.5)
    explainer = LRP(model)
    first = explainer.attribute(IMAGES, target=0)
    assert torch.equal(first, explainer.attribute(IMAGES, target=0))
    assert isinstance(model[0].rule, GammaRule)
    del model[0].rule
    assert not torch.equal(first, explainer.attribute(IMAGES, target=0))


# other parts of Captum ---------------------------------------------------------------------------


def test_noise_tunnel_infidelity_sensitivity_and_visualization() -> None:
    from captum.attr import NoiseTunnel
    from captum.attr import visualization as viz
    from captum.metrics import infidelity, sensitivity_max

    model = build(cnn, dtype=torch.float32)
    explainer = LRP(model, presets.epsilon(0.01))
    x = IMAGES.float()
    torch.manual_seed(0)
    smooth = NoiseTunnel(explainer).attribute(x, nt_samples=4, stdevs=0.1, target=1)
    assert smooth.shape == x.shape
    relevance = explainer.attribute(x, target=1)
    assert 0 < relative_error(smooth, relevance) < 1

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.05 * torch.randn_like(inputs)
        return noise, inputs - noise

    score = infidelity(model, perturb, x, relevance, target=1, n_perturb_samples=8)
    assert score.shape == (2,)
    wrong = infidelity(model, perturb, x, 100 * relevance, target=1, n_perturb_samples=8)
    assert (wrong > 10 * score).all()
    sensitivity = sensitivity_max(explainer.attribute, x, target=1, n_perturb_samples=3)
    assert sensitivity.shape == (2,)
    assert sensitivity.isfinite().all()
    figure, _ = viz.visualize_image_attr(
        relevance[0].permute(1, 2, 0).numpy(), sign="all", use_pyplot=False
    )
    assert figure.axes
