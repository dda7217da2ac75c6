"""``diagnose``: where relevance is lost, amplified or destroyed in one attribution, and why."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.diagnosis import stock
from captum_lrp_stab.diagnosis.receptive_field import Box, receptive_field
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.dispatch import fallbacks
from captum_lrp_stab.errors import InputError, LRPError
from captum_lrp_stab.ledger.causes import cause_of
from captum_lrp_stab.ledger.locating import Origin, check_threshold, locate, verdict_of
from captum_lrp_stab.ledger.watching import Watched, in_float64, watch
from captum_lrp_stab.names import STOCK, THRESHOLD
from captum_lrp_stab.propagation import checks, forms
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.propagation.forms import Form
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.stabilizers import StabilizerLike
from captum_lrp_stab.task import Task

_UNACCOUNTED = 1e-3
"""The share of the score that is more than rounding."""


def diagnose(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    rules: Rules = None,
    *,
    form: str | Form = "gradient",
    stabilizer: StabilizerLike | None = None,
    additional_forward_args: Any = None,
    attention: Attention = "attnlrp",
    merge_batch_norm: bool = True,
    threshold: float = THRESHOLD,
) -> Diagnosis:
    """Attribute, and look at every layer on the way.

    Args:
        model: See :class:`captum_lrp_stab.LRP`; likewise ``inputs``, ``target``, ``rules``,
            ``additional_forward_args``, ``attention`` and ``merge_batch_norm``.
        inputs: A tensor ``(N, ...)`` or a tuple of them. Records are sums over the batch.
        target: The output to explain.
        rules: A name_map, a preset, or None for the rules set on the modules.
        form: How relevance is carried, one of ``forms.NAMES``: ``"gradient"`` (as :class:`LRP`
            with ``optimize=False``: each layer by its rule's formula), ``"relevance"`` (as zennit)
            or ``"modified-forward"``; or one that
            :func:`captum_lrp_stab.propagation.forms.form_of` returns; or ``"stock"``: the same
            rules under stock ``captum.attr.LRP``, on a copy of the model.
        stabilizer: Takes the place of every rule's stabilizer.
        additional_forward_args: Further arguments of the model.
        attention: ``"attnlrp"`` or ``"cp"``.
        merge_batch_norm: Treat batch norm after a linear layer as one layer with it.
        threshold: How many times the relevance it received a layer, or one neuron of it, may hand
            down before it counts as unstable.

    Raises:
        InputError: ``threshold`` is no number above 1, or the form is unknown.
        LRPError: As :meth:`captum_lrp_stab.LRP.attribute`.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import diagnose, presets
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> found = diagnose(model, torch.ones(1, 4), 1, presets.epsilon())
        >>> found.verdict, [layer.name for layer in found.layers]
        ('stable', ['0', '2'])
    """
    check_threshold(threshold)
    task = Task(
        model,
        as_tuple(inputs),
        target,
        additional_forward_args,
        rules,
        stabilizer,
        attention,
        merge_batch_norm,
        form=_form_of(form, stabilizer),
    )
    checks.check_model(model)
    checks.check_inputs(task.inputs)
    look = stock.watch_stock if form == STOCK else watch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.inference_mode(False), torch.enable_grad():
            seen = look(task)
    if not seen.done.is_finite:
        checks.check_parameters(model)  # or the cause is in the weights, and in no layer
    origin = locate(seen.records, threshold)
    said = [str(warning.message) for warning in caught]
    if form == STOCK:
        said += _unaccounted(seen)
    verdict = verdict_of(seen.done.is_finite, seen.ledger.growth, origin)
    return Diagnosis(
        verdict,
        form if isinstance(form, str) else forms.name_of(form),
        str(task.dtype).removeprefix("torch."),
        float(threshold),
        seen.ledger,
        seen.records,
        origin,
        None if origin is None else cause_of(origin, task.dtype),
        _receptive_field(task, origin),
        None
        if origin is None
        else _is_better_in_float64(task, look, threshold, verdict != "not finite"),
        tuple(dict.fromkeys(said)),
        tuple(dict.fromkeys(fallbacks.of(seen.done.operations))) if form != STOCK else (),
        seen.done.relevances,
        seen.done.score,
    )


def _form_of(form: str | Form, stabilizer: StabilizerLike | None) -> Form:
    if callable(form):
        return form
    if form == STOCK:
        return forms.form_of("relevance", stabilizer)
    if form not in forms.NAMES:
        names = ", ".join((*forms.NAMES, STOCK))
        raise InputError(f"no form has the name {form!r}; give {names}")
    return forms.form_of(form, stabilizer)


def _unaccounted(seen: Watched) -> list[str]:
    """Return what there is to say of relevance that stock Captum makes between the layers."""
    if not abs(seen.ledger.elsewhere) > _UNACCOUNTED * abs(seen.ledger.score):
        return []
    names = stock.unseen(seen.done.operations)
    which = f", such as '{names[0]}'" if names else ""
    return [
        f"relevance of {seen.ledger.elsewhere:.3g} is unaccounted for: stock Captum does not see "
        f"operations that are no modules{which}, and hands their gradient on as relevance; "
        "captum_lrp_stab.LRP follows them"
    ]


def _is_better_in_float64(
    task: Task, look: Callable[[Task], Watched], threshold: float, is_finite: bool
) -> bool | None:
    """Return whether float64 has no trouble, or is finite as this is not; None if not known."""
    if task.dtype == torch.float64:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = locate(in_float64(task, look).records, threshold)
            return exact is None or (exact.is_finite and not is_finite)
    except (LRPError, RuntimeError):  # a model may make tensors of one dtype in its forward
        return None


def _receptive_field(task: Task, origin: Origin | None) -> tuple[Box | None, ...]:
    """Return the part of each input that moves the neuron at the origin, if there is one."""
    if origin is None or origin.neuron is None:
        return ()
    return receptive_field(task, origin.layer, origin.neuron.index, origin.use)
