"""Each known difference of meaning, provoked, with what takes it away and a fault on top."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import zennit.types
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule
from captum.attr._utils.lrp_rules import GammaRule as CaptumGammaRule
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, ZeroRule, ZPlusRule, presets
from captum_lrp_stab.stabilizers import Additive, RootMeanSquare
from tests.helpers.faults import Blocks, InGradientForm, normed, pooled
from tests.helpers.known_cases import (
    APART,
    CONVOLUTIONS,
    DEFAULTS,
    DOUBLED,
    GAMMA,
    IMAGES,
    MERGE,
    MERGED,
    STACK,
    Case,
    Skip,
    X,
    by_hand,
    exact_norms,
    merged_in_zennit,
    right,
    rules,
    signed,
    stack,
)
from tests.helpers.networks import build


def positive(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    return model


# Cases ------------------------------------------------------------------------------------------


SIGN = "signed against unsigned epsilon"


SIGN_OF_STABILIZER = "signed against unsigned stabilizer"


SCORE = "normalised output"


MEAN = "batch-wide quadratic mean"


BIAS = "bias share"


SUM = "stabilizer at additions"


WEIGHTS = "Captum's rules change the weights alone"


FORWARD = "modified forward pass"


FIRST = "first layer"


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


class Backwards(nn.Module):
    """Layers defined in the order in which they run, or in the other."""

    def __init__(self, backwards: bool = True) -> None:
        super().__init__()
        layers = [("stem", nn.Conv2d(3, 4, 3)), ("top", nn.Conv2d(4, 4, 3)), ("act", nn.ReLU())]
        for name, layer in layers[::-1] if backwards else layers:
            self.add_module(name, layer)
        self.flat, self.head = nn.Flatten(), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.top(self.act(self.stem(x)))))


def defined_backwards() -> Case:
    model, in_order = build(Backwards, 1), build(lambda: Backwards(False))
    in_order.load_state_dict(model.state_dict())
    reference, without = zennit.composites.EpsilonPlusFlat(), ({"model": in_order}, ())
    given = presets.epsilon_plus_flat()
    return Case((FIRST,), model, IMAGES, given, reference, (without,), "top")


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
    "first layer, zennit": defined_backwards,
    "rewritten, gamma": lambda: rewritten(GammaRule, stabilizer=0.1),
    "rewritten, epsilon": lambda: rewritten(EpsilonRule, epsilon=0.1),
    "gamma's bias and sign, LRP": gamma_and_sign,
    "score and gamma's bias, LRP": score_and_gamma,
    "max pools and weights, Captum": pools_and_weights,
    "gamma's bias and batch norm apart, LRP": gamma_and_apart,
    "merged eps and sums, zennit": merged_and_sums,
    "merged eps and doubled, zennit": merged_and_doubled,
}
