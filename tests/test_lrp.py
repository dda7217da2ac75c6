"""Our LRP: whole-model oracles, Captum's arguments, and what the model may contain."""

from contextlib import nullcontext

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from captum.attr._utils import lrp_rules as captum_rules
from layers import relative_error
from networks import Residual, TwoInputs, build, cnn, gradient_x_input
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZPlusRule,
    plan,
    presets,
    stabilizers,
)
from captum_lrp_stab.errors import StabilizerWarning

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


# what a model may contain ------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1e-6, stabilizers.RootMeanSquare(0.1), lambda z: z + 0.3], ids=repr)
def test_in_place_operations_change_nothing(s) -> None:
    relevances = []
    for inplace in (False, True):
        model = build(lambda inplace=inplace: Residual(inplace))
        rules = [(["first", "shared", "last"], EpsilonRule, {"epsilon": 0.0, "stabilizer": s})]
        relevances.append(LRP(model, rules).attribute(IMAGES, target=1))
    assert torch.equal(*relevances)


@pytest.mark.parametrize(
    "write",
    [
        lambda z: z.add_(1.0),
        lambda z: z.mul_(2.0),
        lambda z: F.leaky_relu(z, 0.1, inplace=True),
        lambda z: F.hardswish(z, inplace=True),
        lambda z: F.relu6(z, inplace=True),
        lambda z: z.clamp_(-0.5, 0.5),
        lambda z: F.silu(z, True),
        lambda z: z.tanh_(),
    ],
    ids="add_ mul_ leaky_relu hardswish relu6 clamp_ silu tanh_".split(),
)
def test_writing_over_a_pre_activation_changes_nothing(write) -> None:
    class Writes(nn.Module):
        def __init__(self, copy: bool) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)
            self.copy = copy

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            z = write(z.clone() if self.copy else z)
            return self.second(z)

    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double() * 3
    rules = [(["first", "second"], GammaRule, {"gamma": 0.4})]
    copied, written = (
        LRP(build(lambda copy=copy: Writes(copy)), rules).attribute(x, target=1)
        for copy in (True, False)
    )
    torch.testing.assert_close(written, copied, rtol=1e-12, atol=1e-14)


def test_an_in_place_activation_is_seen_through_every_alias() -> None:
    """Pre-activation residual networks read the tensor their in-place ReLU wrote to."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            return self.second(F.hardswish(z, inplace=True)) + z

    model = build(Shortcut)
    x = torch.randn(3, 4).double()
    relevance, delta = LRP(model, presets.zero()).attribute(x, 1, return_convergence_delta=True)
    with torch.no_grad():
        model.first.bias.zero_()
        model.second.bias.zero_()
    relevance, delta = LRP(model, presets.zero()).attribute(x, 1, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12 * relevance.abs().max()


def test_functional_and_module_spelling_agree() -> None:
    modules = build(cnn, seed=4)

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = modules

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = modules[0], modules[3], modules[6]
            x = torch.relu(torch.conv2d(x, a.weight, a.bias, padding=1))
            x = F.conv2d(F.max_pool2d(x, kernel_size=2), b.weight, bias=b.bias).relu()
            x = x.mean((2, 3), keepdim=True)
            return F.conv2d(input=x, weight=c.weight, bias=c.bias)[..., 0, 0]

    expected = LRP(modules).attribute(IMAGES, target=2)
    assert relative_error(LRP(Functional()).attribute(IMAGES, target=2), expected) <= 1e-12
    rows = plan(Functional(), IMAGES).rows
    assert [row.name for row in rows] == ["conv2d_0", "conv2d_1", "conv2d_2"]


@pytest.mark.parametrize(
    "activation",
    [
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Tanh(),
        nn.ELU(),
        nn.ReLU6(),
        nn.Mish(),
    ],
    ids=repr,
)
def test_activations_pass_relevance_unchanged(activation) -> None:
    model = nn.Sequential(nn.Linear(5, 6, bias=False), activation, nn.Linear(6, 1, bias=False))
    model = build(lambda: model).double()
    x = 4 * torch.randn(3, 5, generator=torch.Generator().manual_seed(2)).double()
    x[0] = 0.0
    relevance, delta = LRP(model, presets.zero()).attribute(x, 0, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12
    assert relevance[0].abs().max() == 0


class Total(nn.Module):
    """One score per sample."""

    def forward(self, z: Tensor) -> Tensor:
        return z.flatten(1).sum(1)


MERGED = {
    "conv2d": (lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], (3, 6, 6)),
    "conv2d-no-bias": (
        lambda: [nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)],
        (4, 6, 6),
    ),
    "transposed": (
        lambda: [nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6)],
        (4, 3, 3),
    ),
    "conv1d": (lambda: [nn.Conv1d(3, 4, 3, padding="same"), nn.BatchNorm1d(4)], (3, 7)),
    "linear": (lambda: [nn.Linear(5, 4), nn.BatchNorm1d(4)], (5,)),
}


@pytest.mark.parametrize("rule", [GammaRule, ZPlusRule, EpsilonRule, WSquareRule])
@pytest.mark.parametrize("name", MERGED)
def test_batch_norm_is_merged_with_the_layer_before_it(name, rule) -> None:
    """The oracle: one layer with the weights w s and the bias b s + t, written out."""
    make, shape = MERGED[name]
    layer, norm = build(lambda: nn.Sequential(*make()))
    pair = nn.Sequential(layer, norm, Total())
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    one = build(lambda: make()[0])
    if isinstance(layer, nn.ConvTranspose2d):  # weight is (in, out / groups, ...)
        halves = zip(layer.weight.chunk(2), scale.chunk(2), strict=True)
        weight = torch.cat([w * s.reshape(1, -1, 1, 1) for w, s in halves])
    else:
        weight = layer.weight * scale.reshape(-1, *(1,) * (layer.weight.dim() - 1))
    one.weight = nn.Parameter(weight.detach())
    one.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    merged = nn.Sequential(one, Total())
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5)).double()
    rules = [(["0"], rule, {})]
    actual = LRP(pair, rules).attribute(x)
    assert relative_error(actual, LRP(merged, rules).attribute(x)) <= 1e-11
    assert plan(pair, x, rules).rows[0].batch_norm == "1"
    apart = LRP(pair, rules, merge_batch_norm=False).attribute(x)
    assert relative_error(actual, apart) > 1e-6


def test_padding_child_belongs_to_its_convolution() -> None:
    """EfficientNet-Lite's convolutions: the zB rule sees the unpadded input."""

    class SamePad(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3, stride=2)
            self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(self.static_padding(x), self.weight, self.bias)

    inner = build(SamePad)
    model = nn.Sequential(inner, nn.Flatten())
    plain = build(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1))
    plain.load_state_dict(inner.state_dict())

    class ShiftedPlain(nn.Module):
        """The same by a symmetric padding: the picture shifted by one, its first row cut off."""

        def __init__(self) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(x)[:, :, 1:, 1:].flatten(1)

    x = torch.rand(1, 3, 8, 8).double()
    shifted = F.pad(x, (1, 0, 1, 0), value=0.5)
    box = {"low": -0.25, "high": 1.25}
    actual = LRP(model, [(["0"], ZBoxRule, box)]).attribute(x, target=3)
    expected = LRP(ShiftedPlain(), [(["plain"], ZBoxRule, box)]).attribute(shifted, target=3)
    assert relative_error(actual, expected[:, :, 1:, 1:]) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite_and_near_float64(dtype) -> None:
    model = build(Residual)
    expected_warning = pytest.warns(StabilizerWarning) if dtype == torch.float16 else nullcontext()
    with expected_warning:
        relevance = LRP(build(Residual, dtype=dtype)).attribute(IMAGES.to(dtype), target=1)
    assert relevance.dtype == dtype
    expected = LRP(model).attribute(IMAGES, target=1)
    assert relative_error(relevance, expected) <= 200 * torch.finfo(dtype).eps


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
