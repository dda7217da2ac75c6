"""The dense formulas of `reference` against zennit, and where zennit is known to differ."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from captum.attr import LRP as StockLRP
from captum.attr._utils.lrp_rules import GammaRule as StockGamma
from torch import Tensor, nn
from zennit import core as zennit_core
from zennit import rules as zennit

from tests.helpers import dense_formulas as reference
from tests.helpers.dense_formulas import additive, batch, dense_layer, identity, signed
from tests.helpers.readable import (
    POOLS_AND_NORMS,
    readable,
    relative_error,
    seeded,
    seeded_tensor,
    vector,
)


def zennit_relevance(hook: zennit_core.Hook, module: nn.Module, x: Tensor, R: Tensor) -> Tensor:
    """Relevance at the input of ``module``: the gradient that zennit's hook puts in its place."""
    x = x.clone().requires_grad_()
    handles = hook.register(module)
    try:
        (relevance,) = torch.autograd.grad(module(x), x, grad_outputs=R)
    finally:
        handles.remove()
    return relevance


def for_batches(s: reference.Stabilizer) -> reference.Stabilizer:
    """A stabilizer of one example's vector, as zennit calls it: on the whole output."""
    return lambda z: torch.stack([s(row.flatten()).reshape(row.shape) for row in z])


LOW, HIGH = -2.5, 3.5
PAIRS = {
    "zero": (reference.zero, zennit.Epsilon),
    "gamma": (
        partial(reference.gamma, gamma=0.25),
        lambda s: zennit.Gamma(gamma=0.25, stabilizer=s),
    ),
    "gamma=10": (
        partial(reference.gamma, gamma=10),
        lambda s: zennit.Gamma(gamma=10, stabilizer=s),
    ),
    "alpha2-beta1": (
        partial(reference.alpha_beta, alpha=2, beta=1),
        lambda s: zennit.AlphaBeta(alpha=2, beta=1, stabilizer=s),
    ),
    "alpha1-beta0": (
        partial(reference.alpha_beta, alpha=1, beta=0),
        lambda s: zennit.AlphaBeta(alpha=1, beta=0, stabilizer=s),
    ),
    "z_plus": (reference.z_plus, lambda s: zennit.ZPlus(stabilizer=s)),
    "z_box": (
        partial(reference.z_box, low=LOW, high=HIGH),
        lambda s: zennit.ZBox(low=LOW, high=HIGH, stabilizer=s),
    ),
    "w_square": (reference.w_square, lambda s: zennit.WSquare(stabilizer=s)),
    "flat": (reference.flat, lambda s: zennit.Flat(stabilizer=s)),
}
STABILIZERS = {
    "identity": identity,
    "signed": signed(0.3),
    "signed_relative": reference.signed_relative(0.1),
    "quadratic_mean": reference.quadratic_mean(0.1),
    "additive": additive(0.1),
    "clip": reference.clip(0.5),
}
COMPARED = {  # wide enough that no positive or negative part is empty
    "Linear": (partial(seeded, nn.Linear, 24, 6), (24,)),
    "Linear-tokens": (partial(seeded, nn.Linear, 24, 6), (3, 24)),
    "Conv2d": (partial(seeded, nn.Conv2d, 4, 3, 3, stride=2, padding=1), (4, 5, 5)),
    "Conv2d-groups": (partial(seeded, nn.Conv2d, 8, 4, 3, groups=2, dilation=2), (8, 6, 6)),
    "ConvTranspose2d": (partial(seeded, nn.ConvTranspose2d, 24, 4, 3, stride=2), (24, 3, 3)),
    **{
        f"Conv2d-{mode}": (
            partial(seeded, nn.Conv2d, 4, 3, 3, padding=1, padding_mode=mode),
            (4, 4, 4),
        )
        for mode in ("reflect", "replicate", "circular")
    },
}
pairs = pytest.mark.parametrize(("rule", "hook"), PAIRS.values(), ids=PAIRS)


IN_TURN = [  # every rule on every layer once, under one stabilizer after the other
    (pair, name, list(STABILIZERS)[(i + j) % len(STABILIZERS)])
    for i, pair in enumerate(PAIRS)
    for j, name in enumerate(COMPARED)
]


@pytest.mark.parametrize(("pair", "name", "stabilizer"), IN_TURN)
def test_agrees_with_zennit(pair: str, name: str, stabilizer: str) -> None:
    (rule, hook), (make, shape), s = PAIRS[pair], COMPARED[name], STABILIZERS[stabilizer]
    module = make()
    x = seeded_tensor(2, *shape, seed=3)
    R = seeded_tensor(*module(x).shape, seed=4)
    expected = zennit_relevance(hook(for_batches(s)), module, x, R)
    actual = batch(rule, dense_layer(module, shape), x, R, s)
    assert relative_error(actual, expected) < 1e-12


@pairs
@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose2d"])
def test_a_changed_weight_is_seen(rule, hook, name: str) -> None:
    make, shape = COMPARED[name]
    module = make()
    x = seeded_tensor(2, *shape, seed=3)
    R = seeded_tensor(*module(x).shape, seed=4)
    expected = zennit_relevance(hook(for_batches(signed(0.3))), module, x, R)
    layer = dense_layer(module, shape)
    W = layer.W.clone()
    k, j = layer.connections.nonzero()[0].tolist()
    W[k, j] += 0.5
    connections = layer.connections.clone()
    connections[k, j] = False  # what the flat rule sees
    changed = replace(layer, W=W, connections=connections)
    assert relative_error(batch(rule, changed, x, R, signed(0.3)), expected) > 1e-4


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("pair", [name for name in PAIRS if name not in ("z_box", "flat")])
def test_a_dropped_bias_is_seen(pair: str, name: str) -> None:
    rule, hook = PAIRS[pair]
    make, shape = COMPARED[name]
    module = make()
    x = seeded_tensor(2, *shape, seed=3)
    R = seeded_tensor(*module(x).shape, seed=4)
    expected = zennit_relevance(hook(for_batches(signed(0.3))), module, x, R)
    layer = dense_layer(module, shape)
    changed = replace(layer, b=torch.zeros_like(layer.b))
    assert relative_error(batch(rule, changed, x, R, signed(0.3)), expected) > 1e-3


@pytest.mark.parametrize(
    ("pair", "weight", "bias"),
    [
        ("z_plus", -1.0, -1.0),  # no positive part
        ("alpha2-beta1", -1.0, -1.0),
        ("alpha1-beta0", 1.0, 1.0),  # no negative part, which beta = 0 does not ask for
        ("zero", 0.0, 0.0),
        ("gamma", 0.0, 0.0),
    ],
)
def test_an_empty_sum_is_nan_in_zennit_and_zero_here(pair: str, weight: float, bias: float) -> None:
    rule, hook = PAIRS[pair]
    module = seeded(nn.Linear, 2, 1)
    nn.init.constant_(module.weight, weight)
    nn.init.constant_(module.bias, bias)
    x, R = vector(1, 2)[None], vector(3)[None]
    assert zennit_relevance(hook(identity), module, x, R).isnan().all()
    empty = batch(rule, dense_layer(module, (2,)), x, R, identity)
    assert empty.isfinite().all()
    # Any stabilizer that moves 0 settles it, to the same numbers.
    expected = zennit_relevance(hook(signed(1e-12)), module, x, R)
    torch.testing.assert_close(empty, expected, rtol=1e-11, atol=0)


def test_full_shape_bounds_agree_with_zennit() -> None:
    # Bounds that differ between positions, and padding that repeats the inputs they belong to.
    module = seeded(nn.Conv2d, 2, 3, 3, padding=1, padding_mode="reflect")
    x = seeded_tensor(2, 2, 4, 4, seed=3)
    R = seeded_tensor(*module(x).shape, seed=4)
    low, high = (-3 + seeded_tensor(1, 2, 4, 4).clamp(-1, 1), 3 + seeded_tensor(1, 2, 4, 4))
    expected = zennit_relevance(zennit.ZBox(low, high, stabilizer=signed(1e-3)), module, x, R)
    layer = dense_layer(module, (2, 4, 4))
    box = {"low": low.flatten(), "high": high.flatten()}
    actual = batch(reference.z_box, layer, x, R, signed(1e-3), **box)
    assert relative_error(actual, expected) < 1e-12


def test_default_epsilon_agrees_with_zennit() -> None:
    module = seeded(nn.Linear, 8, 6)
    x, R = seeded_tensor(2, 8, seed=3), seeded_tensor(2, 6, seed=4)
    expected = zennit_relevance(zennit.Epsilon(0.25), module, x, R)
    actual = batch(reference.epsilon, dense_layer(module, (8,)), x, R, identity, epsilon=0.25)
    assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize(("module_type", "args", "options", "shape"), POOLS_AND_NORMS, ids=readable)
def test_zero_rule_of_pools_and_norms_agrees_with_zennit(module_type, args, options, shape) -> None:
    module = seeded(module_type, *args, **options)
    x = seeded_tensor(2, *shape, seed=3)
    R = seeded_tensor(*module(x).shape, seed=4)
    expected = zennit_relevance(zennit.Epsilon(for_batches(signed(0.1))), module, x, R)
    actual = batch(reference.zero, dense_layer(module, shape), x, R, signed(0.1))
    assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize(
    ("s", "theirs"),
    [
        (signed(0.3), zennit_core.Stabilizer(0.3)),
        (reference.clip(0.3), zennit_core.Stabilizer(0.3, clip=True)),
        (reference.signed_relative(0.3), zennit_core.Stabilizer(0.3, norm_scale=True)),
    ],
    ids=["signed", "clip", "signed_relative"],
)
def test_stabilizers_agree_with_zennit(s, theirs) -> None:
    z = seeded_tensor(3, 2, 5)
    z[0, 0, 0] = 0
    torch.testing.assert_close(for_batches(s)(z), theirs(z), rtol=1e-14, atol=0)


# Against Captum, whose gamma rule is meant for inputs >= 0 and outputs > 0


@pytest.mark.parametrize("target", [0, 1, 2])
def test_unscaled_bias_agrees_with_captum(target: int) -> None:
    module = seeded(nn.Linear, 6, 3)
    nn.init.constant_(module.bias, 4)
    x = seeded_tensor(2, 6, seed=3).abs()
    z = module(x).detach()
    assert (z > 0).all()

    module.rule = StockGamma(gamma=0.25)
    expected = StockLRP(nn.Sequential(module)).attribute(x, target=target).detach()

    R = z * (torch.arange(3) == target)  # Captum starts from the score
    layer = dense_layer(module, (6,))
    captum = batch(reference.gamma, layer, x, R, signed(1e-9), gamma=0.25, bias="captum")
    scaled = batch(reference.gamma, layer, x, R, signed(1e-9), gamma=0.25)
    assert relative_error(captum, expected) < 1e-12
    assert relative_error(scaled, expected) > 1e-3
