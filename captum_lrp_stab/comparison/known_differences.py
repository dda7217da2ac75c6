"""The known differences of meaning, and how each is removed from our side or the reference's.

A difference is not guessed from the results: the run is repeated with that one meaning changed, and
it is named only if the results then agree. What cannot be removed, a reference that doubles
relevance at additions, is shown at the addition itself (see ``doubled_at``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.comparison.agreement import relative_difference
from captum_lrp_stab.comparison.base import TINY, Reference
from captum_lrp_stab.comparison.captum_reference import CaptumReference, captums_own
from captum_lrp_stab.comparison.pair import Divergence, Pair
from captum_lrp_stab.comparison.references import ModifiedForwardReference
from captum_lrp_stab.comparison.zennit_reference import ZennitReference
from captum_lrp_stab.dispatch.operation import Operation, names_of
from captum_lrp_stab.operations.calls import TorchCall, is_in_place, out_of_place
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.modified_forward import ModifiedForward
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.captum_rules import translate
from captum_lrp_stab.rules.kernel import Group
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule, PassRule
from captum_lrp_stab.stabilizers import Additive, RootMeanSquare, Signed
from captum_lrp_stab.task import Change, Task, remade
from captum_lrp_stab.tensors.step import Step


@dataclass(frozen=True)
class KnownDifference:
    """A difference of meaning between implementations, or a known bug of one of them."""

    name: str
    meaning: str
    where: str = ""  # the operation at which it was shown, if it is a matter of one


GAMMA_BIAS = KnownDifference(
    "gamma's bias",
    "the gamma rule can scale a positive bias with the weights (zennit, this package's default) or "
    "leave it as it is (Captum; GammaRule(bias='captum'))",
)
SIGNED_EPSILON = KnownDifference(
    "signed against unsigned epsilon",
    "one side adds epsilon with the sign of z, the other as it is, z + epsilon, which has a pole "
    "at z = -epsilon",
)
NORMALISED_OUTPUT = KnownDifference(
    "normalised output",
    "one side starts from 1, the other from the score: they differ by the score as a factor",
)
QUADRATIC_MEAN = KnownDifference(
    "batch-wide quadratic mean",
    "the quadratic mean in a stabilizer is taken of each sample, or of the whole batch, which "
    "makes the result of one picture depend on the others",
)
BIAS_SHARE = KnownDifference(
    "bias share",
    "one side counts the bias in the denominator, so that it absorbs a share of relevance; the "
    "other leaves it out and propagates that share too",
)
DOUBLED_ADDITION = KnownDifference(
    "doubled at a functional addition",
    "the reference sees modules only, and gives all relevance of a sum to each of its summands; "
    "what lies below is not comparable",
)
MERGED_EPSILON = KnownDifference(
    "eps of merged batch norms",
    "zennit before 1.0 merges a batch norm into the layer before it and leaves eps in the batch "
    "norm, which then divides by sqrt(1 + eps) once more: each changes the network's values by "
    "half of eps",
)
UNMERGED_BATCH_NORM = KnownDifference(
    "batch norm as a layer of its own",
    "one side treats a layer and its batch norm as one layer, the other each for itself",
)
ADDITION_STABILIZER = KnownDifference(
    "stabilizer at additions",
    "the reference divides by z + 1e-6 sign z at additions too, where LRP-0 needs no stabilizer",
)
CAPTUM_SIGNS = KnownDifference(
    "Captum's rules change the weights alone",
    "Captum's gamma and alpha1-beta0 rules change the weights, whatever the signs of the layer's "
    "bias, inputs and outputs, which is the rule only where all of them are positive",
)
CAPTUM_DEFAULTS = KnownDifference(
    "Captum's epsilon where there is no rule",
    "Captum divides by z + 1e-9 sign z at layers without a rule too: at max pools, through which "
    "relevance only has to be routed, at average pools and batch norms",
)
MODIFIED_FORWARD = KnownDifference(
    "modified forward pass",
    "the form that rewrites the forward pass computes s(z) in the place of z, so that a stabilizer "
    "changes the values of every layer above",
)
SIGNED_STABILIZER = KnownDifference(
    "signed against unsigned stabilizer",
    "the same as with epsilon, in the stabilizer of another rule: Signed on one side, Additive on "
    "the other",
)
FIRST_LAYER = KnownDifference(
    "first layer",
    "zennit's composites take the first module of the model's definition for the first layer, this "
    "package's presets every layer that reads an input of the model",
)
KNOWN = tuple(value for value in list(vars().values()) if isinstance(value, KnownDifference))
"""All known differences."""


@dataclass(frozen=True)
class Trial:
    """What runs on either side: this package on ``ours``, the reference on ``theirs``."""

    ours: Task
    theirs: Task
    reference: Reference
    is_normalised: bool = False  # the reference's relevance is multiplied by the score


ADDITIONS = ("add", "sub")
"""The kinds of operations that stand for additions."""

Removal = Callable[[Trial, Sequence[Operation]], Trial | None]
"""From a trial and its operations to the trial without a difference; None where there is none."""


def _by_rule(change: Change) -> Removal:
    """Return the removal that changes our rules, where the change makes any difference."""

    def removal(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
        rules = (operation.rule for operation in operations if operation.rule is not None)
        acts = any(change(rule) is not rule for rule in rules)
        return replace(trial, ours=trial.ours.changing(change)) if acts else None

    return removal


def _other_gamma_bias(rule: Rule) -> Rule:
    if type(rule) is not GammaRule or not rule.gamma:
        return rule
    return remade(rule, bias="captum" if rule.bias == "scaled" else "scaled")


def _other_epsilon_sign(rule: Rule) -> Rule:
    if type(rule) is EpsilonRule and rule.epsilon:
        return remade(rule, signed=not rule.signed)
    return rule


def _other_stabilizer_sign(rule: Rule) -> Rule:
    stabilizer = rule.stabilizer
    if isinstance(stabilizer, Signed) and not stabilizer.relative:
        return rule.with_stabilizer(Additive(stabilizer.epsilon))
    if isinstance(stabilizer, Additive):
        return rule.with_stabilizer(Signed(stabilizer.epsilon))
    return rule


def _other_quadratic_mean(rule: Rule) -> Rule:
    stabilizer = rule.stabilizer
    if not isinstance(stabilizer, RootMeanSquare):
        return rule
    return rule.with_stabilizer(replace(stabilizer, per_sample=not stabilizer.per_sample))


class _WithoutBias(Rule):
    """A rule without the bias in its denominators, mixed in before the rule's class."""

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return the rule's groups without a bias."""
        return tuple(
            group._replace(terms=tuple(term._replace(bias=None) for term in group.terms))
            for group in super().groups(op, x)
        )


def _without_bias(rule: Rule) -> Rule:
    if isinstance(rule, (PassRule, _WithoutBias)):
        return rule
    made: Any = type(type(rule).__name__, (_WithoutBias, type(rule)), {})
    other: Rule = made.__new__(made)
    other.__dict__.update(vars(rule))
    return other


def _without_stabilizer(rule: Rule) -> Rule:
    tiny = Signed(TINY)
    if "epsilon" in rule.parameters():
        return remade(rule, epsilon=0.0, stabilizer=tiny)
    return rule.with_stabilizer(tiny)


def _as_captum(model: nn.Module, rule: Rule) -> Rule:
    own, module = captums_own(rule), dict(model.named_modules()).get(rule.layer)
    if own is None or module is None or isinstance(rule, EpsilonRule):
        return rule
    return translate(own, rule.layer, module)


def _captums_signs(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    if not isinstance(trial.reference, CaptumReference) or not trial.reference.own_rules:
        return None
    return _by_rule(partial(_as_captum, trial.ours.model))(trial, operations)


def _captums_defaults(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    reference = trial.reference
    if not isinstance(reference, CaptumReference) or reference.exact_defaults:
        return None
    return replace(trial, reference=CaptumReference(exact_defaults=True))


def _exactly_merged(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    reference = trial.reference
    if not isinstance(reference, ZennitReference) or reference.exact_merge:
        return None
    return replace(trial, reference=ZennitReference(reference.composite, exact_merge=True))


def _has_composite(reference: Reference) -> bool:
    """Return whether a reference has zennit's rules, not this package's."""
    return isinstance(reference, ZennitReference) and reference.composite is not None


def _first_by_definition(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    preset = trial.ours.rules
    if not _has_composite(trial.reference) or not isinstance(preset, Preset):
        return None
    ours = replace(trial.ours, rules=preset.by_definition)
    return replace(trial, ours=ours) if preset.first_types else None


class StabilizedAdditions(GradientForm):
    """The gradient form, with zennit's stabilizer at additions: c times z / (z + 1e-6 sign z)."""

    has_factors = False  # step by step, as zennit does

    def mixing(self, operation: Operation, call: TorchCall) -> Any:
        """Run an operation that mixes its inputs."""
        if operation.kind not in ADDITIONS:
            return super().mixing(operation, call)
        z: Tensor = call.changed(out_of_place(call.func)).run()
        share = z.detach() / Signed(1e-6)(z.detach())
        out = Step.apply(lambda c: (c * share,), z.detach(), z)
        return call.args[0].copy_(out) if is_in_place(call.func) else out


def _stabilized_additions(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    if not _has_composite(trial.reference) or not any(o.kind in ADDITIONS for o in operations):
        return None
    return replace(trial, ours=replace(trial.ours, form=StabilizedAdditions))


def _normalised(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    return replace(trial, is_normalised=True)


def _unmerged(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    merge = not trial.ours.merge_batch_norm
    if not merge and not any(operation.batch_norm for operation in operations):
        return None
    return replace(trial, ours=replace(trial.ours, merge_batch_norm=merge))


def _plain_forward(trial: Trial, operations: Sequence[Operation]) -> Trial | None:
    """Take the stabilizers from both sides, if one of them modifies its forward pass by them."""
    rewritten = isinstance(trial.reference, ModifiedForwardReference)
    if not rewritten and trial.ours.form is not ModifiedForward:
        return None
    ours, theirs = (side.changing(_without_stabilizer) for side in (trial.ours, trial.theirs))
    return replace(trial, ours=ours, theirs=theirs)


REMOVALS: dict[KnownDifference, Removal] = {
    NORMALISED_OUTPUT: _normalised,
    MERGED_EPSILON: _exactly_merged,
    FIRST_LAYER: _first_by_definition,
    GAMMA_BIAS: _by_rule(_other_gamma_bias),
    SIGNED_EPSILON: _by_rule(_other_epsilon_sign),
    SIGNED_STABILIZER: _by_rule(_other_stabilizer_sign),
    QUADRATIC_MEAN: _by_rule(_other_quadratic_mean),
    UNMERGED_BATCH_NORM: _unmerged,
    ADDITION_STABILIZER: _stabilized_additions,
    CAPTUM_DEFAULTS: _captums_defaults,
    CAPTUM_SIGNS: _captums_signs,
    BIAS_SHARE: _by_rule(_without_bias),
    MODIFIED_FORWARD: _plain_forward,
}
"""How each difference is removed, the likeliest and cheapest first."""


def doubled_at(pair: Pair, first: Divergence, tolerance: float) -> str | None:
    """Return the addition at which two sides part, if the reference doubles relevance there.

    That is, if it gives all the relevance of the sum to a summand, as it does to each.
    """
    named = dict(zip(names_of(pair.operations), pair.operations, strict=True))
    for name in first.candidates if first.direction == "backward" else ():
        addition = named[name]
        sums = pair.ours.outputs.get(addition.name)
        if not sums or addition.kind not in ADDITIONS or len(addition.reads) < 2:
            continue
        given = (_relevance_of(summand, pair) for summand in addition.reads)
        if any(_is_all(relevance, sums[0].relevance, tolerance) for relevance in given):
            return name
    return None


def _relevance_of(operation: Operation, pair: Pair) -> list[Tensor] | None:
    """Return the reference's relevance of an operation, or of what it moves or passes unchanged."""
    uses = pair.reference.outputs.get(operation.name)
    if uses:
        return uses[0].relevance
    if operation.treatment.changes_nothing and len(operation.reads) == 1:
        return _relevance_of(operation.reads[0], pair)
    return None


def _is_all(given: list[Tensor] | None, sums: list[Tensor] | None, tolerance: float) -> bool:
    """Return whether a summand has all the relevance of a sum, where it has any at all."""
    if given is None or sums is None or [t.shape for t in given] != [t.shape for t in sums]:
        return False
    if not any(bool(t.any()) for t in given):
        return False
    expected = [torch.where(t != 0, s, 0.0) for t, s in zip(given, sums, strict=True)]
    difference = relative_difference(given, expected)
    return difference is not None and difference <= tolerance
