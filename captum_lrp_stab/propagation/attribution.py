"""One attribution from beginning to end: checks, the forward pass, the backward pass.

:func:`propagate` is what :class:`captum_lrp_stab.LRP`, the study and the comparison call, with the
form as an argument.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
    strict: bool = False,
    skips_head: bool = False,
    probes: tuple[Probe, ...] = (),
    observer: Observer | None = None,
    form: Callable[..., GradientForm] = GradientForm,
    optimize: bool = True,
    store: Derived | None = None,
) -> Propagation:
    """Propagate relevance from ``target`` to ``inputs``; the model and tensors stay as they are.

    Args:
        model: Any module, in eval mode where it has dropout or batch norm.
        inputs: A tensor ``(N, ...)`` or a tuple of them, floating point.
        target: Captum's target forms.
        additional_forward_args: As in Captum.
        rule_set: The rule of each operation.
        strict: Refuse operations that would get their plain gradient.
        skips_head: Explain what the activation that makes the output reads, where there is one.
        probes: Layers whose relevance is wanted too.
        observer: Is told of each layer.
        form: How relevance is carried.
        optimize: Take the short ways, where there are some.
        store: Keeps what is made of parameters.

    Raises:
        InputError: An input is not a finite floating-point tensor, or the target does not fit.
        ModelError: The model cannot be followed, or the score does not depend on the inputs.
        FallbackError: With ``strict``, an operation has no LRP rule.
    """
    (done,) = propagate_many(
        model,
        inputs,
        (target,),
        additional_forward_args,
        rule_sets=(rule_set,),
        strict=strict,
        skips_head=skips_head,
        probes=probes,
        observer=observer,
        form=form,
        optimize=optimize,
        store=store,
    )
    return done


def propagate_many(
    model: nn.Module,
    inputs: Any,
    targets: Sequence[Any],
    additional_forward_args: Any = None,
    *,
    rule_sets: Sequence[RuleSet],
    strict: bool = False,
    skips_head: bool = False,
    probes: tuple[Probe, ...] = (),
    observer: Observer | None = None,
    form: Callable[..., GradientForm] = GradientForm,
    optimize: bool = True,
    store: Derived | None = None,
    after: Callable[[Propagation], None] = lambda done: None,
) -> list[Propagation]:
    """Propagate from several targets, and under several sets of rules, after one forward pass.

    Args:
        model: See :func:`propagate`; likewise the arguments not listed here.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        targets: One or more in Captum's target forms.
        additional_forward_args: As in Captum.
        rule_sets: One or more, which treat attention and batch norm alike.
        strict: Refuse operations that would get their plain gradient.
        skips_head: Explain what the activation that makes the output reads, where there is one.
        probes: Layers whose relevance is wanted too.
        observer: Is told of each layer.
        form: How relevance is carried.
        optimize: Take the short ways, where there are some.
        store: Keeps what is made of parameters.
        after: Called after each backward pass, while probes and observer hold what they saw of it
            and the operations have its rules; give an observer with it: without one, a pass that
            is not finite is run again, all of it.

    Returns:
        For each set of rules, one result for each target. Those of one pass list the same
        operations, with the rules of the last set.
    """
    options: Any = {"strict": strict, "form": form, "optimize": optimize, "store": store}
    options |= {"probes": probes, "observer": observer, "after": after, "skips_head": skips_head}
    checks.check_model(model)
    xs = as_tuple(inputs)
    checks.check_inputs(xs)
    arguments = model, xs, additional_forward_args
    if len(rule_sets) > 1 and not _can_share(model, rule_sets):
        return _one_by_one(*arguments, targets, rule_sets, options)
    turns = [(v, target) for v in range(len(rule_sets)) for target in targets]
    mode = form(model, *rule_sets)
    done: list[Propagation] = []
    may_fail = optimize and observer is None  # what is short is so for finite values
    failed = False
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as ending:
        ending.callback(mode.release)
        output, stretch = _run(mode, arguments, probes, observer, len(turns), optimize, store)
        if stretch is not None and len(rule_sets) > 1:
            del output
            mode.release()
            return _one_by_one(*arguments, targets, rule_sets, options)
        left_out = output_activation.to_skip(mode.operations) if skips_head else frozenset()
        if left_out or stretch is not None:  # known now, and not before
            del output  # and its graph, before there is another
            mode.release()
            ran, known = mode.operations, mode.assignment
            second = form if stretch is None else partial(MixedForm, stretch=stretch)
            mode = second(model, *rule_sets)
            mode.left_out = left_out
            mode.assignment.know(known)
            ending.callback(mode.release)
            output, _ = _run(mode, arguments, probes, observer, len(turns), optimize, store)
            if left_out:
                output_activation.check_same(ran, mode.operations)
        if strict:
            fallbacks.refuse(fallbacks.of(mode.operations))
        for turn, (variant, target) in enumerate(turns, 1):
            mode.take_turn(variant)
            score = score_of(output, target)
            relevances = mode.relevances(score, is_last=turn == len(turns))
            done.append(Propagation(score.detach(), relevances, mode.operations))
            failed = failed or (may_fail and not _is_finite(done[-1], probes))
            after(done[-1])
            if turn < len(turns):
                mode.forget_relevance()
        del output, score
    if failed:
        options |= {"rule_sets": rule_sets, "optimize": False, "store": None}
        return propagate_many(model, inputs, targets, additional_forward_args, **options)
    return done


def _one_by_one(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: Any,
    targets: Sequence[Any],
    rule_sets: Sequence[RuleSet],
    options: Any,
) -> list[Propagation]:
    """Propagate under each set of rules after a forward pass of its own."""
    done: list[Propagation] = []
    for one in rule_sets:
        done += propagate_many(model, inputs, targets, extra, rule_sets=(one,), **options)
    return done


def _can_share(model: nn.Module, rule_sets: Sequence[RuleSet]) -> bool:
    """Return whether the operations of a pass have the same names under each set of rules.

    A rule on a module without a rule-bearing type gives its name to the functional layers in it.
    """
    modules = dict(model.named_modules())

    def naming(rule_set: RuleSet) -> frozenset[str]:
        named = {name: modules[name] for name in rule_set.named if name in modules}
        return frozenset(n for n, m in named.items() if not isinstance(m, types.RuleBearing))

    return len(set(map(naming, rule_sets))) == 1


def _is_finite(done: Propagation, probes: Iterable[Probe]) -> bool:
    noted = [R for probe in probes for R in probe.relevances if R is not None]
    return done.is_finite and all(bool(R.isfinite().all()) for R in noted)


def operations_of(
    model: nn.Module, inputs: Any, additional_forward_args: Any, rule_set: RuleSet
) -> list[Operation]:
    """Return what each operation of the model gets, from a forward pass alone.

    Raises:
        InputError: An input is not a finite floating-point tensor.
        ModelError: The model cannot be followed.
    """
    return _planned(model, inputs, additional_forward_args, rule_set).operations


def layers_of_pass(model: nn.Module, inputs: Any, additional_forward_args: Any) -> Layers:
    """Return each use of a layer that takes a rule, from a forward pass alone.

    Raises:
        InputError: An input is not a finite floating-point tensor.
        ModelError: The model cannot be followed.
    """
    return _planned(model, inputs, additional_forward_args, RuleSet({})).assignment.layers


def _planned(
    model: nn.Module, inputs: Any, additional_forward_args: Any, rule_set: RuleSet
) -> GradientForm:
    checks.check_model(model)
    xs = as_tuple(inputs)
    checks.check_inputs(xs)
    mode = GradientForm(model, rule_set)
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as ending:
        ending.callback(mode.release)
        _forward(mode, model, xs, additional_forward_args, whole=True)
    return mode


_CHECKPOINT = (
    "the model uses activation checkpointing (torch.utils.checkpoint) or saved-tensor hooks, which "
    "run operations again where they cannot be seen; turn them off for the attribution"
)


def _run(
    mode: GradientForm,
    arguments: tuple[nn.Module, tuple[Tensor, ...], Any],
    probes: tuple[Probe, ...],
    observer: Observer | None,
    turns: int,
    optimize: bool,
    store: Derived | None,
) -> tuple[Any, Stretch | None]:
    mode.optimize, mode.store, mode.has_several = optimize, store, turns > 1
    return _forward(mode, *arguments, probes, observer)


def _forward(
    mode: GradientForm,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    additional_forward_args: Any,
    probes: tuple[Probe, ...] = (),
    observer: Observer | None = None,
    whole: bool = False,
) -> tuple[Any, Stretch | None]:
    """Return the output, and what has to run in relevance form."""
    extra = _format_additional_forward_args(additional_forward_args) or ()
    extra = nested.mapped(nested.without_graph, tuple(extra))
    output = None
    try:
        output = _followed(mode, model, inputs, extra, probes, observer)
    except Exception:
        if not mode.eager.is_late:
            raise
    # what the rules of modules serve is known now, and not before; or the compiler is loaded
    if mode.assignment.is_late or mode.eager.is_late:
        del output
        mode.restart()
        output = _followed(mode, model, inputs, extra, probes, observer)
    mode.refuse_unserved()
    mode.check_pass(output)
    stretch = stretch_of(mode.operations, mode.direct_uses)
    mode.settle(output, whole)
    return output, stretch


def _followed(
    mode: GradientForm,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    probes: tuple[Probe, ...],
    observer: Observer | None,
) -> Any:
    """Return what the model does, each operation of it under the mode."""
    for probe in probes:
        probe.restart()
    if observer is not None:
        observer.restart()
    stand_ins = mode.prepare(inputs, probes, observer)
    try:
        watch = mode.naming.watch(mode.on_input, mode.on_output)
        with mode.eager, watch:
            with torch.autograd.graph.disable_saved_tensors_hooks(_CHECKPOINT), mode:
                return model(*stand_ins, *extra)
    except RuntimeError as error:
        if str(error) == _CHECKPOINT:
            raise ModelError(_CHECKPOINT) from error
        raise
