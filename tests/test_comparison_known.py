"""Each known difference of meaning, provoked: ``compare`` names it, and nothing else.

Every case comes with its controls: without the difference the two sides are equal, and with a
fault on top it explains nothing.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import reference as dense
import torch
import zennit.canonizers
import zennit.composites
import zennit.layer
import zennit.rules
import zennit.torchvision
import zennit.types
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from captum.attr._utils.lrp_rules import GammaRule as CaptumGammaRule
from layers import relative_error
from networks import build
from test_comparison_faults import (
    Blocks,
    InGradientForm,
    NegatedRelevance,
    faulty,
    images,
    normed,
    pooled,
    scaled_by,
)
from torch import Tensor, nn
from torchvision.models import resnet18

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    compare,
    presets,
)
from captum_lrp_stab.comparison import Comparison
from captum_lrp_stab.comparison.known import KNOWN
from captum_lrp_stab.stabilizers import Additive, Identity, RootMeanSquare

TARGET = 1
X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGES = images(0)

# Networks ---------------------------------------------------------------------------------------


def stack() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


STACK = ("0", "2", "4")
CONVOLUTIONS = ("0", "3", "7")  # of `pooled` and `normed`, and the linear layer


class Skip(nn.Module):
    """One residual connection, added by ``add`` or by ``+``."""

    def __init__(self, add: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.first, self.second, self.add = nn.ReLU(), nn.ReLU(), add

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.a(x))
        y = self.b(x)
        return self.c(self.second(y + x if self.add is None else self.add(y, x)))


def positive(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    return model


def exact_norms(model: nn.Module) -> nn.Module:
    """A copy whose batch norms have no eps."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return model


# Cases ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A comparison, the differences in it, and how the user gets rid of them."""

    names: tuple[str, ...]
    model: nn.Module
    inputs: Tensor
    rules: Any
    reference: Any
    #: What to change, and what is left then.
    without: tuple[tuple[dict[str, Any], tuple[str, ...]], ...]
    layer: str  # where a fault is put
    fault: type = field(default_factory=lambda: scaled_by(0.5))  # one the reference has no part in
    options: dict[str, Any] = field(default_factory=dict)

    def compared(self) -> Comparison:
        return compare(self.model, self.inputs, TARGET, self.rules, self.reference, **self.options)

    def broken(self) -> "Case":
        return replace(self, rules=faulty(self.rules, {self.layer: self.fault}))

    def in_float32(self) -> "Case":
        model, reference = copy.deepcopy(self.model).float(), copy.copy(self.reference)
        if isinstance(reference, LRP):
            reference.model = model
        return replace(self, model=model, inputs=self.inputs.float(), reference=reference)


def rules(names: tuple[str, ...], rule: type, **parameters: Any) -> list[Any]:
    return [(list(names), rule, parameters)]


GAMMA = "gamma's bias"
SIGN = "signed against unsigned epsilon"
SIGN_OF_STABILIZER = "signed against unsigned stabilizer"
SCORE = "normalised output"
MEAN = "batch-wide quadratic mean"
BIAS = "bias share"
DOUBLED = "doubled at a functional addition"
MERGED = "eps of merged batch norms"
APART = "batch norm as a layer of its own"
SUM = "stabilizer at additions"
WEIGHTS = "Captum's rules change the weights alone"
DEFAULTS = "Captum's epsilon where there is no rule"
FORWARD = "modified forward pass"


def gamma_of_captum() -> Case:
    """Where everything is positive, stock Captum's gamma rule differs in the bias alone."""
    without = {"rules": rules(STACK, GammaRule, bias="captum")}
    model = positive(build(stack, 1))
    given = rules(STACK, GammaRule)
    return Case(
        (GAMMA,), model, X.abs(), given, "captum", ((without, ()),), "2", fault=InGradientForm
    )


def lrp_case(
    names: tuple[str, ...], ours: list[Any], *others: tuple[list[Any], tuple[str, ...]]
) -> Case:
    """Against an ``LRP`` with other rules: those of ``others``, with what each makes differ."""
    model = build(stack, 1)
    (given, _), *left = others
    without = [({"rules": given}, ())]
    without += [({"reference": LRP(model, r)}, names) for r, names in left]
    return Case(names, model, X, ours, LRP(model, given), tuple(without), "2")


def gamma_of_lrp() -> Case:
    return lrp_case((GAMMA,), rules(STACK, GammaRule), (rules(STACK, GammaRule, bias="captum"), ()))


def sign_of_epsilon() -> Case:
    unsigned = rules(STACK, EpsilonRule, epsilon=0.1, signed=False)
    return lrp_case((SIGN,), rules(STACK, EpsilonRule, epsilon=0.1), (unsigned, ()))


def sign_of_stabilizer() -> Case:
    unsigned = rules(STACK, GammaRule, stabilizer=Additive(0.1))
    return lrp_case((SIGN_OF_STABILIZER,), rules(STACK, GammaRule, stabilizer=0.1), (unsigned, ()))


def mean_of_batch() -> Case:
    ours, theirs = (
        rules(STACK, EpsilonRule, epsilon=0.0, stabilizer=RootMeanSquare(0.1, per_sample=each))
        for each in (True, False)
    )
    case = lrp_case((MEAN,), ours, (theirs, ()))
    return replace(case, without=(*case.without, ({"inputs": X[:1]}, ())))  # a batch of one


def gamma_and_sign() -> Case:
    both = rules(STACK, GammaRule, stabilizer=Additive(0.1), bias="captum")
    gamma = rules(STACK, GammaRule, stabilizer=0.1, bias="captum")
    sign = rules(STACK, GammaRule, stabilizer=Additive(0.1))
    ours = rules(STACK, GammaRule, stabilizer=0.1)
    return lrp_case(
        (GAMMA, SIGN_OF_STABILIZER),
        ours,
        (both, ()),
        (gamma, (GAMMA,)),
        (sign, (SIGN_OF_STABILIZER,)),
    )


def signed(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def by_hand(
    denominators: Callable[[Tensor, Tensor], Tensor], model: nn.Module, x: Tensor, target: int
) -> Tensor:
    """LRP of linear layers and ReLUs, from all contributions: nothing of the package.

    ``denominators`` makes them of the sums over the inputs, and the bias.
    """
    values = [x]
    for layer in model:
        values.append(layer(values[-1]))
    R = torch.zeros_like(values[-1])
    R[:, target] = values.pop()[:, target]
    for layer, value in zip(reversed(model), reversed(values), strict=True):
        if isinstance(layer, nn.Linear):
            contributions = value[:, None, :] * layer.weight  # (N, out, in)
            shares = R / denominators(contributions.sum(2), layer.bias)
            R = (contributions * shares[:, :, None]).sum(1)
    return R.detach()


right = partial(by_hand, lambda s, b: signed(s + b, 0.1))
unsigned = partial(by_hand, lambda s, b: s + b + 0.1)
without_bias = partial(by_hand, lambda s, b: signed(s, 0.1))


def over_score(relevance: Callable[..., Tensor], model: nn.Module, x: Tensor, target: int):
    return relevance(model, x, target) / model(x)[:, target, None].detach()


def explained(rules: list[Any], model: nn.Module, x: Tensor, target: int) -> Tensor:
    return LRP(model, rules).attribute(x, target)


def callable_case(name: str, wrong: Callable[..., Tensor]) -> Case:
    given = rules(STACK, EpsilonRule, epsilon=0.1)
    return Case((name,), build(stack, 1), X, given, wrong, (({"reference": right}, ()),), "2")


def from_one(model: nn.Module, x: Tensor, target: int, of_score: bool = False) -> Tensor:
    """What zennit's documentation does: the seed is 1 at the target, not the score."""
    table = [(zennit.types.Activation, zennit.rules.Pass()), (nn.Linear, zennit.rules.Epsilon(0.1))]
    x = x.clone().requires_grad_()
    with zennit.composites.LayerMapComposite(table).context(model) as modified:
        output = modified(x)
        seed = torch.zeros_like(output)
        seed[:, target] = output[:, target] if of_score else 1.0
        (relevance,) = torch.autograd.grad(output, x, seed.detach())
    return relevance


def score_in_zennit() -> Case:
    case = callable_case(SCORE, from_one)
    return replace(case, without=(({"reference": partial(from_one, of_score=True)}, ()),))


def score_and_gamma() -> Case:
    given, others = rules(STACK, GammaRule), rules(STACK, GammaRule, bias="captum")
    with_bias = partial(explained, others)
    without = (
        ({"reference": with_bias}, (GAMMA,)),
        ({"reference": partial(over_score, partial(explained, given))}, (SCORE,)),
        ({"reference": with_bias, "rules": others}, ()),
    )
    reference = partial(over_score, with_bias)
    return Case((SCORE, GAMMA), build(stack, 1), X, given, reference, without, "2")


def weights_of_captum(rule: type, own: type) -> Case:
    """Captum's rule where weights and inputs have either sign; the control names it itself."""
    given, without = rules(STACK, rule), {"rules": rules(STACK, own)}
    model = build(stack, 1)
    return Case((WEIGHTS,), model, X, given, "captum", ((without, ()),), "2", fault=InGradientForm)


def pools_of_captum() -> Case:
    model = build(pooled, 1)
    without = {"reference": "captum_driver"}
    given = presets.epsilon()(model)
    return Case(
        (DEFAULTS,), model, IMAGES, given, "captum", ((without, ()),), "3", fault=InGradientForm
    )


def average_pools_of_captum() -> Case:
    """The average pool has no rule here, and with it no denominator."""
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 4)
        ),
        1,
    )
    given = rules(("0", "4"), EpsilonRule)
    with_rule = {"rules": [*given, *rules(("2",), EpsilonRule)]}
    without = (({"reference": "captum_driver"}, ()), (with_rule, ()))
    return replace(pools_of_captum(), model=model, rules=given, without=without, layer="4")


def pools_and_weights() -> Case:
    epsilon = rules(("5",), EpsilonRule)
    given = rules(CONVOLUTIONS, GammaRule) + epsilon
    own = rules(CONVOLUTIONS, CaptumGammaRule) + epsilon
    without = (
        ({"rules": own}, (DEFAULTS,)),
        ({"rules": own, "reference": "captum_driver"}, ()),
    )
    return replace(pools_of_captum(), names=(DEFAULTS, WEIGHTS), rules=given, without=without)


def doubled_by_captum() -> Case:
    model, given = build(Skip, 1), rules(("a", "b", "c"), EpsilonRule)
    # in float32, where the 1e-9 that Captum adds to the sum makes no difference
    as_module = build(lambda: Skip(Addition_Module()), 1, torch.float32)
    without = {"model": as_module, "inputs": X.float()}
    return Case((DOUBLED,), model, X, given, "captum", ((without, ()),), "c", fault=InGradientForm)


def epsilon_plus(*canonizers: Any, at_sums: Any = None) -> Any:
    """zennit's own composite, with another stabilizer at the sums its canonizers make."""
    table = [] if at_sums is None else [(zennit.layer.Sum, zennit.rules.Norm(at_sums))]
    return zennit.composites.EpsilonPlus(canonizers=list(canonizers), layer_map=table)


def where_not_0(z: Tensor) -> Tensor:
    return z.masked_fill(z == 0, 1.0)


RESNET = zennit.torchvision.ResNetCanonizer
MERGE = zennit.canonizers.SequentialMergeBatchNorm


def composite_case(
    names: tuple[str, ...], composite: Any, exact: bool, *others: tuple[dict[str, Any], Any]
) -> Case:
    """Residual blocks against zennit's own composite, with or without eps in the batch norms."""
    model = build(Blocks, 1)
    given = presets.epsilon_plus()(model)
    equal = {"reference": epsilon_plus(RESNET(), at_sums=where_not_0), "model": exact_norms(model)}
    start = exact_norms(model) if exact else model
    return Case(names, start, IMAGES, given, composite, (*others, (equal, ())), "head")


def doubled_in_zennit() -> Case:
    return composite_case((DOUBLED,), epsilon_plus(), True)


def stabilized_sums() -> Case:
    return composite_case((SUM,), epsilon_plus(RESNET()), True)


def merged_and_sums() -> Case:
    merged = {"reference": epsilon_plus(RESNET(), at_sums=where_not_0)}
    exact = {"model": exact_norms(build(Blocks, 1))}
    composite = epsilon_plus(RESNET())
    return composite_case((MERGED, SUM), composite, False, (merged, (MERGED,)), (exact, (SUM,)))


def merged_and_doubled() -> Case:
    exact = {"model": exact_norms(build(Blocks, 1))}
    return composite_case((MERGED, DOUBLED), epsilon_plus(MERGE()), False, (exact, (DOUBLED,)))


def epsilon_in_zennit() -> Any:
    """The epsilon rule, as zennit's documentation would have it for a network with batch norm."""
    table = [
        (zennit.types.Activation, zennit.rules.Pass()),
        (zennit.types.BatchNorm, zennit.rules.Pass()),
        (zennit.types.Linear, zennit.rules.Epsilon(1e-6)),
    ]
    return zennit.composites.LayerMapComposite(table, canonizers=[MERGE()])


def merged_in_zennit() -> Case:
    model = build(normed, 1)
    without = {"model": exact_norms(model)}
    given = rules(CONVOLUTIONS, EpsilonRule)
    return Case((MERGED,), model, IMAGES, given, epsilon_in_zennit(), ((without, ()),), "7")


def apart() -> Case:
    model, given = build(normed, 1), rules(CONVOLUTIONS, GammaRule)
    reference = LRP(model, given, merge_batch_norm=False)
    without = (
        ({"reference": LRP(model, given)}, ()),
        ({"options": {"merge_batch_norm": False}}, ()),
    )
    return Case((APART,), model, IMAGES, given, reference, without, "3")


def gamma_and_apart() -> Case:
    case, others = apart(), rules(CONVOLUTIONS, GammaRule, bias="captum")
    without = (
        ({"reference": LRP(case.model, others)}, (GAMMA,)),
        ({"rules": others}, (APART,)),
        ({"rules": others, "options": {"merge_batch_norm": False}}, ()),
    )
    reference = LRP(case.model, others, merge_batch_norm=False)
    return replace(case, names=(GAMMA, APART), reference=reference, without=without)


def rewritten(rule: type, **parameters: Any) -> Case:
    """Nothing is added to a denominator of LRP-0, which leaves the forward pass as it is."""
    given, without = rules(STACK, rule, **parameters), {"rules": rules(STACK, ZeroRule)}
    model = build(stack, 1)
    reference, fault = "modified_forward", InGradientForm
    return Case((FORWARD,), model, X, given, reference, ((without, ()),), "2", fault=fault)


CASES: dict[str, Callable[[], Case]] = {
    "gamma's bias, Captum": gamma_of_captum,
    "gamma's bias, LRP": gamma_of_lrp,
    "unsigned epsilon, LRP": sign_of_epsilon,
    "unsigned stabilizer, LRP": sign_of_stabilizer,
    "unsigned epsilon, by hand": lambda: callable_case(SIGN, unsigned),
    "score, by hand": lambda: callable_case(SCORE, partial(over_score, right)),
    "score, zennit": score_in_zennit,
    "quadratic mean, LRP": mean_of_batch,
    "bias share, by hand": lambda: callable_case(BIAS, without_bias),
    "weights, Captum's gamma": lambda: weights_of_captum(GammaRule, CaptumGammaRule),
    "weights, Captum's alpha1-beta0": lambda: weights_of_captum(ZPlusRule, Alpha1_Beta0_Rule),
    "max pools, Captum": pools_of_captum,
    "average pools, Captum": average_pools_of_captum,
    "doubled, Captum": doubled_by_captum,
    "doubled, zennit": doubled_in_zennit,
    "sums, zennit": stabilized_sums,
    "merged eps, zennit": merged_in_zennit,
    "batch norm apart, LRP": apart,
    "rewritten, gamma": lambda: rewritten(GammaRule, stabilizer=0.1),
    "rewritten, epsilon": lambda: rewritten(EpsilonRule, epsilon=0.1),
    "gamma's bias and sign, LRP": gamma_and_sign,
    "score and gamma's bias, LRP": score_and_gamma,
    "max pools and weights, Captum": pools_and_weights,
    "gamma's bias and batch norm apart, LRP": gamma_and_apart,
    "merged eps and sums, zennit": merged_and_sums,
    "merged eps and doubled, zennit": merged_and_doubled,
}
cases = pytest.mark.parametrize("name", CASES)


def assert_known(comparison: Comparison, names: tuple[str, ...]) -> None:
    assert comparison.verdict == ("known difference" if names else "equal"), str(comparison)
    assert sorted(d.name for d in comparison.differences) == sorted(names)
    assert all(name in comparison.explanation for name in names)


@cases
def test_a_known_difference_is_named(name: str) -> None:
    case = CASES[name]()
    assert_known(case.compared(), case.names)


@cases
def test_without_the_difference_the_two_are_equal(name: str) -> None:
    case = CASES[name]()
    for changes, left in case.without:
        assert_known(replace(case, **changes).compared(), left)


@pytest.mark.parametrize("fault", ["in the rule", "in gradient form"])
@pytest.mark.parametrize("name", CASES)
def test_a_fault_on_top_is_not_explained_away(fault: str, name: str) -> None:
    case = CASES[name]()
    if fault == "in gradient form":  # the relevance form, on either side, has none
        case = replace(case, fault=InGradientForm)
    broken = case.broken()
    relevances = (LRP(case.model, r).attribute(case.inputs, 1) for r in (case.rules, broken.rules))
    assert relative_error(*relevances) > 1e-3
    comparison = broken.compared()
    assert comparison.verdict == "different", str(comparison)
    # what else lies between the two may be named, but is not all; gamma's bias is part of "weights"
    named = {d.name for d in comparison.differences} - {"gamma's bias"}
    assert named <= set(case.names)


@pytest.mark.parametrize("fault", [NegatedRelevance, InGradientForm])
def test_the_bias_share_explains_no_other_fault(fault: type) -> None:
    case = replace(CASES["bias share, by hand"](), fault=fault)
    assert case.broken().compared().verdict == "different"


def test_a_stabilizer_at_additions_is_not_named_where_there_are_none() -> None:
    """A fault in gradient form is no such thing, though the relevance form does not have it."""
    case = merged_in_zennit()
    exact = replace(case, model=exact_norms(case.model), fault=InGradientForm).broken()
    assert exact.compared().verdict == "different"


def test_every_known_difference_has_a_case() -> None:
    assert {name for make in CASES.values() for name in make().names} == {d.name for d in KNOWN}


IN_FLOAT32 = [  # larger than rounding there
    "gamma's bias, Captum",
    "unsigned epsilon, by hand",
    "score, zennit",
    "quadratic mean, LRP",
    "bias share, by hand",
    "weights, Captum's gamma",
    "doubled, Captum",
    "doubled, zennit",
    "batch norm apart, LRP",
    "rewritten, gamma",
    "gamma's bias and sign, LRP",
    "score and gamma's bias, LRP",
]


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_it_is_named_in_float32_too(name: str) -> None:
    case = CASES[name]().in_float32()
    comparison = case.compared()
    assert_known(comparison, case.names)
    assert "in float64" in comparison.explanation
    assert comparison.dtype == "float32"


@pytest.mark.parametrize("name", ["max pools, Captum", "merged eps, zennit"])
def test_a_difference_below_rounding_is_none(name: str) -> None:
    assert_known(CASES[name]().in_float32().compared(), ())


def test_three_differences_at_once_are_all_named() -> None:
    model, given = build(normed, 1), rules(CONVOLUTIONS, GammaRule, stabilizer=0.1)
    theirs = rules(CONVOLUTIONS, GammaRule, stabilizer=Additive(0.1), bias="captum")
    reference = LRP(model, theirs, merge_batch_norm=False)
    assert_known(
        compare(model, IMAGES, TARGET, given, reference), (GAMMA, SIGN_OF_STABILIZER, APART)
    )


# Networks and oracles ---------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["captum", "captum_driver"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_stock_captum_doubles_relevance_in_resnet18(reference: str, dtype: torch.dtype) -> None:
    model = build(lambda: resnet18(num_classes=4), 0, dtype)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = presets.epsilon()(model)
    comparison = compare(model, x, TARGET, given, reference)
    assert_known(comparison, (DOUBLED,))
    assert comparison.first.name == comparison.differences[0].where == "layer4.1.add_0"
    broken = compare(model, x, TARGET, faulty(given, {"fc": InGradientForm}), reference)
    assert (broken.verdict, broken.first.name) == ("different", "fc")


def merged_by_hand(model: nn.Module, x: Tensor, divided: bool) -> tuple[Tensor, Tensor]:
    """Score and relevance (epsilon 0.1) of convolution, batch norm, ReLU and a linear layer.

    From dense matrices, with the batch norm written into the convolution; ``divided`` by
    sqrt(1 + eps) once more, as by a batch norm of unit variance that is left behind.
    """
    layer, norm, _, _, last = model
    conv = copy.deepcopy(layer).requires_grad_(False)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight.mul_(scale.detach()[:, None, None, None])
    conv.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
    z = conv(x)
    a = torch.relu(z / math.sqrt(1 + norm.eps) if divided else z).flatten(1)
    R = torch.zeros(len(x), 4, dtype=x.dtype)
    R[:, TARGET] = score = last(a)[:, TARGET].detach()
    rule = partial(dense.batch, partial(dense.epsilon, epsilon=0.1))
    R = rule(dense.dense_layer(last, a.shape[1:]), a, R, dense.identity).reshape(z.shape)
    return score, rule(dense.dense_layer(conv, x.shape[1:]), x, R, dense.identity)


def test_who_is_right_about_merged_batch_norms() -> None:
    """zennit's network has another output than the model; this package's has not."""
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        )
    )
    given = rules(("0", "4"), EpsilonRule, epsilon=0.1)
    comparison = compare(model, IMAGES, TARGET, given, "zennit")
    assert_known(comparison, (MERGED,))
    assert (comparison.first.name, comparison.first.direction) == ("0", "forward")

    (score, relevance), (other_score, other) = (
        merged_by_hand(model, IMAGES, divided) for divided in (False, True)
    )
    assert relative_error(other, relevance) > 1e-6
    assert relative_error(comparison.relevances[0], relevance) < 1e-12
    assert relative_error(comparison.reference_relevances[0], other) < 1e-12

    scores, theirs = (
        torch.tensor(numbers, dtype=torch.float64)
        for numbers in (comparison.scores, comparison.reference_scores)
    )
    assert relative_error(score, model(IMAGES)[:, TARGET]) < 1e-12
    assert relative_error(scores, score) < 1e-12
    assert relative_error(theirs, other_score) < 1e-12
    assert relative_error(theirs, score) > 1e-6


# Rounding, and what is not finite ---------------------------------------------------------------


def cancelling(by: float, dtype: torch.dtype) -> nn.Module:
    """A batch norm takes away the large number that the convolution adds."""
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        ),
        dtype=torch.float64,
    )
    with torch.no_grad():
        model[0].bias.add_(by)
        model[1].running_mean.add_(by)
    return exact_norms(model).to(dtype)


CANCELLING = rules(("0", "4"), EpsilonRule, epsilon=0.01)


@pytest.mark.parametrize("reference", ["zennit", "float64"])
def test_what_float64_takes_away_is_rounding(reference: str) -> None:
    x = IMAGES.float()
    comparison = compare(cancelling(1e3, torch.float32), x, TARGET, CANCELLING, reference)
    assert comparison.verdict == "rounding", str(comparison)
    assert comparison.differences == ()
    assert (comparison.first.name, comparison.first.direction) == ("0", "forward")
    assert "rounding" in comparison.explanation and "float64" in comparison.explanation
    assert comparison.overall.relative_l2 > comparison.tolerance
    small = compare(cancelling(0.0, torch.float32), x, TARGET, CANCELLING, reference)
    assert small.verdict == "equal"
    exact = compare(cancelling(1e3, torch.float64), IMAGES, TARGET, CANCELLING, reference)
    assert exact.verdict == "equal"


def test_rounding_hides_neither_a_fault_nor_a_known_difference() -> None:
    model, x = cancelling(1e3, torch.float32), IMAGES.float()
    right = LRP(model, CANCELLING)
    broken = faulty(CANCELLING, {"4": scaled_by(0.5)})
    assert compare(model, x, TARGET, broken, right).verdict == "different"
    gamma = rules(("0", "4"), GammaRule, bias="captum")
    comparison = compare(model, x, TARGET, gamma, "zennit")
    assert_known(comparison, (GAMMA,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_against_float64(dtype: torch.dtype) -> None:
    x, at_pools = IMAGES.to(dtype), rules(CONVOLUTIONS, EpsilonRule, epsilon=0.1)
    comparison = compare(build(pooled, 1, dtype), x, TARGET, at_pools, "float64")
    assert comparison.verdict == "equal", str(comparison)
    assert comparison.dtype == str(dtype).removeprefix("torch.")
    assert comparison.reference_relevances[0].dtype == torch.float64
    assert 1e-4 < comparison.overall.relative_l2 < 0.05
    worse = compare(cancelling(30.0, dtype), x, TARGET, CANCELLING, "float64")
    assert worse.verdict == "rounding", str(worse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_fault_is_found_in_half_precision(dtype: torch.dtype) -> None:
    model, x = cancelling(0.0, dtype), IMAGES.to(dtype)
    broken = faulty(CANCELLING, {"0": scaled_by(0.5)})
    comparison = compare(model, x, TARGET, broken, LRP(model, CANCELLING))
    assert (comparison.verdict, comparison.first.name) == ("different", "0")


def with_dead_neurons() -> tuple[nn.Module, Tensor]:
    """A layer without bias, and a first sample of zeros: all its sums are exactly 0."""
    model = build(lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), 1)
    return model, X * (torch.arange(len(X)) > 0)[:, None]


UNSTABLE = rules(("0", "2"), EpsilonRule, epsilon=0.0, stabilizer=Identity())


@pytest.mark.parametrize("reference", ["zennit", "captum_driver", "modified_forward"])
def test_a_reference_that_is_not_finite(reference: str) -> None:
    model, x = with_dead_neurons()
    comparison = compare(model, x, TARGET, UNSTABLE, reference)
    assert comparison.verdict == "reference not finite"
    overall = comparison.overall
    numbers = [overall.max_absolute, overall.relative_l2, overall.cosine, overall.pearson]
    assert [*numbers, overall.spearman, overall.top_overlap] == [None] * 6
    assert (overall.nonfinite, overall.reference_nonfinite) == (0, 6)
    assert overall.total is not None and overall.reference_total is None
    assert f"{reference} has 6 values that are NaN or Inf" in comparison.explanation
    assert comparison.first.name == "0"
    assert json.loads(comparison.to_json())["overall"]["reference_nonfinite"] == 6
    stable = rules(("0", "2"), EpsilonRule, epsilon=1e-12)
    assert compare(model, x, TARGET, stable, reference).verdict == "equal"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_of_a_function_that_is_not_finite(value: float) -> None:
    model, given = build(stack, 1), rules(STACK, EpsilonRule, epsilon=0.1)

    def one(model: nn.Module, x: Tensor, target: int) -> Tensor:
        relevance = right(model, x, target)
        relevance[2, 3] = value
        return relevance

    comparison = compare(model, X, TARGET, given, one)
    assert comparison.verdict == "reference not finite"
    assert (comparison.overall.nonfinite, comparison.overall.reference_nonfinite) == (0, 1)


class Infinite:
    """What the layer hands down is not finite, in gradient form only."""

    def coefficient(self, op, x, z, c):
        return super().coefficient(op, x, z, c) / 0


def test_nan_on_our_side_only_is_a_difference() -> None:
    model, given = build(stack, 1), rules(STACK, EpsilonRule, epsilon=0.1)
    broken = faulty(given, {"2": Infinite})
    for reference in (LRP(model, given), "captum_driver"):
        comparison = compare(model, X, TARGET, broken, reference)
        assert comparison.verdict == "different"
        assert (comparison.first.name, comparison.first.direction) == ("2", "backward")
        assert comparison.overall.relative_l2 is None
        assert comparison.overall.nonfinite > 0 == comparison.overall.reference_nonfinite
    both = compare(model, X, TARGET, broken, LRP(model, broken, nonfinite="ignore"))
    assert both.verdict == "reference not finite"
    assert both.overall.nonfinite == both.overall.reference_nonfinite


# What a user meets ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_resnet18_without_any_rules_under_captum(dtype: torch.dtype) -> None:
    """Captum's epsilon at the average pool comes before the first addition."""
    model = build(lambda: resnet18(num_classes=4), 0, dtype)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_known(compare(model, x, TARGET, None, "captum"), (DEFAULTS, DOUBLED))


def test_batch_norms_merged_on_our_side_only() -> None:
    """Captum cannot merge them; whoever asks for it anyway is told what that changes."""
    model, given = build(normed, 1), rules(("0", "1", "3", "4", "7"), EpsilonRule)
    assert_known(compare(model, IMAGES, TARGET, given, "captum"), ())
    merged = compare(model, IMAGES, TARGET, given, "captum", merge_batch_norm=True)
    assert_known(merged, (APART,))


@pytest.mark.parametrize("reference", ["captum", "captum_driver"])
def test_captums_own_module_for_additions(reference: str) -> None:
    """What Captum's documentation asks for; it divides by z + 1e-9 sign z there."""
    model, given = build(lambda: Skip(Addition_Module()), 1), rules(("a", "b", "c"), EpsilonRule)
    comparison = compare(model, X, TARGET, given, reference)
    assert_known(comparison, (DEFAULTS,) if reference == "captum" else ())


def test_a_fault_is_found_in_spite_of_merged_batch_norms() -> None:
    """The 5e-6 that zennit changes in the forward pass is not what tells the two apart."""
    case = merged_in_zennit()
    for model in (case.model, exact_norms(case.model)):
        comparison = replace(case, model=model).broken().compared()
        assert (comparison.verdict, comparison.first.name) == ("different", case.layer)


def test_an_lrp_in_another_dtype_is_converted() -> None:
    wide, narrow, given = build(stack, 1), build(stack, 1).float(), rules(STACK, GammaRule)
    for model, x, other in ((narrow, X.float(), wide), (wide, X, narrow)):
        comparison = compare(model, x, TARGET, given, LRP(other, given))
        assert comparison.reference_relevances[0].dtype == x.dtype
        assert comparison.overall.relative_l2 < 1e-5


def test_a_stabilizer_for_both_sides_reaches_the_lrp_too() -> None:
    model = build(stack, 1)
    ours, theirs = (rules(STACK, GammaRule, stabilizer=s) for s in (1e-6, 0.3))
    assert compare(model, X, TARGET, ours, LRP(model, theirs)).verdict == "different"
    assert compare(model, X, TARGET, ours, LRP(model, theirs), stabilizer=0.5).verdict == "equal"


def test_inputs_on_the_edge_of_the_box_bring_no_warning() -> None:
    """Black and white pixels are; a warning would be an error here."""
    model, x = build(pooled, 1), IMAGES.clamp(-1, 1)
    box = (["0"], ZBoxRule, {"low": -1.0, "high": 1.0})
    ours = [box, *rules(CONVOLUTIONS[1:], GammaRule)]
    theirs = [box, *rules(CONVOLUTIONS[1:], GammaRule, bias="captum")]
    assert_known(compare(model, x, TARGET, ours, LRP(model, theirs)), (GAMMA,))


def test_rounding_that_float64_does_not_quite_take_away() -> None:
    """It shrinks with the unit roundoff, but is amplified past the usual tolerance there too."""
    model, x = cancelling(1e5, torch.float32), IMAGES.float()
    comparison = compare(model, x, TARGET, CANCELLING, "zennit")
    assert comparison.verdict == "rounding", str(comparison)


def test_a_rule_that_differs_in_one_layer_only_is_located() -> None:
    model, ours = build(stack, 1), rules(STACK, GammaRule)
    theirs = [*rules(("0", "4"), GammaRule), *rules(("2",), GammaRule, bias="captum")]
    comparison = compare(model, X, TARGET, ours, LRP(model, theirs))
    assert comparison.first.name == "2"
