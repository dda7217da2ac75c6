"""Short ways where numbers end, where passes share work, and where a model does the unusual."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    LayerLRP,
    ZBoxRule,
    ZPlusRule,
    presets,
    stabilizers,
)
from captum_lrp_stab.errors import NonFiniteRelevanceWarning, StabilizerWarning
from tests.helpers.networks import build
from tests.helpers.short_ways import IMAGES, PLENTY, ROWS, Normed, both, distance, everywhere, steps

# what is not finite -----------------------------------------------------------------------------


def pole() -> tuple[nn.Module, Any]:
    """A denominator of exactly 0 under a coefficient that is not."""
    model = steps(lambda s, z: z.tanh())
    with torch.no_grad():
        model.first.weight[0], model.first.bias[0] = 0, -0.25
    return model, everywhere(EpsilonRule, epsilon=0.25, signed=False)


def dead_pole() -> tuple[nn.Module, Any]:
    """The same, where a ReLU has made the coefficient 0."""
    model, rules = pole()
    model.step = lambda s, z: z.relu()
    return model, rules


def overflow() -> tuple[nn.Module, Any]:
    model = steps(lambda s, z: s.inner(z.relu()), torch.float32)
    with torch.no_grad():
        model.first.weight.mul_(1e20)
        model.inner.weight.mul_(1e25)
    return model, presets.epsilon(0.1)


def saturated() -> tuple[nn.Module, Any]:
    """Infinite inside, with a finite score."""
    model, rules = overflow()
    model.step = lambda s, z: s.inner(z.relu()).tanh() + z.clamp(-1, 1)
    return model, rules


def nothing() -> tuple[nn.Module, Any]:
    """Sums of nothing, without a stabilizer."""
    model = steps(lambda s, z: s.inner(z.relu() * 0))
    with torch.no_grad():
        model.inner.bias.zero_()
    return model, everywhere(AlphaBetaRule, stabilizer=stabilizers.Identity())


CASES = (pole, dead_pole, overflow, saturated, nothing)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_what_is_not_finite_is_so_in_the_same_places_with_the_same_words(case) -> None:
    model, rules = case()
    x = ROWS.to(model.first.weight.dtype)
    found, said, layers = [], [], []
    for optimize in (True, False):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            found.append(LRP(model, rules, optimize=optimize).attribute(x, 1))
        said.append([(w.category, str(w.message)) for w in seen])
        for at_input in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NonFiniteRelevanceWarning)
                explainer = LayerLRP(model, ["first", "last"], rules, optimize=optimize)
                layers.append(explainer.attribute(x, 1, attribute_to_layer_input=at_input))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0, equal_nan=True)
    assert said[0] == said[1]
    assert len(said[0]) == (case in (pole, overflow, saturated))
    for short, long in zip((*layers[0], *layers[1]), (*layers[2], *layers[3]), strict=True):
        torch.testing.assert_close(short, long, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_denominator_of_the_other_sign_that_would_overflow(dtype) -> None:
    """(2 + gamma) z is infinite, c / z is 0; the denominator and c z are neither."""
    model = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.LeakyReLU(0.1), nn.Linear(2, 1, bias=False)
    )
    large = 1.0 if dtype == torch.float16 else 5e33
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -300.0], [1.0, 1.0]]) * large)
        model[2].weight.copy_(torch.full((1, 2), 1e-3) / large)
    rules = [(["0"], GammaRule, {"gamma": 0.25, "stabilizer": 1e-3})]
    x = torch.tensor([[1.0, 130.0]], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabilizerWarning)
        short, long = both(model.eval().to(dtype), rules, x, 0)
    assert long.isfinite().all()
    assert distance(short, long) <= 1e-2


def box(model: nn.Module, low: Any, high: Any, x: Tensor) -> tuple[float, float]:
    """Distance from double precision, with short ways and without."""
    rules = [(["0"], ZBoxRule, {"low": low, "high": high})]
    exact = LRP(model.double(), rules, optimize=False).attribute(x.double(), 1)
    short, long = both(model.float(), rules, x)
    return distance(short, exact), distance(long, exact)


def pixels() -> Any:
    return build(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    )


@pytest.mark.parametrize("bias", [0.1, 10.0, 1000.0])
def test_the_box_beside_a_bias(bias) -> None:
    """At 1000, added and taken away again, it would cost the last digits of a small sum."""
    model = pixels()
    with torch.no_grad():
        model[0].bias.fill_(bias)
    short, long = box(model, -1.0, 1.0, IMAGES.float().clamp(-1, 1))
    assert long <= 1e-6
    assert short <= 1e-6


@pytest.mark.parametrize("bias", [0.1, 10.0])
def test_a_black_border_at_the_edge_of_the_box(bias) -> None:
    """Of a filter without negative weights the denominators are exactly 0: a sum of nothing."""
    model = pixels()
    low = torch.tensor([-2.1179, -2.0357, -1.8044]).reshape(1, 3, 1, 1)
    x = low.expand(2, 3, 8, 8).clone()
    x[:, :, :3] = IMAGES[:, :, :3].float().clamp(-1, 1)
    with torch.no_grad():
        model[0].weight[0].abs_()
        model[0].bias.fill_(bias)
    short, long = box(model, low, torch.full((1, 3, 1, 1), 2.64), x)
    assert long <= 1e-6
    assert short <= 1e-6


# several passes ---------------------------------------------------------------------------------


def distances(model: nn.Module, rules: Any, x: Tensor, targets: Any) -> list[float]:
    found = LRP(model, rules, cache_bytes=PLENTY).attribute_many(x, list(targets))
    alone = [LRP(model, rules, optimize=False).attribute(x, target) for target in targets]
    return [distance(a, b) for a, b in zip(found, alone, strict=True)]


RULES = {
    "epsilon": (EpsilonRule, {"epsilon": 0.1}),
    "gamma": (GammaRule, {}),
    "alpha-beta": (AlphaBetaRule, {}),
    "mean square": (ZPlusRule, {"stabilizer": stabilizers.RootMeanSquare(0.1)}),
}


@pytest.mark.parametrize("name", RULES)
def test_several_targets(name) -> None:
    rule, parameters = RULES[name]
    model = build(Normed)
    rules = [(["conv", "second", "head"], rule, parameters)]
    assert max(distances(model, rules, IMAGES, (0, 1, 2, 1))) <= 1e-13


def test_several_stabilizers() -> None:
    model, several = build(Normed), (1e-3, stabilizers.Clip(0.1), stabilizers.RoundingAware())
    names = ["conv", "second", "head"]
    (found,) = LRP(model, [(names, GammaRule, {})]).attribute_many(IMAGES, [1], stabilizers=several)
    for one, relevance in zip(several, found, strict=True):
        rules = [(names, GammaRule, {"stabilizer": one})]
        assert distance(relevance, LRP(model, rules, optimize=False).attribute(IMAGES, 1)) <= 1e-13


class Heads(nn.Module):
    """One output reads the rectified values, the other the pre-activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return torch.cat([self.one(z.relu()), self.other(z)], 1)


@pytest.mark.parametrize("targets", [(1, 0), (0, 1)])
@pytest.mark.parametrize("name", ["epsilon", "gamma", "alpha-beta"])
def test_targets_that_read_different_values(name, targets) -> None:
    """Factors of the rectified z do not serve the target that reads z."""
    rule, parameters = RULES[name]
    rules = everywhere(rule, "first", **parameters)
    assert max(distances(build(Heads), rules, ROWS, targets)) <= 1e-13


class TwoNorms(nn.Module):
    """A layer that is read through two batch norms, or one and as it is."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.a, self.b = nn.BatchNorm2d(4), nn.Identity() if bare else nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.a(y).relu() + self.b(y).relu()).mean((2, 3)))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["epsilon", "gamma"])
def test_one_target_through_two_norms(name, bare) -> None:
    rule, parameters = RULES[name]
    rules = [(["conv"], rule, parameters)]
    short, long = both(build(lambda: TwoNorms(bare)), rules, IMAGES)
    assert distance(short, long) <= 1e-13


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["epsilon", "gamma"])
def test_several_targets_through_two_norms(name, bare) -> None:
    rule, parameters = RULES[name]
    rules = [(["conv"], rule, parameters)]
    assert max(distances(build(lambda: TwoNorms(bare)), rules, IMAGES, (0, 1))) <= 1e-13


# models that do the unusual ---------------------------------------------------------------------


def slope(s: nn.Module, z: Tensor) -> Tensor:
    y = s.inner(z.relu())
    (gradient,) = torch.autograd.grad(y.sum(), z, retain_graph=True)
    return y.relu() + gradient


def test_a_model_with_a_backward_pass_of_its_own() -> None:
    short, long = both(steps(slope), presets.epsilon(0.1), ROWS)
    assert distance(short, long) <= 1e-13


def test_hooks_of_the_user_on_a_pre_activation_are_not_called() -> None:
    def step(s: nn.Module, z: Tensor) -> Tensor:
        z.register_hook(lambda c: c + 0.5)  # not 0 where the relu is
        return z.relu()

    for rule in (EpsilonRule, GammaRule, AlphaBetaRule):
        short, long = both(steps(step), everywhere(rule), ROWS)
        plain, _ = both(steps(lambda s, z: z.relu()), everywhere(rule), ROWS)
        assert torch.equal(short, plain)
        assert distance(short, long) <= 1e-13


def test_a_custom_function_that_reads_a_pre_activation() -> None:
    short, long = both(steps(lambda s, z: z.relu() + Plain.apply(z)), presets.epsilon(0.1), ROWS)
    assert distance(short, long) <= 1e-13


class Plain(torch.autograd.Function):
    """Hands on what it gets."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return upstream[0]


def test_a_stabilizer_put_in_the_place_of_another() -> None:
    model = steps(lambda s, z: s.inner(z.relu()))
    model.inner.rule = rule = GammaRule()
    rule.stabilizer = stabilizers.Clip(0.5)
    short, long = both(model, None, ROWS)
    assert distance(short, long) <= 1e-13


def test_an_empty_batch_and_one_sample_without_a_batch_in_it() -> None:
    assert both(build(Normed), presets.epsilon(), IMAGES[:0])[0].shape == (0, 3, 8, 8)
    model = steps(lambda s, z: torch.stack([s.inner(row).relu() for row in z]))
    short, long = both(model, everywhere(GammaRule), ROWS)
    assert distance(short, long) <= 1e-13


def test_autocast() -> None:
    model = build(Normed, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        short, long = both(model, presets.epsilon_plus(), IMAGES.float())
    assert distance(short, long) <= 1e-2
