"""One attribution from beginning to end: checks, the forward pass, the backward passes.

:func:`propagate` and :func:`propagate_many` are what :class:`captum_lrp_stab.LRP`, the study, the
comparison and the diagnosis call.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch import fallbacks, output_activation
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.fast.parameter_cache import Derived
from captum_lrp_stab.propagation import checks
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.mixed_form import MixedForm, Stretch, stretch_of
from captum_lrp_stab.propagation.observer import Observer
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.propagation.targets import score_of
from captum_lrp_stab.rules.rule_set import Layers, RuleSet
from captum_lrp_stab.tensors import nested


@dataclass(frozen=True)
class Pass:
    """The request of a forward pass: model, inputs, rules, and how relevance is propagated.

    Args:
        model: Any module, in eval mode where it has dropout or batch norm.
        inputs: A tensor ``(N, ...)`` or a tuple of them, floating point.
        additional_forward_args: As in Captum.
        rule_sets: The rule of each operation; several treat attention and batch norm alike.
        form: How relevance is carried.
        strict: Refuse operations that would get their plain gradient.
        skip_output_activation: Explain what the activation that makes the output reads, where there
            is one.
        probes: Layers whose relevance is wanted too.
        observer: Called with each layer.
        optimize: Allow faster computations of the same.
        store: The cache of what is computed from parameters.
        whole: Find out of every operation, not of fallbacks alone, whether relevance reaches it,
            and what it reads.
    """

    model: nn.Module
    inputs: Any
    additional_forward_args: Any = None
    rule_sets: tuple[RuleSet, ...] = field(default_factory=lambda: (RuleSet({}),))
    form: Callable[..., GradientForm] = GradientForm
    strict: bool = False
    skip_output_activation: bool = False
    probes: tuple[Probe, ...] = ()
    observer: Observer | None = None
    optimize: bool = True
    store: Derived | None = None
    whole: bool = False


@dataclass
class Propagation:
    """The result of one attribution."""

    score: Tensor  # (N,), the target's output
    relevances: tuple[Tensor, ...]  # shaped like the inputs
    operations: list[Operation] = field(default_factory=list)

    @property
    def is_finite(self) -> bool:
        """Whether neither the relevance nor the score has NaN or Inf."""
        tensors = (self.score, *self.relevances)
        return all(bool(torch.isfinite(t).all()) for t in tensors)


def propagate(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    additional_forward_args: Any = None,
    *,
    rule_set: RuleSet,
    **options: Any,
) -> Propagation:
    """Propagate relevance from ``target`` to ``inputs``; the model and tensors stay as they are.

    Args:
        model: Any module, in eval mode where it has dropout or batch norm.
        inputs: A tensor ``(N, ...)`` or a tuple of them, floating point.
        target: In one of Captum's forms.
        additional_forward_args: As in Captum.
        rule_set: The rule of each operation.
        **options: Of :class:`Pass`.

    Raises:
        InputError: An input is not a finite floating-point tensor, or the target does not fit.
        ModelError: The model cannot be followed, or the score does not depend on the inputs.
        FallbackError: With ``strict``, an operation has no LRP rule.
    """
    one = Pass(model, inputs, additional_forward_args, (rule_set,), **options)
    (done,) = propagate_many(one, (target,))
    return done


def propagate_many(
    one: Pass, targets: Sequence[Any], after: Callable[[Propagation], None] | None = None
) -> list[Propagation]:
    """Propagate from several targets, and under several sets of rules, after one forward pass.

    Args:
        one: The pass.
        targets: One or more in Captum's target forms.
        after: A callback after each backward pass, while probes and observer hold what they noted
            and the operations have its rules; give an observer with it: without one, a pass that
            is not finite is run again, all of it.

    Returns:
        For each set of rules, one result for each target. Those of one pass list the same
        operations, with the rules of the last set.

    Raises:
        InputError: See :func:`propagate`; likewise the other errors.
    """
    _check(one)
    if not _shares_names(one):
        return _one_by_one(one, targets, after)
    turns = [(v, target) for v in range(len(one.rule_sets)) for target in targets]
    done: list[Propagation] = []
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as ending:
        mode, output, stretch = _forward(one, ending, several=len(turns) > 1)
        if stretch is not None and len(one.rule_sets) > 1:
            del output
            mode.release()
            return _one_by_one(one, targets, after)
        skips = one.skip_output_activation
        left_out = output_activation.to_skip(mode.operations) if skips else frozenset()
        if left_out or stretch is not None:  # known now, and not before
            del output  # and its graph, before there is another
            mode.release()
            again = _Again(mode, stretch, left_out)
            mode, output, _ = _forward(one, ending, several=len(turns) > 1, again=again)
        if one.strict:
            fallbacks.refuse(fallbacks.of(mode.operations))
        for turn, (variant, target) in enumerate(turns, 1):
            mode.take_turn(variant)
            score = score_of(output, target)
            relevances = mode.relevances(score, is_last=turn == len(turns))
            done.append(Propagation(score.detach(), relevances, mode.operations))
            # the faster computations hold for finite values
            if one.optimize and one.observer is None and not _is_finite(done[-1], one.probes):
                break
            if after is not None:
                after(done[-1])
            if turn < len(turns):
                mode.forget_relevance()
        else:
            return done
        del output, score
    return propagate_many(replace(one, optimize=False, store=None), targets, after)


def operations_of(
    model: nn.Module, inputs: Any, additional_forward_args: Any, rule_set: RuleSet
) -> list[Operation]:
    """Return the operations of the model with their rules, from a forward pass alone.

    Raises:
        InputError: An input is not a finite floating-point tensor.
        ModelError: The model cannot be followed.
    """
    return _planned(Pass(model, inputs, additional_forward_args, (rule_set,))).operations


def layers_of_pass(model: nn.Module, inputs: Any, additional_forward_args: Any) -> Layers:
    """Return each use of a layer that takes a rule, from a forward pass alone.

    Raises:
        InputError: An input is not a finite floating-point tensor.
        ModelError: The model cannot be followed.
    """
    return _planned(Pass(model, inputs, additional_forward_args)).assignment.layers


def _planned(one: Pass) -> GradientForm:
    _check(one)
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as ending:
        mode, _, _ = _forward(replace(one, whole=True), ending)
    return mode


def _check(one: Pass) -> None:
    checks.check_model(one.model)
    checks.check_inputs(as_tuple(one.inputs))


def _shares_names(one: Pass) -> bool:
    """Return whether the operations of a pass have the same names under each set of rules.

    A rule on a module without a rule-bearing type gives its name to the functional layers in it.
    """
    if len(one.rule_sets) == 1:
        return True
    modules = dict(one.model.named_modules())

    def naming(rule_set: RuleSet) -> frozenset[str]:
        named = {name: modules[name] for name in rule_set.named if name in modules}
        return frozenset(n for n, m in named.items() if not isinstance(m, types.RuleBearing))

    return len(set(map(naming, one.rule_sets))) == 1


def _one_by_one(
    one: Pass, targets: Sequence[Any], after: Callable[[Propagation], None] | None
) -> list[Propagation]:
    """Propagate under each set of rules after a forward pass of its own."""
    done: list[Propagation] = []
    for rule_set in one.rule_sets:
        done += propagate_many(replace(one, rule_sets=(rule_set,)), targets, after)
    return done


def _is_finite(done: Propagation, probes: Sequence[Probe]) -> bool:
    noted = [R for probe in probes for R in probe.relevances if R is not None]
    return done.is_finite and all(bool(R.isfinite().all()) for R in noted)


# the forward pass --------------------------------------------------------------------------------

_CHECKPOINT = (
    "the model uses activation checkpointing (torch.utils.checkpoint) or saved-tensor hooks, which "
    "run operations again where they cannot be seen; turn them off for the attribution"
)


@dataclass(frozen=True)
class _Again:
    """What a first pass has shown that the second one needs to know."""

    first: GradientForm
    stretch: Stretch | None  # what has to run in relevance form
    left_out: frozenset[int]  # output activations, by their ordinals


def _forward(
    one: Pass, ending: ExitStack, several: bool = False, again: _Again | None = None
) -> tuple[GradientForm, Any, Stretch | None]:
    """Return the form of a pass, the output, and what has to run in relevance form.

    Args:
        one: The pass.
        ending: Releases the form on exit.
        several: Whether several backward passes follow.
        again: What an earlier pass has shown.
    """
    mode = _form(one, again)
    ending.callback(mode.release)
    mode.optimize, mode.store, mode.has_several = one.optimize, one.store, several
    output = None
    try:
        output = _followed(mode, one)
    except Exception:
        if not mode.eager.is_late:
            raise
    # what the rules of modules serve is known now, and not before; or the compiler is loaded
    if mode.assignment.is_late or mode.eager.is_late:
        del output
        mode.restart()
        output = _followed(mode, one)
    mode.refuse_unserved()
    mode.check_pass(output)
    stretch = stretch_of(mode.operations, mode.direct_uses) if mode.direct_uses else None
    mode.settle(output, one.whole)
    if again is not None and again.left_out:
        output_activation.check_same(again.first.operations, mode.operations)
    return mode, output, stretch


def _form(one: Pass, again: _Again | None) -> GradientForm:
    if again is None:
        return one.form(one.model, *one.rule_sets)
    stretch = again.stretch
    form = one.form if stretch is None else partial(MixedForm, stretch=stretch)
    mode = form(one.model, *one.rule_sets)
    mode.left_out = again.left_out
    mode.assignment.know(again.first.assignment)
    return mode


def _followed(mode: GradientForm, one: Pass) -> Any:
    """Return the output of the model, run with the mode active."""
    for probe in one.probes:
        probe.restart()
    if one.observer is not None:
        one.observer.restart()
    stand_ins = mode.prepare(as_tuple(one.inputs), one.probes, one.observer)
    extra = _format_additional_forward_args(one.additional_forward_args) or ()
    extra = nested.mapped(nested.without_graph, tuple(extra))
    try:
        watch = mode.naming.watch(mode.on_input, mode.on_output)
        with mode.eager, watch:
            with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINT), mode:
                return one.model(*stand_ins, *extra)
    except RuntimeError as error:
        if str(error) == _CHECKPOINT:
            raise ModelError(_CHECKPOINT) from error
        raise
