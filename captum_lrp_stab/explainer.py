"""What ``LRP`` and ``LayerLRP`` have in common."""

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from captum_lrp_stab.assignment.rules_of_model import Rules, rule_set_of
from captum_lrp_stab.dispatch import fallbacks as plain_gradients
from captum_lrp_stab.dispatch.compiler import uncompiled
from captum_lrp_stab.dispatch.leaf_modules import check_is_module
from captum_lrp_stab.errors import (
    FallbackWarning,
    InputError,
    NonFiniteRelevanceError,
    NonFiniteRelevanceWarning,
    OutputWarning,
)
from captum_lrp_stab.fast import parameter_cache
from captum_lrp_stab.ledger import nonfinite as diagnosing
from captum_lrp_stab.propagation import checkpointing, checks
from captum_lrp_stab.propagation.attribution import Pass, Propagation, propagate_many
from captum_lrp_stab.propagation.batching import Batch, Piece, Run, in_pieces
from captum_lrp_stab.propagation.checkpointing import SegmentedForm
from captum_lrp_stab.propagation.checks import as_tuple, coarsest_dtype
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.observer import Observer
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.propagation.targets import score_of
from captum_lrp_stab.rules.rule_set import Attention, RuleSet

NonFinite = Literal["warn", "raise", "ignore"]
Fallbacks = Literal["warn", "ignore"]


class Explainer:
    """The arguments of ``LRP`` and ``LayerLRP``, and the propagation of relevance under them."""

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        rules: Rules = None,
        *,
        attention: Attention = "attnlrp",
        merge_batch_norm: bool = True,
        strict: bool = False,
        nonfinite: NonFinite = "warn",
        fallbacks: Fallbacks = "warn",
        skip_output_activation: bool = False,
        optimize: bool = True,
        cache_bytes: int | None = None,
        checkpoint: Iterable[str] = (),
    ) -> None:
        check_is_module(model)
        if nonfinite not in ("warn", "raise", "ignore"):
            raise InputError(f"nonfinite is {nonfinite!r}; give 'warn', 'raise' or 'ignore'")
        if fallbacks not in ("warn", "ignore"):
            raise InputError(f"fallbacks is {fallbacks!r}; give 'warn' or 'ignore'")
        GradientAttribution.__init__(self, model)  # Captum's LRP.__init__ checks less than rules_on
        self.model = model
        self.attention = attention
        self.merge_batch_norm = merge_batch_norm
        self.strict = strict
        self.nonfinite = nonfinite
        self.fallbacks = fallbacks
        self.skip_output_activation = skip_output_activation
        self._warned: set[str] = set()  # fallbacks that have been warned of
        self.optimize = optimize
        if cache_bytes is None:
            known = (p for p in model.parameters() if not is_lazy(p))
            size = sum(p.numel() * p.element_size() for p in known)
            cache_bytes = int(parameter_cache.DEFAULT_SHARE * size)
        self.checkpoint = checkpointing.check_names(model, checkpoint)
        self._store = parameter_cache.Derived(cache_bytes)
        rule_set = rule_set_of(model, rules, **self._options())
        self._rule_set = None if rules is None else rule_set

    def __repr__(self) -> str:
        """Return the model's class, how many layers have which rule, and the options."""
        given = ", ".join(f"{name}={value!r}" for name, value in self._shown().items())
        return f"{type(self).__name__}({type(self.model).__name__}, rules={self._rules()}, {given})"

    def _rules(self) -> str:
        if self._rule_set is None:
            return "None"  # those of the modules, whatever they are by then
        if self._rule_set.composite is not None:
            return repr(self._rule_set.composite)
        counts = Counter(repr(rule) for rule in self._rule_set.named.values())
        rules = [f"{count} x {rule}" for rule, count in counts.items()]
        return f"[{', '.join(rules)}]"

    def _shown(self) -> dict[str, Any]:
        """Return what stands in the text form after model and rules."""
        names = "attention merge_batch_norm strict nonfinite fallbacks skip_output_activation"
        return {name: getattr(self, name) for name in names.split()}

    def _options(self) -> dict[str, Any]:
        return {"attention": self.attention, "merge_batch_norm": self.merge_batch_norm}

    def current_rules(self) -> RuleSet:
        """Return the rule of each operation: those given, or those set on the modules now."""
        if self._rule_set is None:
            return rule_set_of(self.model, None, **self._options())
        return replace(self._rule_set, **self._options())

    def compute_convergence_delta(self, attributions: Any, output: Tensor) -> Tensor:
        """Return the score less the sum of relevance, for each sample.

        Args:
            attributions: The relevance of an input, or a tuple of them.
            output: The score, shape ``(N,)``.

        Raises:
            InputError: They have different numbers of rows.
        """
        return delta_of(as_tuple(attributions), output, "an input")

    @uncompiled
    def _in_pieces(
        self, size: int | None, run: Run, inputs: Any, targets: Sequence[Any], extra: Any
    ) -> Any:
        """Return the results of a run, or of several with so many samples each.

        Args:
            size: Of a piece; None for all samples in one.
            run: Called with inputs, targets and further arguments.
            inputs: A tensor ``(N, ...)`` or a tuple of them.
            targets: One or more in Captum's target forms.
            extra: Further arguments of the model.
        """
        if size is None:
            return run(inputs, targets, extra).result

        def scored(x: Any, some: Sequence[Any], more: Any) -> Piece:
            piece = run(x, some, more)
            if self.skip_output_activation:  # the score is not the model's own
                own = score_of(output_of(self.model, x, more), some[0])
                piece = piece._replace(score=own)
            return piece

        batch = Batch(inputs, targets, extra)
        eps = torch.finfo(coarsest_dtype(self.model, as_tuple(inputs))).eps
        return in_pieces(size, batch, scored, partial(output_of, self.model), eps**0.5)

    @uncompiled
    def _propagate(
        self,
        inputs: Any,
        targets: Sequence[Any],
        additional_forward_args: Any,
        *,
        rule_sets: Sequence[RuleSet] = (),
        probes: tuple[Probe, ...] = (),
        verbose: bool = False,
    ) -> list[Propagation]:
        """Propagate from each target under each set of rules; warn of what one should know.

        Args:
            inputs: A tensor ``(N, ...)`` or a tuple of them.
            targets: One or more in Captum's target forms.
            additional_forward_args: Further arguments of the model.
            rule_sets: Empty for the current rules.
            probes: Layers whose relevance is wanted too.
            verbose: Print which rule each layer gets.
        """
        chosen = tuple(rule_sets) or (self.current_rules(),)
        segmented = partial(SegmentedForm, checkpoint=self.checkpoint)
        one = Pass(
            self.model,
            inputs,
            additional_forward_args,
            chosen,
            form=segmented if self.checkpoint else GradientForm,
            strict=self.strict,
            skip_output_activation=self.skip_output_activation,
            probes=probes,
            optimize=self.optimize,
            store=self._store if self.optimize else None,
        )
        found = propagate_many(one, targets)
        if verbose:
            for operation in (o for o in found[0].operations if o.rule is not None):
                print(f"Applied {operation.rule} on layer {operation.name}")
        if self.fallbacks != "ignore":
            self._warn_of_fallbacks(found)
        turns = ((rule_set, target) for rule_set in chosen for target in targets)
        for (rule_set, target), done in zip(turns, found, strict=True):
            if self.nonfinite != "ignore" and not done.is_finite:
                alone = replace(one, rule_sets=(rule_set,), form=GradientForm, store=None)
                self._report(replace(alone, optimize=True), target, done)
        return found

    def _warn_of_fallbacks(self, found: Iterable[Propagation]) -> None:
        """Warn of operations that relevance passes under their plain gradient, once of each."""
        passes = {id(done.operations): done.operations for done in found}  # which targets share
        new = {o.describe_fallback(): o for ran in passes.values() for o in ran if o.caveat}
        for known in self._warned & new.keys():
            del new[known]
        self._warned.update(new)
        plain = [text for text, operation in new.items() if operation.head is None]
        if plain:
            message = plain_gradients.warning(plain)
            warnings.warn(message, FallbackWarning, stacklevel=_level_outside())
        for head in (operation for operation in new.values() if operation.head is not None):
            message = plain_gradients.warning_of_head(head)
            warnings.warn(message, OutputWarning, stacklevel=_level_outside())

    def _report(self, one: Pass, target: Any, done: Propagation) -> None:
        """Warn that relevance is not finite, or raise, naming the layer where that begins.

        Args:
            one: The pass, under the one set of rules.
            target: Whose relevance it is.
            done: The result.
        """

        def run(observer: Observer | None, probes: tuple[Probe, ...]) -> Propagation:
            (again,) = propagate_many(replace(one, observer=observer, probes=probes), (target,))
            return again

        checks.check_parameters(self.model)
        dtype = coarsest_dtype(self.model, as_tuple(one.inputs))
        origin = diagnosing.nonfinite_origin(run, done.operations, dtype)
        message = f"the relevance is not finite: {diagnosing.in_words(origin, dtype)}"
        if self.nonfinite == "raise":
            raise NonFiniteRelevanceError(message)
        warnings.warn(message, NonFiniteRelevanceWarning, stacklevel=_level_outside())


def output_of(model: nn.Module, inputs: Any, extra: Any) -> Any:
    """Return what a model gives, without a graph, on copies of its inputs."""
    with torch.inference_mode(False), torch.no_grad():
        copies = (x.clone() for x in as_tuple(inputs))  # the model may write over them
        return model(*copies, *(_format_additional_forward_args(extra) or ()))


def delta_of(relevances: tuple[Tensor, ...], score: Tensor, place: str) -> Tensor:
    """Return the score less the sum of relevance, for each sample.

    Args:
        relevances: Those that make up the score.
        score: Of the samples.
        place: What has this relevance, in words.

    Raises:
        InputError: They have different numbers of rows.
    """
    score = score.flatten()
    for R in relevances:
        if R.dim() == 0 or len(R) != len(score):
            raise InputError(
                f"return_convergence_delta: the relevance of {place} has shape {tuple(R.shape)}, "
                f"and the score {len(score)} rows: a row is not a sample, so that there is no "
                "difference for each; leave it out, and compare the sums over all rows"
            )
    total: Any = sum(R.reshape(len(R), R[:1].numel()).sum(1) for R in relevances)
    return score - total  # type: ignore[no-any-return]


def _level_outside() -> int:
    """Return the ``stacklevel`` of the user's line, whatever of Captum lies between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def _is_inside(module: str) -> bool:
    # the last is what runs a function that torch.compile leaves alone
    return module.split(".")[0] in ("captum", "captum_lrp_stab") or module.startswith(
        "torch._dynamo"
    )


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _attribution(method: _Method) -> _Method:
    """Decorate as Captum does: NoiseTunnel looks for the ``__wrapped__`` this leaves."""
    return log_usage()(method)  # type: ignore[no-any-return]
