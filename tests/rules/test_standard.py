"""Every rule x layer x stabilizer x driver against the dense formula from its paper, and zennit."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import zennit.rules
from captum.attr import LRP as CaptumLRP
from torch import Tensor, nn

from captum_lrp_stab import LRP, GammaRule, PassRule, attach_rules, stabilizers
from captum_lrp_stab.rules.base import Rule
from tests.helpers import dense_formulas as reference
from tests.helpers.layers import HIGH, LAYERS, LOW, RULES, STABILIZERS, relative_error, seeded

# torch says once that an even kernel with padding="same" may copy its input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
# A denominator below this share of the largest is decided by rounding, which differs between CPUs.
POLE_MARGIN = {torch.float64: 1e-3, torch.float32: 0.03}


class Weighted(nn.Module):
    """A layer followed by a fixed weighted sum: the score's coefficients are the weights."""

    def __init__(self, layer: nn.Module, weights: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.weights).flatten(1).sum(1)


def our_driver(layer: nn.Module, c: Tensor, rule: Rule, x: Tensor) -> Tensor:
    """Relevance at the input, given the coefficient of the layer's output."""
    layer.rule = rule
    return LRP(Weighted(layer, c), merge_batch_norm=False, nonfinite="ignore").attribute(x)


def stock_driver(layer: nn.Module, c: Tensor, rule: Rule, x: Tensor) -> Tensor:
    """The same, with the relevance z c of the output; stock Captum multiplies by the score."""
    layer.rule = rule
    model = Weighted(layer, layer(x) * c)
    score = model(x).reshape(-1, *(1,) * (x.dim() - 1))
    return CaptumLRP(model).attribute(x.clone()) / score


DRIVERS = {"ours": our_driver, "stock": stock_driver}


class Watch:
    """A reference stabilizer that notes what it saw, call by call."""

    def __init__(self, formula: reference.Stabilizer, margin: float = 0.0) -> None:
        self.formula = formula
        self.margin = margin
        self.saw_zero = False
        self.poles: list[Tensor] = []

    def __call__(self, d: Tensor) -> Tensor:
        s = self.formula(d)
        self.saw_zero |= bool((d == 0).any())
        self.poles.append((s.abs() < self.margin * d.abs().max()) & (d != 0))
        return s


@pytest.fixture(autouse=True)
def one_thread():
    """Small convolutions are many times slower on two threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Case:
    """A layer, its input, the coefficient and (in float64) the relevance of its output."""

    layer: nn.Module
    dense: reference.Layer
    x: Tensor
    c: Tensor
    R: Tensor


def case(layer_name: str, dtype: torch.dtype) -> Case:
    layer, shape = seeded(layer_name, dtype)
    layer.requires_grad_(False)
    generator = torch.Generator().manual_seed(7)

    def draw(low: float, high: float, *size: int) -> Tensor:
        return torch.empty(size, dtype=dtype).uniform_(low, high, generator=generator)

    x = draw(-2, 2, 3, *shape)
    c = draw(-1, 1, *layer(x).shape)
    R = copy.deepcopy(layer).double()(x.double()) * c.double()
    return Case(layer, reference.dense_layer(layer, shape), x, c, R)


def away_from_poles(k: Case, formula, stabilizer: reference.Stabilizer) -> Case:
    """The same case with coefficient 0 at outputs whose denominator all but vanishes.

    There the relevance is decided by how z was rounded, whatever the code does.
    """
    rows = []
    for x, R in zip(k.x.double().flatten(1), k.R.flatten(1), strict=True):
        watch = Watch(stabilizer, POLE_MARGIN[k.x.dtype])
        formula(k.dense, x, R, watch)
        rows.append(torch.stack(watch.poles).any(0))
    keep = ~torch.stack(rows).reshape(k.c.shape)
    assert keep.double().mean() > 0.5
    return replace(k, c=k.c * keep, R=k.R * keep)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_rule_equals_the_dense_formula(layer_name, rule_name, driver, dtype) -> None:
    whole = case(layer_name, dtype)
    pair = RULES[rule_name]
    for name, (stabilizer, formula) in STABILIZERS.items():
        k = away_from_poles(whole, pair.formula, formula)
        relevance = DRIVERS[driver](k.layer, k.c, pair.rule(stabilizer=stabilizer), k.x)
        watched = Watch(formula)
        expected = reference.batch(pair.formula, k.dense, k.x, k.R, watched)
        assert relevance.dtype == dtype
        if watched.saw_zero and name == "none" and not relevance.isfinite().all():
            assert driver == "stock"  # an empty sum is 0/0 there; in gradient form it is 0
            continue
        assert relative_error(relevance, expected) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layer_name", ["linear", "conv2d", "conv2d-reflect", "avg_pool2d"])
def test_a_wrong_formula_is_seen(layer_name, driver) -> None:
    """The negative control: no rule passes for another, nor one stabilizer for another."""
    k = case(layer_name, torch.float64)
    for rule_name, pair in RULES.items():
        relevance = DRIVERS[driver](
            k.layer, k.c, pair.rule(stabilizer=STABILIZERS["signed"][0]), k.x
        )
        for other, wrong in RULES.items():
            if other == rule_name or {rule_name, other} == {"zero", "gamma-0"}:
                continue  # these differ where z is exactly 0 only
            expected = reference.batch(wrong.formula, k.dense, k.x, k.R, STABILIZERS["signed"][1])
            assert relative_error(relevance, expected) > 1e-6, (rule_name, other)
        expected = reference.batch(pair.formula, k.dense, k.x, k.R, reference.signed(0.11))
        assert relative_error(relevance, expected) > 1e-6, rule_name


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layer_name", ["batch_norm2d", "batch_norm1d"])
def test_pass_rule_hands_relevance_on(layer_name, driver) -> None:
    k = case(layer_name, torch.float64)
    relevance = DRIVERS[driver](k.layer, k.c, PassRule(), k.x)
    torch.testing.assert_close(relevance, k.R, rtol=1e-12, atol=0)


def magnitudes(rule_name: str, dense: reference.Layer, x: Tensor) -> list[Tensor]:
    """The sum of absolute contributions to each denominator, in the order the formula asks."""
    c, b = dense.contributions(x), dense.b
    up, down = (lambda v: v.clamp(min=0)), (lambda v: -v.clamp(max=0))
    if rule_name == "gamma":
        return [(c.abs() + 0.25 * f(c)).sum(1) + b.abs() + 0.25 * f(b) for f in (up, down)]
    if rule_name == "alpha2-beta1":
        return [f(c).sum(1) + f(b) for f in (up, down)]
    if rule_name == "z_box":
        box = (LOW * up(dense.W)).abs() + (HIGH * down(dense.W)).abs()
        return [(c.abs() + box).sum(1)]
    return [c.abs().sum(1) + b.abs()]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("layer_name", ["linear", "conv2d-groups", "avg_pool1d"])
@pytest.mark.parametrize("rule_name", ["zero", "gamma", "alpha2-beta1", "z_box"])
def test_rounding_aware_stabilizer_in_a_rule(layer_name, rule_name, driver) -> None:
    """With a huge factor every denominator is noise, and e_k itself is the denominator."""
    k, pair, factor = case(layer_name, torch.float64), RULES[rule_name], 2.0**60
    rule = pair.rule(stabilizer=stabilizers.RoundingAware(factor))
    relevance = DRIVERS[driver](k.layer, k.c, rule, k.x)
    rows = []
    for x, R in zip(k.x.flatten(1), k.R.flatten(1), strict=True):
        sums = iter(magnitudes(rule_name, k.dense, x))

        def noise(d: Tensor, sums=sums) -> Tensor:
            e = (factor * 2.0**-53 * next(sums)).clamp(min=torch.finfo(torch.float64).tiny)
            return torch.where(d < 0, -e, e)

        rows.append(pair.formula(k.dense, x, R, noise))
    assert relative_error(relevance, torch.stack(rows).reshape(k.x.shape)) <= 1e-12


# zennit ------------------------------------------------------------------------------------------

ZENNIT = {
    "zero": lambda s: zennit.rules.Epsilon(epsilon=s),
    "gamma": lambda s: zennit.rules.Gamma(gamma=0.25, stabilizer=s),
    "gamma-0": lambda s: zennit.rules.Gamma(gamma=0.0, stabilizer=s),
    "alpha2-beta1": lambda s: zennit.rules.AlphaBeta(alpha=2, beta=1, stabilizer=s),
    "z_plus": lambda s: zennit.rules.ZPlus(stabilizer=s),
    "z_box": lambda s: zennit.rules.ZBox(low=LOW, high=HIGH, stabilizer=s),
    "w_square": lambda s: zennit.rules.WSquare(stabilizer=s),
    "flat": lambda s: zennit.rules.Flat(stabilizer=s),
}
WEIGHTED_LAYERS = [name for name in LAYERS if "pool" not in name and "norm" not in name]
WEIGHTED_LAYERS = [name for name in WEIGHTED_LAYERS if "adaptive" not in name]


def zennit_relevance(
    hook: zennit.rules.BasicHook, layer: nn.Module, x: Tensor, R: Tensor
) -> Tensor:
    x = x.clone().requires_grad_()
    handles = hook.register(layer)
    try:
        return torch.autograd.grad(layer(x), x, grad_outputs=R)[0]
    finally:
        handles.remove()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("rule_name", ZENNIT)
@pytest.mark.parametrize("layer_name", WEIGHTED_LAYERS)
def test_rule_equals_zennit_with_the_same_stabilizer(layer_name, rule_name, driver, dtype) -> None:
    whole = case(layer_name, dtype)
    for name, (stabilizer, formula) in STABILIZERS.items():
        k = away_from_poles(whole, RULES[rule_name].formula, formula)
        relevance = DRIVERS[driver](k.layer, k.c, RULES[rule_name].rule(stabilizer=stabilizer), k.x)
        # in float64, so that zennit's own rounding does not count against the float32 result
        wide = copy.deepcopy(k.layer).double(), k.x.double(), k.R
        expected = zennit_relevance(ZENNIT[rule_name](stabilizer), *wide)
        changed = zennit_relevance(ZENNIT[rule_name](stabilizers.Signed(0.2)), *wide)
        if not expected.isfinite().all():
            assert name == "none"  # an empty sum: 0/0 in relevance form, 0 in gradient form
            assert relevance.isfinite().all() == (driver == "ours")
            continue
        assert relative_error(relevance, expected) <= TOLERANCE[dtype], name
        assert relative_error(relevance, changed) > 1e-4, name


@pytest.mark.parametrize("layer_name", ["avg_pool1d", "adaptive2d", "batch_norm2d"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_default_epsilon_equals_zennit_on_layers_without_weights(layer_name, driver) -> None:
    k = case(layer_name, torch.float64)
    relevance = DRIVERS[driver](k.layer, k.c, RULES["zero"].rule(stabilizer=1e-6), k.x)
    expected = zennit_relevance(zennit.rules.Epsilon(epsilon=1e-6), k.layer, k.x, k.R)
    assert relative_error(relevance, expected) <= 1e-12


def test_attach_rules_serves_the_same_formula_without_touching_the_weights() -> None:
    k = case("conv2d-reflect", torch.float64)
    model = Weighted(k.layer, k.c)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with attach_rules(model, [(["layer"], GammaRule, {"gamma": 0.25, "stabilizer": 0.1})]):
        relevance = CaptumLRP(model).attribute(k.x.clone())
    R = k.c * model(k.x).reshape(-1, 1, 1, 1)
    expected = reference.batch(RULES["gamma"].formula, k.dense, k.x, R, reference.signed(0.1))
    assert relative_error(relevance, expected) <= 1e-12
    for name, p in model.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])
