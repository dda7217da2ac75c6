"""Operators of aten, as exported models call them, get the rules of torch's own functions."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, plan, presets
from captum_lrp_stab.errors import ModelError
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")
aten = torch.ops.aten
X = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PRESETS = {
    "epsilon": presets.epsilon(0.1),
    "epsilon_plus_flat": presets.epsilon_plus_flat(),
    "epsilon_gamma_box": presets.epsilon_gamma_box(-5, 5),
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1(),
}


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 2, padding=1), nn.BatchNorm2d(6), nn.SiLU()),
        *(nn.ConvTranspose2d(6, 4, 2), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(16, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    )


class Attending(nn.Module):
    """Attention over the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(24, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("make", [convolutional, Attending])
def test_an_exported_model_has_the_relevance_of_its_own(make, preset, attention) -> None:
    model = build(make)
    exported = torch.export.export(model, (X,)).module()
    expected, found = (
        LRP(m, PRESETS[preset], attention=attention).attribute(X, 1) for m in (model, exported)
    )
    assert relative_error(found, expected) <= 1e-12


W = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
ONES = ([1, 1], [1, 1], [1, 1])
Spelling = Callable[[Tensor, Tensor], Tensor]
SPELLINGS: dict[str, tuple[Spelling, Spelling]] = {
    "aten.conv2d": (lambda x, w: F.conv2d(x, w), lambda x, w: aten.conv2d(x, w)),
    "aten.linear": (
        lambda x, w: F.linear(x, w.flatten(1)[:, :6]),
        lambda x, w: aten.linear.default(x, w.flatten(1)[:, :6]),
    ),
    "torch.convolution": (
        lambda x, w: F.conv2d(x, w, padding=1),
        lambda x, w: torch.convolution(x, w, None, *ONES, False, [0, 0], 1),
    ),
    "torch._convolution": (
        lambda x, w: F.conv2d(x, w, padding=1, groups=1),
        lambda x, w: torch._convolution(
            x, w, None, *ONES, False, [0, 0], 1, False, False, False, False
        ),
    ),
    "transposed": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        lambda x, w: aten.convolution.default(x, w, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    ),
    "one dimension": (
        lambda x, w: F.conv1d(x[..., 0], w[..., 0], padding=1),
        lambda x, w: torch.convolution(x[..., 0], w[..., 0], None, [1], [1], [1], False, [0], 1),
    ),
    "aten.avg_pool2d": (
        lambda x, w: F.avg_pool2d(x, 2),
        lambda x, w: aten.avg_pool2d.default(x, [2, 2], [2, 2]),
    ),
    "aten._adaptive_avg_pool2d": (
        lambda x, w: F.adaptive_avg_pool2d(x, 2),
        lambda x, w: aten._adaptive_avg_pool2d(x, [2, 2]),
    ),
    "aten.layer_norm": (
        lambda x, w: F.layer_norm(x, (6,)),
        lambda x, w: aten.layer_norm(x, [6]),
    ),
    "aten.glu": (lambda x, w: F.glu(x, 1), lambda x, w: aten.glu.default(x, 1)),
}


class Net(nn.Module):
    """One operation with a weight, between a layer and a sum."""

    def __init__(self, operation: Spelling) -> None:
        super().__init__()
        self.first, self.weight = nn.Conv2d(4, 4, 1), nn.Parameter(W)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.operation(self.first(x), self.weight)).flatten(2).mean(2)


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_operator_is_the_function_of_its_name(name) -> None:
    models = [build(lambda f=f: Net(f)) for f in SPELLINGS[name]]
    rules = presets.epsilon(0.3)
    assert torch.equal(*(model(X) for model in models))
    expected, found = (LRP(model, rules).attribute(X, 1) for model in models)
    assert relative_error(found, expected) <= 1e-12
    assert [row.rule for row in plan(models[1], X, rules).rows] == [
        row.rule for row in plan(models[0], X, rules).rows
    ]


def test_a_dropout_that_is_active_is_refused_as_an_operator_too() -> None:
    model = build(lambda: Net(lambda x, w: aten.dropout.default(x, 0.5, True)))
    with pytest.raises(ModelError, match="random"):
        LRP(model).attribute(X, 1)


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor | None, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


BATCH_NORMS: dict[str, Callable[[nn.BatchNorm2d, Tensor], Tensor]] = {
    "native": lambda b, x: torch.native_batch_norm(x, *_statistics(b), False, 0.1, b.eps)[0],
    "aten.native": lambda b, x: aten.native_batch_norm(x, *_statistics(b), False, 0.1, b.eps)[0],
    "with an index": lambda b, x: torch._batch_norm_impl_index(
        x, *_statistics(b), False, 0.1, b.eps, False
    )[0],
    "decomposed": lambda b, x: aten._native_batch_norm_legit_no_training(
        x, *_statistics(b), 0.1, b.eps
    )[0],
    "functional": lambda b, x: aten._native_batch_norm_legit(x, *_statistics(b), False, 0.1, b.eps)[
        0
    ],
}
if hasattr(aten, "_batch_norm_no_update"):  # from PyTorch 2.5
    BATCH_NORMS["without an update"] = lambda b, x: aten._batch_norm_no_update(
        x, *_statistics(b), 0.1, b.eps
    )[0]


class Normed(nn.Module):
    """A batch norm whose coefficients come back strided otherwise than its input."""

    def __init__(self, norm: Callable[[nn.BatchNorm2d, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head, self.norm = nn.Linear(4, 3), norm

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.bn, self.first(x).tanh())
        return self.head(normed.flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("name", BATCH_NORMS)
def test_a_batch_norm_is_one_in_every_spelling(name, samples) -> None:
    """Torch's own backward pass of these is wrong for a batch of one."""
    norms = BATCH_NORMS[name], lambda norm, x: norm(x)
    models = [build(lambda norm=norm: Normed(norm)) for norm in norms]
    found, expected = (
        LRP(m, presets.zero(), strict=True).attribute(X[:samples], 1) for m in models
    )
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("samples", [1, 2])
def test_a_decomposed_model_has_the_relevance_of_its_own(samples) -> None:
    x, model = X[:samples], build(lambda: Normed(lambda norm, x: norm(x)))
    decomposed = torch.export.export(model, (x,)).run_decompositions().module()
    found, expected = (LRP(m, presets.zero()).attribute(x, 1) for m in (decomposed, model))
    assert relative_error(found, expected) <= 1e-12
