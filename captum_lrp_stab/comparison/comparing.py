"""``compare``: do two implementations agree, and if not, where do they part, and why."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.comparison import references
from captum_lrp_stab.comparison.known_differences import KnownDifference, Trial
from captum_lrp_stab.comparison.pair import Divergence, Pair
from captum_lrp_stab.comparison.result import Comparison, Verdict
from captum_lrp_stab.comparison.runs import ROUNDINGS, Runs
from captum_lrp_stab.comparison.search import MOST_TRIALS, differences_between
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.propagation import checks, forms
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.reporting.progress import told
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.stabilizers import StabilizerLike
from captum_lrp_stab.task import Task


def compare(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    rules: Rules = None,
    reference: Any = "zennit",
    *,
    stabilizer: StabilizerLike | None = None,
    additional_forward_args: Any = None,
    tolerance: float | None = None,
    attention: Attention = "attnlrp",
    merge_batch_norm: bool | None = None,
    form: str = "gradient",
    progress: bool | Callable[[str], None] = False,
) -> Comparison:
    """Compare this package's attribution with another implementation's, layer by layer.

    Each side runs once. Where the two do not agree, each runs once more in float64, this package
    once more on inputs moved by a unit roundoff; and if it is no rounding, one side or both run up
    to 24 times more, to find out which known differences lie between them. Where the reference's
    layers are seen it is mostly less than 10 times: only what can act where the two part is tried.

    Args:
        model: See :class:`captum_lrp_stab.LRP`; likewise ``inputs``, ``target``,
            ``additional_forward_args`` and ``attention``. References run on copies of it.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        target: The output to explain.
        rules: A name_map, a preset, or None for the rules set on the modules.
        reference: What to compare with.

            - ``"zennit"``: the same rules as one of zennit's composites, with our stabilizers; or
              a composite of your own.
            - ``"captum"``: stock ``captum.attr.LRP`` with Captum's own rules where it has one of
              that meaning, else with ours; ``"captum_driver"`` with ours only.
            - ``"float64"``: the same run in float64.
            - ``"modified_forward"``: the same rules by rewriting the forward pass.
            - an :class:`captum_lrp_stab.LRP` with other rules.
            - a function ``(model, inputs, target) -> relevance``, which gets a copy of the model;
              with ``additional_forward_args`` it gets those as a fourth argument. It may return
              ``(relevance, {layer name: relevance of its output})``.
        stabilizer: Takes the place of every rule's stabilizer, on both sides.
        additional_forward_args: Further arguments of the model.
        tolerance: Largest relative L2 difference that counts as equal; None for
            :func:`captum_lrp_stab.comparison.agreement.tolerance` of the dtype and the number of
            layers with a rule.
        attention: ``"attnlrp"`` or ``"cp"``.
        merge_batch_norm: Treat batch norm after a linear layer as one layer with it; None for what
            the reference does: yes, but no for Captum, which cannot.
        form: How relevance is carried on our side, one of ``forms.NAMES``.
        progress: Show a bar, where standard error is a terminal; or what is called with the name
            of each run before it.

    Raises:
        InputError: The reference is unknown, or gave relevance of another shape or device.
        ReferenceFailedError: The reference raised an error of its own.
        MissingExtraError: The reference is not installed.
        RuleError: The reference has no counterpart of a rule.
        LRPError: As :meth:`captum_lrp_stab.LRP.attribute`.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import LRP, compare, presets
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> same = compare(model, torch.ones(2, 4), 1, presets.epsilon(), "float64")
        >>> same.verdict, same.first
        ('equal', None)
    """
    chosen = references.reference_of(reference)
    if tolerance is not None:
        tolerance = _checked(tolerance)
    if merge_batch_norm is None:
        merge_batch_norm = chosen.merges_batch_norm
    task = Task(
        model,
        as_tuple(inputs),
        target,
        additional_forward_args,
        rules,
        stabilizer,
        attention,
        merge_batch_norm,
        form=forms.form_of(form.replace("_", "-"), stabilizer),
    )
    checks.check_model(model)
    checks.check_inputs(task.inputs)
    with told(progress) as step, torch.inference_mode(False), torch.enable_grad():
        runs = Runs(task, tolerance, step)
        trial = runs.trial(chosen)
        pair = runs.pair(trial)
        judgement = judge(runs, trial, pair)
    return Comparison(
        chosen.name,
        judgement.verdict,
        judgement.explanation,
        judgement.differences,
        str(task.dtype).removeprefix("torch."),
        runs.tolerance,
        pair.overall,
        judgement.first,
        pair.layers,
        _numbers(pair.ours.score) or (),
        _numbers(pair.reference.score),
        pair.ours.relevances,
        pair.reference.relevances,
    )


def _checked(tolerance: Any) -> float:
    try:
        number = float(tolerance)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(tolerance, (str, bytes, bool)) or not 0 <= number < math.inf:
        raise InputError(f"tolerance is {tolerance!r}; give a number >= 0, and finite")
    return number


def _numbers(score: Tensor | None) -> tuple[float, ...] | None:
    return None if score is None else tuple(score.detach().double().flatten().tolist())


_PLAIN = 1e-3
"""A larger relative difference at a layer is no rounding, even if the inputs agree in the end."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, the reasons, and the first place at which the two sides part."""

    verdict: Verdict
    explanation: str
    first: Divergence | None = None
    differences: tuple[KnownDifference, ...] = ()


def judge(runs: Runs, trial: Trial, pair: Pair) -> Judgement:
    """Return the verdict on two sides that have been run."""
    tolerance = runs.tolerance
    overall, name = pair.overall, trial.reference.name
    if overall.reference_nonfinite:
        first = pair.divergence(tolerance)
        text = f"{name} has {overall.reference_nonfinite} values that are NaN or Inf, this package "
        ours = str(overall.nonfinite or "none")
        return Judgement("reference not finite", text + ours + _at(first), first)
    if overall.nonfinite:
        first = pair.divergence(tolerance)
        text = f"this package has {overall.nonfinite} values that are NaN or Inf, {name} none"
        return Judgement("different", text + _at(first), first)
    assert overall.relative_l2 is not None  # both sides are finite
    size = f"relative difference {overall.relative_l2:.2g}"
    if overall.within(tolerance):
        if not any(bool(r.any()) for r in (*pair.ours.relevances, *pair.reference.relevances)):
            return Judgement("equal", "both sides are 0 everywhere: nothing was compared")
        inside = pair.divergence(max(tolerance, _PLAIN))
        cancels = "" if inside is None else f", but what differs inside cancels out{_at(inside)}"
        return Judgement("equal", f"{size}, within {tolerance:.2g}{cancels}", inside)
    exact = runs.in_float64(trial.reference)
    if exact is None:
        if runs.task.dtype != torch.float64:
            size += " (the reference does not run in float64, so rounding is not ruled out)"
        return _explained(runs, trial, pair, size)
    other = exact.trial(trial.reference)
    wide = exact.pair(other)
    units = [torch.finfo(runs_.task.dtype).eps for runs_ in (runs, exact)]
    # rounding shrinks with the unit roundoff, a difference of meaning does not
    shrunk = ROUNDINGS * overall.relative_l2 * units[1] / units[0]
    if wide.error <= max(exact.tolerance, min(shrunk, tolerance)):
        return _rounding(pair, size, tolerance, f"in float64 it is {wide.error:.2g}")
    return _explained(exact, other, wide, f"{size}, {wide.error:.2g} in float64")


def _rounding(pair: Pair, size: str, tolerance: float, proof: str) -> Judgement:
    first = pair.divergence(tolerance)
    text = f"{size}, more than {tolerance:.2g}, but {proof}: rounding errors that"
    return Judgement("rounding", f"{text} small denominators amplify{_at(first)}", first)


def _explained(runs: Runs, trial: Trial, pair: Pair, size: str) -> Judgement:
    """Return the verdict on a difference that float64 does not take away."""
    tolerance = runs.tolerance_of_rounding()
    if pair.error <= tolerance:
        proof = "the inputs moved by a unit roundoff make as large a one"
        return _rounding(pair, size, runs.tolerance, proof)
    between = differences_between(runs, trial, tolerance)
    found, at = between.differences, _at(between.first)
    names = " and ".join(d.name + (f" '{d.where}'" if d.where else "") for d in found)
    if between.is_all:
        text = f"{names}; {size}{at}"
        text += "; below the addition nothing is comparable" if found[-1].where else ""
        return Judgement("known difference", text, between.first, found)
    text = f"besides {names}; {size}{at}" if found else f"{size}{at}"
    if between.is_cut_short:
        text += f"; the search for known differences ended after {MOST_TRIALS} trials"
    return Judgement("different", text, between.first, found)


def _at(first: Divergence | None) -> str:
    if first is None:
        return "; its layers were not seen"
    if len(first.candidates) > 1:
        others = ", ".join(first.candidates[1:4])
        return f"; they part at '{first.name}' ({first.kind}) or {others}"
    where = "in the forward pass, at" if first.direction == "forward" else "at"
    kind = f" ({first.kind})" if first.kind else ""
    return f"; they part {where} '{first.name}'{kind}"
