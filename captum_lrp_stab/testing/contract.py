"""The properties of a rule or a stabilizer that works in every form and driver of this package.

Each check of :mod:`captum_lrp_stab.testing` tests one property and says, where it does not hold, on
which layer, by how much, and what to look at.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum.attr import LRP as CaptumLRP
from torch import Tensor, nn

from captum_lrp_stab.assignment.attach import attach_rules
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.errors import StabilizerWarning
from captum_lrp_stab.lrp import LRP
from captum_lrp_stab.rules import affine_builders
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.standard import ZeroRule
from captum_lrp_stab.stabilizers import Identity, Signed, Stabilizer

_TOLERANCE = 1e-9  # in float64
_HALF = (torch.float16, torch.bfloat16)
DTYPES = (*_HALF, torch.float32, torch.float64)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the warning that an epsilon was raised to the least of a dtype, as it may be here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabilizerWarning)
        yield


@dataclass(frozen=True)
class Case:
    """A rule on a layer, in float64, with values to try it on."""

    rule: Rule
    layer: nn.Module
    op: Affine
    x: Tensor  # (N, *in_features), of either sign
    z: Tensor  # layer(x)
    R: Tensor  # relevance of z
    other: Tensor  # some other relevance of z

    @staticmethod
    def of(rule: Rule, layer: nn.Module, x: Tensor) -> "Case":
        """Return a case with random relevance."""
        layer, x = copy.deepcopy(layer).double(), x.double()
        with torch.no_grad():
            z = layer(x)
        op = affine_builders.of_module(layer, x)
        assert op is not None, f"{type(layer).__name__} is no layer with a rule"
        generator = torch.Generator().manual_seed(1)
        R, other = torch.randn((2, *z.shape), generator=generator, dtype=z.dtype).to(z.device)
        return Case(rule, layer, op, x, z, R, other)

    def relevance(self, R: Tensor) -> Tensor:
        """Return the rule's relevance of x."""
        with torch.no_grad():
            return self.rule.relevance(self.op, self.x, self.z, R)

    def coefficient(self, c: Tensor) -> Tensor:
        """Return the rule's coefficient of x, or relevance if it has no coefficient."""
        with torch.no_grad():
            return self.rule.coefficient(self.op, self.x, self.z, c)

    def network(self) -> tuple[nn.Sequential, NameMap]:
        """Return a copy of the layer as a network with one vector of outputs, and its name_map."""
        model = nn.Sequential(copy.deepcopy(self.layer), nn.Flatten())
        return model, [(["0"], type(self.rule), self.rule.parameters())]

    def says(self, problem: str, remedy: str) -> str:
        """Return a message."""
        return f"{self.rule!r} on {self.layer}: {problem}; {remedy}"


def layers() -> list[tuple[nn.Module, Tensor]]:
    """Return small layers, each with an input in [-1, 1], the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach other devices
        return [
            (nn.Linear(12, 5), 2 * torch.rand(3, 12) - 1),
            (nn.Conv2d(3, 4, 3, padding=1, stride=2), 2 * torch.rand(2, 3, 6, 5) - 1),
            (nn.ConvTranspose1d(12, 3, 3), 2 * torch.rand(2, 12, 5) - 1),
        ]


def relevance_has_the_inputs_shape(case: Case) -> None:
    """One relevance for each input."""
    found = case.relevance(case.R)
    assert found.shape == case.x.shape and found.dtype == case.x.dtype, case.says(
        f"relevance is {tuple(found.shape)}, {found.dtype}, for an input of "
        f"{tuple(case.x.shape)}, {case.x.dtype}",
        "build it from groups(op, x) only",
    )
    assert found.isfinite().all(), case.says(
        f"{int((~found.isfinite()).sum())} of {found.numel()} relevances are NaN or Inf",
        "look at the denominators of the groups: they may be empty sums",
    )
    assert found.any(), case.says("all relevance is 0", "look at the terms of the groups")


def relevance_is_linear(case: Case) -> None:
    """Twice the relevance of the output is twice the relevance of the input."""
    found = case.relevance(2 * case.R - 3 * case.other)
    wanted = 2 * case.relevance(case.R) - 3 * case.relevance(case.other)
    problem = "relevance is not linear in the relevance of the output"
    _same(found, wanted, case, problem, "a rule may depend on x and w, and not on R")


def samples_do_not_mix(case: Case) -> None:
    """A sample has the same relevance alone as in a batch."""
    whole, remedy = case.relevance(case.R), "take means and maxima over a sample, not dimension 0"
    for n in range(len(case.x)):
        one = slice(n, n + 1)
        alone = replace(case, x=case.x[one], z=case.z[one]).relevance(case.R[one])
        problem = f"sample {n} has another relevance alone than in its batch"
        _same(alone, whole[one], case, problem, remedy)


def forms_agree(case: Case) -> None:
    """Relevance form and gradient form give the same relevance."""
    found = case.coefficient(case.R)
    if case.rule.proportional:
        found = found * case.x
    remedy = "set proportional = False if relevance is not proportional to x"
    _same(found, case.relevance(case.z * case.R), case, "the two forms differ", remedy)


def nothing_is_left_behind(case: Case) -> None:
    """A call changes neither layer, input nor rule, and the next one gives the same bits."""
    given = {"input": case.x, "output": case.z, "relevance": case.R, "weight": case.op.weight}
    if case.op.bias is not None:
        given["bias"] = case.op.bias
    before = {name: t.clone() for name, t in given.items()}
    kept = copy.deepcopy(vars(case.rule))
    first = case.relevance(case.R)
    case.relevance(case.other)
    again = case.relevance(case.R)
    remedy = "keep parameters only on a rule, and write to no tensor that it is given"
    for name, t in given.items():
        assert torch.equal(t, before[name]), case.says(f"the layer's {name} has changed", remedy)
    same = torch.allclose(first, again, rtol=0, atol=0, equal_nan=True)
    assert same, case.says("a second call gives another result", remedy)
    for name, value in vars(case.rule).items():
        assert name in kept, case.says(f"the rule has changed, it now has {name}", remedy)
        assert _is_same(value, kept[name]), case.says(f"the rule's {name} has changed", remedy)


def stabilizer_is_used(case: Case) -> None:
    """A stabilizer that makes every denominator huge takes nearly all relevance away."""
    damped = replace(case, rule=case.rule.with_stabilizer(Signed(1e6))).relevance(case.R)
    was, now = float(case.relevance(case.R).abs().sum()), float(damped.abs().sum())
    assert now < 1e-2 * was, case.says(
        f"under Signed(1e6) the absolute sum of relevance is still {now / was:.3g} of what it was",
        "the rule does not use its stabilizer: leave stabilize(z, magnitude) to the base class, or "
        "call super().stabilize in it",
    )


def conserves(case: Case) -> None:
    """Without bias and stabilizer, each sample keeps its sum of relevance."""
    found = replace(case, rule=case.rule.with_stabilizer(Identity())).relevance(case.R)
    sums = [t.flatten(1).sum(1) for t in (found, case.R)]
    off = float((sums[0] - sums[1]).abs().max() / case.R.abs().sum())
    assert off <= _TOLERANCE, case.says(
        f"without bias and stabilizer the sum of relevance changes by {off:.3g} of its absolute "
        "sum",
        "terms and denominators differ; give conserves=False if the rule is meant to absorb",
    )


def drivers_agree(case: Case) -> None:
    """``LRP`` and stock Captum give what the formula gives, by a name_map."""
    flat = case.z.flatten(1)
    target = flat.abs().argmax(1)
    R = torch.zeros_like(flat).scatter(1, target[:, None], flat.gather(1, target[:, None]))
    wanted = case.relevance(R.reshape(case.z.shape))
    model, name_map = case.network()
    remedy = "override groups, not relevance or coefficient alone"
    ours = LRP(model, name_map).attribute(case.x, target=target)
    _same(ours, wanted, case, "captum_lrp_stab.LRP differs from the formula", remedy)
    with attach_rules(model, name_map):
        stock = CaptumLRP(model).attribute(case.x.clone().requires_grad_(), target=target)
    _same(stock.detach(), wanted, case, "stock Captum differs from the formula", remedy)


@_without_warnings()
def half_precision_is_finite(case: Case) -> None:
    """No overflow, underflow or 0/0 in float16 and bfloat16, at an input of 0 neither."""
    for dtype in _HALF:
        model, name_map = case.network()
        x = torch.cat([case.x, torch.zeros_like(case.x[:1])]).to(dtype)
        try:
            found = LRP(model.to(dtype), name_map, nonfinite="ignore").attribute(x, target=0)
        except RuntimeError as error:
            raise AssertionError(
                case.says(f"it fails in {dtype}: {error}", "make what it multiplies with like x")
            ) from error
        assert found.isfinite().all(), case.says(
            f"{int((~found.isfinite()).sum())} relevances are NaN or Inf in {dtype}",
            "avoid constants that underflow in half precision, such as 1e-9",
        )


OF_RULES = (
    nothing_is_left_behind,  # first: what a call changes is changed after it
    relevance_has_the_inputs_shape,
    relevance_is_linear,
    samples_do_not_mix,
    forms_agree,
    stabilizer_is_used,
    drivers_agree,
    half_precision_is_finite,
)


def can_be_made_again(rule: Rule) -> None:
    """Its parameters make an equal rule: so a name_map, a plan and a copy work."""
    try:
        again = type(rule)(**rule.parameters())
    except (AttributeError, TypeError) as error:
        raise AssertionError(
            f"{type(rule).__name__}: {error}; give __init__ named arguments, and keep each as an "
            "attribute of the same name"
        ) from error
    assert repr(again) == repr(rule), (
        f"{rule!r}: made again from its parameters it is {again!r}; keep each argument of "
        "__init__ as an attribute of the same name"
    )


@_without_warnings()
def keeps_shape_and_dtype(s: Callable[[Tensor], Tensor]) -> None:
    """A new tensor of the same shape, dtype and device, the argument as it was."""
    for dtype in DTYPES:
        for shape in (3, 5), (2, 3, 4, 2):
            z = _denominators(shape).to(dtype)
            before = z.clone()
            found = _stabilized(s, z)
            assert isinstance(found, Tensor) and (found.shape, found.dtype, found.device) == (
                z.shape,
                z.dtype,
                z.device,
            ), f"{s!r}: for {shape}, {dtype} it returns {_described(found)}; return one like z"
            assert torch.equal(z, before), f"{s!r} writes to its argument; return a new tensor"
            assert torch.equal(_stabilized(s, z), found), (
                f"{s!r}: a second call gives another result"
            )


@_without_warnings()
def leaves_no_zero(s: Callable[[Tensor], Tensor]) -> None:
    """What is divided by is finite, and not 0 where the denominator is."""
    for dtype in DTYPES:
        z = torch.tensor([[0.0, -0.0, 1.0, -1.0, 100.0, -100.0]], dtype=dtype)
        found = _stabilized(s, z)
        assert found.isfinite().all(), f"{s!r}: not finite for {z.tolist()} in {dtype}"
        assert (found != 0).all(), (
            f"{s!r}: a denominator of 0 stays 0 in {dtype}; add what does not underflow there, or "
            "give protects=False"
        )


def stabilizer_samples_do_not_mix(s: Callable[[Tensor], Tensor]) -> None:
    """A sample's denominators do not depend on the other samples."""
    z = _denominators((4, 3, 2))
    whole = _stabilized(s, z)
    for n in range(len(z)):
        off = float((_stabilized(s, z[n : n + 1]) - whole[n : n + 1]).abs().max())
        assert off <= _TOLERANCE, (
            f"{s!r}: sample {n} differs by {off:.3g} alone and in its batch; take means over the "
            "dimensions after the first, or give per_sample=False"
        )


def claims_hold(s: Stabilizer) -> None:
    """``is_elementwise`` and ``moves_away_from_0`` are true where they are claimed."""
    z = _denominators((3, 8))
    found = _stabilized(s, z)
    if s.moves_away_from_0:
        nearer = (found.abs() < z.abs()) | (found * z < 0)
        assert not nearer.any(), (
            f"{s!r} has moves_away_from_0, but moves {z[nearer][0]:.3g} to {found[nearer][0]:.3g}"
        )
    if s.is_elementwise:
        changed = z.clone()
        changed[:, 0] = 1e3
        assert torch.equal(_stabilized(s, changed)[:, 1:], found[:, 1:]), (
            f"{s!r} has is_elementwise, but a denominator changes with another one"
        )
    again = copy.deepcopy(s)
    assert again == s and repr(again) == repr(s), (
        f"{s!r}: a copy is not equal to it; make the class a frozen dataclass"
    )


def works_in_rules(s: Callable[[Tensor], Tensor]) -> None:
    """LRP-0 with it, on a layer, in both drivers."""
    for layer, x in layers():
        drivers_agree(Case.of(ZeroRule(s), layer, x))


def cases(
    rule: Rule, given: Sequence[tuple[nn.Module, Tensor]] | None, bias: bool = True
) -> Iterator[Case]:
    """Yield the rule on each layer, or on a copy of each without its bias."""
    for layer, x in layers() if given is None else given:
        if not bias and getattr(layer, "bias", None) is not None:
            layer = copy.deepcopy(layer)
            layer.register_parameter("bias", None)
        yield Case.of(rule, layer, x)


def _same(found: Tensor, wanted: Tensor, case: Case, problem: str, remedy: str) -> None:
    off = float((found - wanted).norm() / wanted.norm().clamp(min=1e-300))
    assert off <= _TOLERANCE, case.says(f"{problem}, by {off:.3g} of its norm", remedy)


def _is_same(value: Any, before: Any) -> bool:
    """Return whether a rule's attribute is what a copy of it was."""
    if isinstance(value, Tensor) or isinstance(before, Tensor):
        both = isinstance(value, Tensor) and isinstance(before, Tensor)
        return both and value.shape == before.shape and bool((value == before).all())
    if type(value) is not type(before):
        return False
    if isinstance(value, dict):
        return value.keys() == before.keys() and all(_is_same(value[k], before[k]) for k in value)
    if isinstance(value, (list, tuple)):
        pairs = zip(value, before, strict=False)
        return len(value) == len(before) and all(_is_same(a, b) for a, b in pairs)
    own: Any = type(value).__eq__  # without one of its own, a copy is equal to nothing
    return own is object.__eq__ or bool(value == before)


def _stabilized(s: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return what a rule would get, for contributions that cancel to a third."""
    return s.stabilize(z, 3 * z.abs()) if isinstance(s, Stabilizer) else s(z)


def _denominators(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}, {value.dtype} on {value.device}"
    return f"a {type(value).__name__}"
