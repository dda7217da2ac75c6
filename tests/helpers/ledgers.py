"""What a layer absorbs and divides by, from dense float64 formulas; and networks to keep books of.

A rule is a list of :class:`Sum` s, each a matrix of contributions with the bias that goes into its
denominator. Everything a record says follows from them and from the relevance of the outputs.
Nothing here uses the package's formulas, automatic differentiation or a convolution.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from captum_lrp_stab import (
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    presets,
    stabilizers,
)
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.names import PRESETS
from tests.helpers import dense_formulas as reference
from tests.helpers.dense_formulas import Layer, Stabilizer
from tests.helpers.layers import HIGH, LOW, seeded
from tests.helpers.networks import randomize

U = torch.finfo(torch.float64).eps / 2


@dataclass(frozen=True)
class Sum:
    """One denominator of a rule: ``contributions`` (outputs, inputs) and ``bias`` (outputs,)."""

    contributions: Tensor
    bias: Tensor
    share: float = 1.0
    sign: int = 0  # of the outputs that it serves; 0: all
    is_of_one_sign: bool = False  # where nothing contributes, the gradient form divides nothing

    @property
    def d(self) -> Tensor:
        return self.contributions.sum(1) + self.bias

    @property
    def magnitude(self) -> Tensor:
        return self.contributions.abs().sum(1)

    def serves(self, z: Tensor) -> Tensor:
        return torch.ones_like(z, dtype=torch.bool) if not self.sign else z * self.sign > 0


Sums = Callable[[Layer, Tensor], list[Sum]]


def plus(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def minus(v: Tensor) -> Tensor:
    return v.clamp(max=0)


def plain(layer: Layer, x: Tensor) -> list[Sum]:
    """Bach et al. 2015, eq. 56 and 58."""
    return [Sum(layer.contributions(x), layer.b)]


def gamma(layer: Layer, x: Tensor, gamma: float, scaled: bool = True) -> list[Sum]:
    """Montavon et al. 2019, ch. 10.2.3; Andéol et al. 2021."""
    c, b, g = layer.contributions(x), layer.b, gamma if scaled else 0.0
    return [
        Sum(c + gamma * plus(c), b + g * plus(b), sign=1),
        Sum(c + gamma * minus(c), b + g * minus(b), sign=-1),
    ]


def alpha_beta(layer: Layer, x: Tensor, alpha: float, beta: float) -> list[Sum]:
    """Bach et al. 2015, eq. 60."""
    c, b = layer.contributions(x), layer.b
    sums = [Sum(plus(c), plus(b), alpha, 0, True), Sum(minus(c), minus(b), -beta, 0, True)]
    return sums if beta else sums[:1]


def box(layer: Layer, x: Tensor) -> list[Sum]:
    """Montavon et al. 2017, eq. 13."""
    ones = layer.pad(torch.ones_like(x))
    q = layer.contributions(x) - LOW * ones * plus(layer.W) - HIGH * ones * minus(layer.W)
    return [Sum(q, torch.zeros_like(layer.b), is_of_one_sign=True)]


def squares(layer: Layer, x: Tensor) -> list[Sum]:
    """Montavon et al. 2017, eq. 11."""
    return [Sum(layer.W**2, layer.b**2, is_of_one_sign=True)]


def flat(layer: Layer, x: Tensor) -> list[Sum]:
    """Lapuschkin et al. 2019."""
    return [Sum(layer.connections.double(), torch.zeros_like(layer.b), is_of_one_sign=True)]


@dataclass(frozen=True)
class Case:
    """A rule of the package, its sums, and what it adds to denominators before the stabilizer."""

    rule: Callable[..., Any]
    sums: Sums
    before: Stabilizer = reference.identity

    def stabilized(self, s: Stabilizer) -> Stabilizer:
        return lambda d: s(self.before(d))


RULES = {
    "zero": Case(ZeroRule, plain),
    "epsilon": Case(partial(EpsilonRule, 0.25), plain, reference.signed(0.25)),
    "epsilon-unsigned": Case(
        partial(EpsilonRule, 0.25, signed=False), plain, reference.additive(0.25)
    ),
    "gamma": Case(partial(GammaRule, 0.25), partial(gamma, gamma=0.25)),
    "gamma-0": Case(partial(GammaRule, 0.0), partial(gamma, gamma=0.0)),
    "gamma-captum": Case(
        partial(GammaRule, 0.5, bias="captum"), partial(gamma, gamma=0.5, scaled=False)
    ),
    "alpha2-beta1": Case(AlphaBetaRule, partial(alpha_beta, alpha=2.0, beta=1.0)),
    "z_plus": Case(ZPlusRule, partial(alpha_beta, alpha=1.0, beta=0.0)),
    "z_box": Case(partial(ZBoxRule, LOW, HIGH), box),
    "w_square": Case(WSquareRule, squares),
    "flat": Case(FlatRule, flat),
}
STABILIZERS: dict[str, tuple[stabilizers.Stabilizer, Stabilizer]] = {
    "none": (stabilizers.Identity(), reference.identity),
    "signed": (stabilizers.Signed(0.1), reference.signed(0.1)),
    "quadratic-mean": (stabilizers.RootMeanSquare(0.1), reference.quadratic_mean(0.1)),
    "additive": (stabilizers.Additive(0.1), reference.additive(0.1)),
    "clip": (stabilizers.Clip(0.5), reference.clip(0.5)),
}
MOVING_AWAY = ("none", "signed", "clip")


class OnTop(nn.Module):
    """A weighted sum of all outputs of a layer, so that each of them has relevance."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.layer = layer
        weights = torch.linspace(1, 5, outputs, dtype=torch.float64).sin() + 0.1
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x).flatten(1) * self.weights).sum(1)


def norm_behind(layer: nn.Conv2d) -> tuple[nn.Module, nn.Conv2d]:
    """A convolution with a batch norm behind it, and one convolution that does the same."""
    channels = layer.out_channels
    norm = nn.BatchNorm2d(channels).double().eval()
    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(4, channels, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        norm.weight.copy_(2 * drawn[0] - 1)
        norm.bias.copy_(2 * drawn[1] - 1)
        norm.running_mean.copy_(2 * drawn[2] - 1)
        norm.running_var.copy_(drawn[3] + 0.5)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        one = copy.deepcopy(layer)
        one.weight.mul_(scale[:, None, None, None])
        one.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
    return nn.Sequential(layer, norm), one


LAYERS = ("linear", "conv2d", "conv2d-groups", "avg_pool2d", "batch_norm2d", "merged")


def layer_of(name: str) -> tuple[nn.Module, Layer, tuple[int, ...], str]:
    """A module, the same as a dense layer, its input's shape, and where a rule goes in ``OnTop``.

    The convolutions have strides, zero padding, groups and biases.
    """
    module, shape = seeded("conv2d-groups" if name == "merged" else name, torch.float64)
    if name != "merged":
        return module, reference.dense_layer(module, shape), shape, "layer"
    both, one = norm_behind(module)
    return both, reference.dense_layer(one, shape), shape, "layer.0"


@dataclass
class Expected:
    """What a record has to say."""

    received: Tensor
    propagated: Tensor
    bias: float = 0.0
    stabilizer: float = 0.0
    rule: float = 0.0
    peak: float = 0.0
    excess: float = 0.0
    growth: float = 1.0
    strongest: tuple[int, int] = (0, 0)  # sample and flattened output
    count: int = 0
    smallest: float = math.inf
    zeros: int = 0
    noise: int = 0
    flipped: int = 0
    shrunk: int = 0
    sizes: tuple[float, ...] = ()
    cancellations: tuple[float, ...] = ()


def expected(
    sums: Sums, s: Stabilizer, layer: Layer, x: Tensor, weights: Tensor, form: str
) -> Expected:
    """What the record of ``layer`` in ``OnTop`` has to say, for inputs ``x`` of shape (N, ...)."""
    rows = [one_sample(sums, s, layer, row, weights, form) for row in x.double().flatten(1)]
    found = Expected(torch.stack([r.R for r in rows]), torch.stack([r.down for r in rows]))
    l1 = float(found.received.abs().sum())
    emitted = torch.stack([r.emitted for r in rows])
    found.peak = float(emitted.max()) / l1
    place = divmod(int(emitted.argmax()), emitted.shape[1])
    found.strongest = place[0], place[1]
    before, after = (
        float(sum(t.abs().sum() for t in ts)) for ts in zip(*(r.ends for r in rows), strict=True)
    )
    found.growth = after / before
    for r in rows:
        found.bias += r.bias
        found.stabilizer += r.stabilizer
        found.rule += r.rule
        found.excess += r.excess / l1
        for d, s_of_d, magnitude in r.divisions:
            with_bias = magnitude / d.abs()
            found.count += len(d)
            found.smallest = min(found.smallest, float(d.abs().min())) if len(d) else found.smallest
            found.zeros += int((d == 0).sum())
            found.noise += int((d.abs() < U * magnitude).sum())
            found.flipped += int(((s_of_d < 0) != (d < 0)).sum())
            found.shrunk += int((s_of_d.abs() < d.abs()).sum())
            finite = with_bias[with_bias.isfinite()]
            found.sizes += tuple(d.abs()[d != 0].tolist())
            found.cancellations += tuple(finite.tolist())
    return found


@dataclass
class _Sample:
    R: Tensor
    down: Tensor
    emitted: Tensor
    ends: tuple[Tensor, Tensor]  # the outputs as they are, and as the form makes them
    divisions: list[tuple[Tensor, Tensor, Tensor]]  # d, s(d), sum of absolute contributions
    bias: float
    stabilizer: float
    rule: float
    excess: float


def one_sample(
    sums: Sums, s: Stabilizer, layer: Layer, x: Tensor, weights: Tensor, form: str
) -> _Sample:
    z = layer.contributions(x).sum(1) + layer.b
    groups = list(_divided(sums(layer, x), s, z))
    output = z
    if form == "modified-forward":
        output = sum(torch.where(m.serves(z), m.share * d * z / sd, 0.0) for m, d, sd in groups)
    R = output * weights
    down = torch.zeros_like(layer.contributions(x)[0])
    emitted, given = torch.zeros_like(z), torch.zeros_like(z)
    bias = stabilizer = excess = 0.0
    divisions = []
    for m, d, sd in groups:
        serves = m.serves(z)
        # a sum of nothing: the other forms divide all the same, by what the stabilizer adds
        at_zero = (d == 0) & m.is_of_one_sign & (form == "gradient")
        message = (z * weights if form == "modified-forward" else R) / sd
        message = torch.where(serves & ~at_zero & (z != 0), message, 0.0)
        size = abs(m.share) * message.abs() * m.magnitude
        down = down + m.share * (message[:, None] * m.contributions).sum(0)
        emitted = emitted + size
        bias += m.share * float((message * m.bias).sum())
        if form != "modified-forward":
            stabilizer += m.share * float((message * (sd - d)).sum())
            given = given + m.share * torch.where(serves & ~at_zero, R, 0.0)
        live = serves & ~at_zero
        added = torch.where(live & (sd.abs() < d.abs()), size * (1 - (sd / d).abs()), 0.0)
        excess += float(added.sum())
        divisions.append((d[live], sd[live], (m.magnitude + m.bias.abs())[live]))
    rule = 0.0 if form == "modified-forward" else float((R - given).sum())
    down = layer.fold(down)
    return _Sample(R, down, emitted, (z, output), divisions, bias, stabilizer, rule, excess)


def _divided(sums: list[Sum], s: Stabilizer, z: Tensor) -> Iterator[tuple[Sum, Tensor, Tensor]]:
    for m in sums:
        d = m.d
        yield m, d, s(d)


# closing ------------------------------------------------------------------------------------------

CLOSES = {torch.float64: 1e-10, torch.float32: 1e-6}
SIX = {"low": -6.0, "high": 6.0}
PRESETS = {
    name: getattr(presets, name)(**SIX if name in ("epsilon_gamma_box", "lrp_tutorial") else {})
    for name in PRESETS
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def off(found: Diagnosis) -> tuple[float, float]:
    """What no layer accounts for, and what is put down to rounding, over what there is."""
    ledger = found.ledger
    scale = max(abs(ledger.score), ledger.inputs.l1)
    return abs(ledger.elsewhere) / scale, abs(ledger.shares.rounding) / scale


def assert_closes(found: Diagnosis, dtype: torch.dtype) -> None:
    elsewhere, rounding = off(found)
    assert elsewhere <= CLOSES[dtype], str(found)
    limit = 1e-10 if dtype == torch.float64 else 1e-4
    assert rounding <= limit, str(found)
    ledger, shares = found.ledger, found.ledger.shares
    total = ledger.inputs.total + sum(r.shares.total for r in found.layers) + ledger.elsewhere
    assert total == pytest.approx(ledger.score, rel=1e-9, abs=1e-9 * ledger.inputs.l1)
    for name in ("bias", "stabilizer", "rule", "operation", "rounding"):
        parts = [getattr(r.shares, name) for r in found.layers]
        assert getattr(shares, name) == pytest.approx(sum(parts), rel=1e-9, abs=1e-12)


def assert_score(found: Diagnosis, model: nn.Module, x: Any, target: Any) -> None:
    """The books are of the network's own score, where the form does not rewrite it."""
    with torch.no_grad():
        out = model(*x) if isinstance(x, tuple) else model(x)
    index = target if isinstance(target, tuple) else (target,)
    score = float(out[(slice(None), *index)].double().sum())
    assert found.ledger.score == pytest.approx(score, rel=1e-5, abs=1e-6)
    assert found.ledger.inputs.total == pytest.approx(
        sum(float(r.double().sum()) for r in found.relevances), rel=1e-9, abs=1e-9
    )


class Calls(nn.Module):
    """A forward pass given as a function of the module, the input, and the size of constants."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.position = nn.Parameter(torch.randn(1, 5, 6))
        self.register_buffer("mask", torch.rand(1, 4, 6) > 0.5)
        self.size = 1.0
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x, self.size)


@lru_cache(maxsize=2)  # they are large
def network(name: str, dtype: torch.dtype) -> nn.Module:
    options: dict[str, Any] = {"image_size": 32} if name.startswith("vit") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **options)
        if name.startswith("vit"):
            nn.init.normal_(model.heads.head.weight, std=0.02)  # zeros by default
            nn.init.normal_(model.class_token)
        for m in model.modules():
            if isinstance(m, (nn.LayerNorm, nn.MultiheadAttention)):
                for n, p in m.named_parameters(recurse=False):
                    if "bias" in n:
                        nn.init.normal_(p, std=0.2)
    randomize(model)
    for m in model.modules():  # moderate: else relevance grows by the depth
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.abs_().clamp_(0.3, 1.2)
            m.running_mean.mul_(0.3)
    return model.to(dtype)
