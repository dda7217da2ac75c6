"""Complex values inside a network: each number has the relevance of both its parts.

The oracles: gradient x input of ``torch.view_as_real`` on ReLU networks without biases, the sum of
relevance, and the same network with real weights, two features for each complex one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    LayerLRP,
    ZBoxRule,
    ZeroRule,
    compare,
    diagnose,
    plan,
    presets,
)
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.tensors import complex_values
from tests.helpers.agreement import drawn
from tests.helpers.complex_networks import (
    NETWORKS,
    Weights,
    as_complex,
    drawn_model,
    in_float64,
    linear,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

EXACT = 1e-12
Z = presets.zero()


@pytest.fixture(params=NETWORKS)
def network(request: Any) -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS[request.param]
    return in_float64(make), drawn(*shape)


def by_gradient(model: nn.Module, module: nn.Module, x: Tensor) -> Tensor:
    """Gradient x value of a module's output, both as pairs, summed over the pair."""
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(x.clone().requires_grad_())[:, 0].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    if not gradient.is_complex():
        return (gradient * kept[0]).detach()
    pairs = torch.view_as_real(gradient.resolve_conj()) * torch.view_as_real(kept[0].resolve_conj())
    return pairs.sum(-1).detach()


def test_modules_have_gradient_x_value_of_the_pair(network) -> None:
    model, x = network
    for name, module in list(model.named_children()):
        expected = by_gradient(model, module, x)
        for optimize in (True, False):
            actual = LayerLRP(model, name, Z, optimize=optimize).attribute(x, target=0)
            assert actual.dtype is torch.float64 and actual.shape == expected.shape
            assert relative_error(actual, expected) <= EXACT
    whole = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(whole)[:, 0].sum(), whole)
    assert relative_error(LRP(model, Z, strict=True).attribute(x, target=0), gradient * x) <= EXACT


def test_sums_are_conserved_from_operation_to_operation() -> None:
    model, x = in_float64(Weights), drawn(2, 4)
    names = [row.name for row in plan(model, x, Z).rows]
    assert {"view_as_complex_0", "layer", "view_as_real_0"} <= set(names)
    for name in names:
        R = LayerLRP(model, name, Z).attribute(x, target=0)
        torch.testing.assert_close(R.flatten(1).sum(1), model(x)[:, 0].detach())


@pytest.mark.parametrize("form", forms.NAMES)
def test_diagnose_and_its_ledger(network, form) -> None:
    model, x = network
    found = diagnose(model, x, 0, presets.epsilon(1e-12), form=form)
    assert found.verdict == "stable"
    assert found.ledger.closing <= 1e-9
    expected = LRP(model, presets.epsilon(1e-12)).attribute(x, target=0)
    assert relative_error(found.relevances[0], expected) <= 1e-9


@pytest.mark.parametrize("reference", ["float64", "modified_forward"])
def test_compare(network, reference) -> None:
    """Nothing warns that an imaginary part is lost, and nothing is cast to real numbers."""
    model, x = network
    model = model._apply(lambda t: complex_values.convert(t, torch.float32))
    found = compare(model, x.float(), 0, presets.epsilon(), reference)
    assert found.verdict == "equal", found
    assert found.dtype == "float32"


def test_compare_with_captum_and_zennit() -> None:
    model, x = in_float64(Weights), drawn(2, 4)
    for reference in ("captum", "captum_driver"):
        found = compare(model, x, 0, presets.epsilon(), reference)
        assert found.verdict == "equal", found
    with pytest.raises(RuleError, match=r"'layer': its weights are complex numbers, .* zennit"):
        compare(model, x, 0, presets.epsilon(), "zennit")


# the same with real weights ----------------------------------------------------------------------


def real_weight(weight: Tensor, transposed: bool = False) -> Tensor:
    """Two rows and two columns for each complex weight, one by one."""
    rows, columns, *kernel = weight.shape
    real = torch.zeros(2 * rows, 2 * columns, *kernel, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            re, im = weight[row, column].real, weight[row, column].imag
            i, j = 2 * row, 2 * column
            real[i, j], real[i + 1, j + 1] = re, re
            real[i + 1, j], real[i, j + 1] = (-im, im) if transposed else (im, -im)
    return real


class OnPairs(nn.Module):
    """What a complex layer computes, with real weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        transposed = isinstance(layer, nn.ConvTranspose1d)
        if isinstance(layer, nn.Linear):
            self.layer = nn.Linear(2 * layer.in_features, 2 * layer.out_features)
        else:
            sizes = 2 * layer.in_channels, 2 * layer.out_channels, layer.kernel_size
            options = {"groups": layer.groups, "stride": layer.stride, "padding": layer.padding}
            self.layer = type(layer)(*sizes, **options)
        self.layer.weight = nn.Parameter(real_weight(layer.weight.detach(), transposed))
        bias = layer.bias.detach()
        self.layer.bias = nn.Parameter(torch.stack([bias.real, bias.imag], 1).flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class AsPairs(nn.Module):
    """The complex layer itself, from real features to real features."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.dim = 2 if isinstance(layer, nn.Linear) else 1

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(self.dim, (-1, 2)).movedim(self.dim + 1, -1)
        z = self.layer(torch.view_as_complex(pairs.contiguous()))
        return torch.view_as_real(z).movedim(-1, self.dim + 1).flatten(self.dim, self.dim + 1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 5, dtype=torch.cdouble), (2, 2, 6)),
    "convolution": (
        lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2, dtype=torch.cdouble),
        (2, 8, 5),
    ),
    "transposed": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, dtype=torch.cdouble),
        (2, 8, 5),
    ),
}
RULES = {
    "zero": (ZeroRule, {}),
    "epsilon": (EpsilonRule, {"epsilon": 0.1}),
    "gamma": (GammaRule, {}),
    "alpha-beta": (AlphaBetaRule, {}),
    "flat": (FlatRule, {}),
    "box": (ZBoxRule, {"low": -4.0, "high": 4.0}),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_rule_is_that_of_the_real_map_on_pairs(layer, rule) -> None:
    make, shape = LAYERS[layer]
    made = drawn_model(make)
    x, results = drawn(*shape), []
    for inner in (AsPairs(made), OnPairs(made)):
        model = nn.Sequential(nn.Identity(), inner, nn.ReLU(), nn.Flatten()).eval()
        rules = [(["1.layer"], *RULES[rule])]
        found = [LRP(model, rules).attribute(x, target=4)]
        found.append(LRP(model, rules, optimize=False).attribute(x, target=4))
        for form in forms.NAMES if rule not in ("flat", "box") else ("gradient", "relevance"):
            found.append(diagnose(model, x, 4, rules, form=form).relevances[0])
        results.append(found)
    for actual, expected in zip(*results, strict=True):
        assert expected.any()
        assert relative_error(actual, expected) <= EXACT


def test_below_a_rule_that_is_not_proportional() -> None:
    """There complex values carry relevance, a part in each part."""
    complex_model, x = in_float64(Weights), drawn(2, 4)
    model = nn.Sequential(complex_model, nn.ReLU(), linear(2, 2)).double().eval()
    rules = [(["2"], FlatRule, {}), (["0.body", "0.layer", "0.head"], ZeroRule, {})]
    R = LRP(model, rules).attribute(x, target=0)
    torch.testing.assert_close(R.sum(1), model(x)[:, 0].detach())
    R = LayerLRP(model, "0.layer", rules).attribute(x, target=0)
    torch.testing.assert_close(R.sum(1), model(x)[:, 0].detach())


def test_activations_of_complex_numbers() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = linear(4, 6), linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(as_complex(self.body(x))) * torch.exp(1j * torch.arange(3.0).to(x))
            z = z.mT.conj().mH + F.relu(z.abs()) * z / z.abs()
            return self.head(torch.cat([z.real, z.imag], -1))

    model, x = build(Model), drawn(2, 4)
    R, delta = LRP(model, Z).attribute(x, target=0, return_convergence_delta=True)
    torch.testing.assert_close(delta, torch.zeros_like(delta))
    for form in forms.NAMES:
        found = diagnose(model, x, 0, presets.epsilon(1e-13), form=form)
        assert relative_error(found.relevances[0], R) <= 1e-9
        assert found.ledger.closing <= 1e-9
