"""The oracle is itself judged: worked examples, conservation, and zennit's rules."""

import ast
import inspect
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import dense_formulas as reference
from tests.helpers.dense_formulas import (
    Layer,
    additive,
    batch,
    dense,
    dense_layer,
    identity,
    signed,
)
from tests.helpers.readable import (
    POOLS_AND_NORMS,
    readable,
    seeded,
    seeded_tensor,
    vector,
)

# Helpers


def layer_of(W: list[list[float]], b: list[float] | None = None) -> Layer:
    W_ = torch.tensor(W, dtype=torch.float64)
    b_ = torch.zeros(len(W), dtype=torch.float64) if b is None else vector(*b)
    return Layer(W_, b_, torch.ones_like(W_, dtype=torch.bool))


def close(actual: Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual, vector(*expected), rtol=1e-14, atol=1e-15)


# The oracle stands alone


def test_stands_alone() -> None:
    tree = ast.parse(inspect.getsource(reference))
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {
        *("collections.abc", "copy", "dataclasses", "math", "typing"),
        *("numpy", "torch"),
    }
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"autograd", "backward", "grad", "functional", "func"}


# Dense matrices

CONVOLUTIONS = [
    (nn.Conv1d, (2, 3, 3), {"stride": 2, "padding": 1}, (2, 7)),
    (nn.Conv1d, (4, 2, 2), {"dilation": 3, "groups": 2, "bias": False}, (4, 8)),
    (nn.Conv2d, (2, 3, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}, (2, 6, 7)),
    (nn.Conv2d, (4, 4, 3), {"groups": 4, "padding": "same"}, (4, 4, 4)),
    (nn.Conv2d, (2, 2, 2), {"padding": "valid"}, (2, 3, 4)),
    (nn.Conv3d, (2, 2, 2), {"stride": 2, "padding": 1}, (2, 3, 4, 3)),
    (nn.ConvTranspose1d, (2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}, (2, 4)),
    (nn.ConvTranspose2d, (4, 4, 3), {"stride": 2, "dilation": 2, "groups": 2}, (4, 3, 2)),
    (nn.ConvTranspose3d, (2, 1, 2), {"stride": 2, "bias": False}, (2, 2, 3, 2)),
]
PADDED = [
    (convolution, (2, 3, 4), {"padding_mode": mode, "padding": padding, **options}, shape)
    for mode in ("reflect", "replicate", "circular")
    for convolution, shape, padding, options in (
        (nn.Conv1d, (2, 6), 2, {"stride": 2}),
        (nn.Conv2d, (2, 4, 5), (2, 1), {"dilation": (1, 2)} if mode == "reflect" else {}),
        (nn.Conv2d, (2, 4, 4), "same", {}),
        (nn.Conv2d, (2, 4, 4), "valid", {}),
        (nn.Conv3d, (2, 3, 4, 3), (1, 2, 1), {}),
    )
]
LINEAR = [
    (nn.Linear, (5, 3), {}, (5,)),
    (nn.Linear, (5, 3), {"bias": False}, (2, 5)),
]
AFFINE = LINEAR + CONVOLUTIONS + PADDED + POOLS_AND_NORMS


affine_modules = pytest.mark.parametrize(
    ("module_type", "args", "options", "shape"), AFFINE, ids=readable
)


@affine_modules
def test_dense_reproduces_module(module_type, args, options, shape) -> None:
    module = seeded(module_type, *args, **options)
    x = seeded_tensor(3, *shape)
    expected = module(x).flatten(1)

    W, b = dense(module, shape)
    torch.testing.assert_close(x.flatten(1) @ W.T + b, expected, rtol=1e-12, atol=1e-13)

    layer = dense_layer(module, shape)
    for x_i, expected_i in zip(x.flatten(1), expected, strict=True):
        z = layer.contributions(x_i).sum(1) + layer.b
        torch.testing.assert_close(z, expected_i, rtol=1e-12, atol=1e-13)

    repeats = options.get("padding_mode", "zeros") != "zeros"
    assert (layer.P is not None) == repeats
    assert not (layer.W[~layer.connections]).any()


def test_dense_matches_weights_exactly() -> None:
    linear = nn.Linear(3, 2)  # float32: what is judged is exactly these numbers
    W, b = dense(linear, (3,))
    assert W.dtype == b.dtype == torch.float64
    assert torch.equal(W, linear.weight.detach().double())
    assert torch.equal(b, linear.bias.detach().double())


@affine_modules
def test_probing_leaves_module_as_it_is(module_type, args, options, shape) -> None:
    module = seeded(module_type, *args, **options).float().train()
    before = {name: (v, v.clone()) for name, v in module.state_dict(keep_vars=True).items()}
    settings = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    dense(module, shape)
    for name, v in module.state_dict(keep_vars=True).items():
        kept, value = before[name]
        assert v is kept and torch.equal(v, value)
        assert v.requires_grad == isinstance(v, nn.Parameter)
    assert settings == {k: v for k, v in vars(module).items() if not k.startswith("_")}
    assert module.training


@pytest.mark.parametrize("module", [nn.ReLU(), nn.MaxPool1d(2)], ids=str)
def test_dense_refuses_what_is_not_affine(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="not affine"):
        dense(module, (1, 6))


def test_connections_count_weights_that_are_zero() -> None:
    conv = nn.Conv1d(1, 1, 3, padding=1)
    nn.init.zeros_(conv.weight)
    connections = dense_layer(conv, (1, 4)).connections
    assert connections.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("mode", "source"),
    [("reflect", [1, 0, 1, 2, 1]), ("replicate", [0, 0, 1, 2, 2]), ("circular", [2, 0, 1, 2, 0])],
)
def test_padding_copies(mode: str, source: list[int]) -> None:
    conv = seeded(nn.Conv1d, 1, 1, 3, padding=1, padding_mode=mode)
    layer = dense_layer(conv, (1, 3))
    assert layer.P is not None
    assert layer.P.argmax(1).tolist() == source
    assert layer.connections.sum(1).tolist() == [3, 3, 3]
    close(layer.pad(vector(5, 6, 7)), *(5 + i for i in source))
    counts = [source.count(i) for i in range(3)]
    close(layer.fold(torch.ones(5, dtype=torch.float64)), *counts)


# Worked examples. Two inputs x = (1, -2); outputs with weights (3, 1) and (-1, 2), biases 1 and -1:
# contributions (3, -2) and (-1, -4), z = (2, -6). R = (4, 12).
W = [[3.0, 1.0], [-1.0, 2.0]]
B = [1.0, -1.0]
X, R = vector(1, -2), vector(4, 12)
EXAMPLE = layer_of(W, B)


def test_zero_by_hand() -> None:
    # 3/2*4 + (-1)/(-6)*12 = 6 + 2;  -2/2*4 + (-4)/(-6)*12 = -4 + 8
    close(reference.zero(EXAMPLE, X, R, identity), 8, 4)
    # signed(2): denominators 4 and -8: 3 + 1.5;  -2 + 6
    close(reference.zero(EXAMPLE, X, R, signed(2)), 4.5, 4)


def test_epsilon_by_hand() -> None:
    close(reference.epsilon(EXAMPLE, X, R, identity, epsilon=2), 4.5, 4)
    # z + 2 = (4, -4): 3 + 3;  -2 + 12
    close(reference.epsilon(EXAMPLE, X, R, identity, epsilon=2, signed=False), 6, 10)
    # then stabilized: signed(4) makes (8, -8): 1.5 + 1.5;  -1 + 6
    close(reference.epsilon(EXAMPLE, X, R, signed(4), epsilon=2, signed=False), 3, 5)
    # sign(0) = +1: one input 1, weight 1, bias -1: z = 0, denominator 2
    close(reference.epsilon(layer_of([[1]], [-1]), vector(1), vector(6), identity, epsilon=2), 3)


def test_gamma_by_hand() -> None:
    # Output 1, z = 2 > 0, gamma 1: contributions 3 + 3, -2, bias 1 + 1, sum 6: 6/6*4, -2/6*4.
    # Output 2, z = -6 < 0: contributions -1 - 1, -4 - 4, bias -1 - 1, sum -12: 2, 8.
    close(reference.gamma(EXAMPLE, X, R, identity, gamma=1), 4 + 2, -4 / 3 + 8)
    # The bias as it is: sums 6 - 2 + 1 = 5 and -2 - 8 - 1 = -11.
    close(
        reference.gamma(EXAMPLE, X, R, identity, gamma=1, bias="captum"),
        24 / 5 + 24 / 11,
        -8 / 5 + 96 / 11,
    )
    # gamma = 0 is the zero rule.
    close(reference.gamma(EXAMPLE, X, R, identity, gamma=0), 8, 4)
    # z = 0 hands nothing down: one input 1, weight 1, bias -1.
    close(reference.gamma(layer_of([[1]], [-1]), vector(1), vector(6), identity, gamma=1), 0)


def test_alpha_beta_by_hand() -> None:
    # Output 1: p = (3, 0) + 1 = 4, n = (0, -2) = -2.  Output 2: p = 0, n = (-1, -4) - 1 = -6.
    # Positive parts: 3/4*4, 0 and 0, 0.  Negative: 0, -2/-2*4 = 4 and -1/-6*12 = 2, -4/-6*12 = 8.
    close(reference.z_plus(EXAMPLE, X, R, identity), 3, 0)
    close(reference.alpha_beta(EXAMPLE, X, R, identity, alpha=1, beta=0), 3, 0)
    close(reference.alpha_beta(EXAMPLE, X, R, identity, alpha=2, beta=1), 6 - 2, -4 - 8)


def test_z_box_by_hand() -> None:
    # Bounds -2 and 2. w+ = (3, 1), (0, 2); w- = (0, 0), (-1, 0).
    # Output 1: 3 + 6 = 9, -2 + 2 = 0.  Output 2: -1 + 2 = 1, -4 + 4 = 0.
    close(reference.z_box(EXAMPLE, X, R, identity, low=-2.0, high=2.0), 4 + 12, 0)
    # Bounds (-1, -3) and (2, 1): 3 + 3 = 6, -2 + 3 = 1, sum 7;  -1 + 2 = 1, -4 + 6 = 2, sum 3.
    close(
        reference.z_box(EXAMPLE, X, R, identity, low=vector(-1, -3), high=vector(2, 1)),
        24 / 7 + 12 / 3,
        4 / 7 + 24 / 3,
    )


def test_w_square_and_flat_by_hand() -> None:
    # Squares (9, 1) + 1 = 11 and (1, 4) + 1 = 6.
    close(reference.w_square(EXAMPLE, X, R, identity), 36 / 11 + 2, 4 / 11 + 8)
    close(reference.flat(EXAMPLE, X, R, identity), 2 + 6, 2 + 6)
    # A missing connection, and a weight of value 0 that is a connection.
    sparse = replace(layer_of([[0, 5], [7, 0]]), connections=torch.tensor([[1, 1], [1, 0]]).bool())
    close(reference.flat(sparse, X, R, identity), 2 + 12, 2)


def test_pass_through_by_hand() -> None:
    close(reference.pass_through(None, X, R, identity), 4, 12)


def test_average_pool_and_batch_norm_by_hand() -> None:
    # Pool of two: weights 1/2. x = (1, -3), z = -1, R = 6: zero -3, 9; positive part all to 1.
    pool = dense_layer(nn.AvgPool1d(2), (1, 2))
    x, R = vector(1, -3), vector(6)
    close(reference.zero(pool, x, R, identity), -3, 9)
    close(reference.z_plus(pool, x, R, identity), 6, 0)
    close(reference.gamma(pool, x, R, identity, gamma=1), -6 / 5, 36 / 5)  # 0.5, -1.5 - 1.5
    # Batch norm with weight 4, bias 1, mean 2, var + eps = 4: z = 2 x - 3.
    norm = nn.BatchNorm1d(1, eps=1.0)
    norm.weight.data.fill_(4), norm.bias.data.fill_(1)
    norm.running_mean.fill_(2), norm.running_var.fill_(3)
    layer = dense_layer(norm, (1,))
    close(layer.W[0], 2)
    close(layer.b, -3)
    close(reference.zero(layer, vector(3), vector(1), identity), 2)  # 6 / 3
    close(reference.z_plus(layer, vector(3), vector(1), identity), 1)  # 6 / 6: bias is negative


def test_vanishing_denominators() -> None:
    cancelling = layer_of([[1, 1], [1, 0]])
    x = vector(1, -1)  # z = (0, 1)
    # Nothing to propagate: no pole.
    close(reference.zero(cancelling, x, vector(0, 3), identity), 3, 0)
    # Something to propagate: the pole is real and shows.
    poles = reference.zero(cancelling, x, vector(2, 0), identity)
    assert poles.tolist() == [math.inf, -math.inf]
    # No contribution at all: 0/0 is 0.
    close(reference.zero(cancelling, vector(0, 0), vector(2, 3), identity), 0, 0)
    # Positive part empty: not a pole of z-plus; nor is one in the negative part, p = 1, n = -1.
    close(reference.z_plus(layer_of([[-1]]), vector(1), vector(2), identity), 0)
    close(reference.z_plus(layer_of([[1, -1]]), vector(1, 1), vector(2), additive(1)), 1, 0)


def test_stabilizers_by_hand() -> None:
    z = vector(-1, 0, 0.2, 7)  # rms = sqrt((1 + 0.04 + 49) / 4) = sqrt(12.51)
    rms = math.sqrt(12.51)
    close(identity(z), *z.tolist())
    close(signed(0.5)(z), -1.5, 0.5, 0.7, 7.5)
    close(reference.signed_relative(0.5)(z), -1 - rms / 2, rms / 2, 0.2 + rms / 2, 7 + rms / 2)
    close(reference.quadratic_mean(0.5, floor=0.25)(z), *(v + rms / 2 + 0.25 for v in z.tolist()))
    close(reference.quadratic_mean(0.5)(vector(0.0)), 1e-9)
    close(additive(0.5)(z), -0.5, 0.5, 0.7, 7.5)
    close(reference.clip(0.5)(z), -1, 0.5, 0.5, 7)
    close(signed(0.5)(vector(-0.0)), 0.5)


# Conservation: without a bias, and where no sum is empty, what comes in goes out.

CONSERVING = {
    "zero": reference.zero,
    "epsilon=0": partial(reference.epsilon, epsilon=0),
    "gamma": partial(reference.gamma, gamma=0.25),
    "gamma,captum-bias": partial(reference.gamma, gamma=0.25, bias="captum"),
    "alpha2-beta1": partial(reference.alpha_beta, alpha=2, beta=1),
    "z_plus": reference.z_plus,
    "z_box": partial(reference.z_box, low=-4.0, high=4.0),
    "w_square": reference.w_square,
    "flat": reference.flat,
}


@pytest.mark.parametrize("rule", CONSERVING.values(), ids=CONSERVING)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (seeded(nn.Linear, 8, 5, bias=False), (8,)),
        (seeded(nn.Conv2d, 4, 3, 3, padding=1, bias=False), (4, 4, 4)),
        (seeded(nn.Conv2d, 4, 3, 3, padding=1, padding_mode="reflect", bias=False), (4, 4, 4)),
        (seeded(nn.ConvTranspose2d, 16, 2, 2, bias=False), (16, 3, 3)),
    ],
    ids=["Linear", "Conv2d", "Conv2d-reflect", "ConvTranspose2d"],
)
def test_conserves_without_bias(rule, module: nn.Module, shape: tuple[int, ...]) -> None:
    x = seeded_tensor(2, *shape, seed=5)
    R = seeded_tensor(*module(x).shape, seed=6)
    result = batch(rule, dense_layer(module, shape), x, R, identity)
    assert result.shape == x.shape
    scale = result.abs().flatten(1).sum(1)
    difference = result.flatten(1).sum(1) - R.flatten(1).sum(1)
    assert (difference.abs() <= 1e-13 * scale).all()


def test_bias_absorbs_relevance() -> None:
    # z = (2, -6), biases 1 and -1: they keep 1/2*4 and 1/6*12.
    assert math.isclose(float(R.sum() - reference.zero(EXAMPLE, X, R, identity).sum()), 2 + 2)
