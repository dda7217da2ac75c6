"""``LRP`` and ``LayerLRP``: drop-in subclasses of Captum's, in gradient form."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from captum._utils.common import _format_output, _is_tuple
from captum.attr import LRP as CaptumLRP
from captum.attr import LayerLRP as CaptumLayerLRP
from captum.attr._utils.attribution import GradientAttribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_lrp_stab import mapping
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.errors import (
    ModelError,
    NonFiniteRelevanceError,
    NonFiniteRelevanceWarning,
)
from captum_lrp_stab.gradient_form import Probe
from captum_lrp_stab.propagation import Propagation, explain_nonfinite, propagate
from captum_lrp_stab.trace import Trace
from captum_lrp_stab.translation import Rules, rules_of, rules_on

_Method = TypeVar("_Method", bound=Callable[..., Any])
NonFinite = Literal["warn", "raise", "ignore"]


def _attribution(method: _Method) -> _Method:
    """Decorate as Captum does: NoiseTunnel looks for the ``__wrapped__`` this leaves."""
    return log_usage()(method)  # type: ignore[no-any-return]


class _Explainer:
    """What ``LRP`` and ``LayerLRP`` have in common: the arguments and one propagation."""

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        rules: Rules = None,
        *,
        merge_batch_norm: bool = True,
        strict: bool = False,
        nonfinite: NonFinite = "warn",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"LRP explains a torch.nn.Module; the model is a {type(model).__name__}"
            )
        if nonfinite not in ("warn", "raise", "ignore"):
            raise ValueError(f"nonfinite is {nonfinite!r}; give 'warn', 'raise' or 'ignore'")
        GradientAttribution.__init__(self, model)  # Captum's LRP.__init__ checks less than rules_on
        self.model = model
        self.merge_batch_norm = merge_batch_norm
        self.strict = strict
        self.nonfinite = nonfinite
        self._rules = None if rules is None else rules_of(model, rules)

    def current_rules(self) -> dict[str, Rule]:
        """Return the rule of each layer that has one, by name."""
        return self._rules if self._rules is not None else rules_on(self.model)

    def _propagate(
        self,
        inputs: Any,
        target: Any,
        additional_forward_args: Any,
        *,
        probes: tuple[Probe, ...] = (),
        verbose: bool = False,
    ) -> Propagation:
        rules = self.current_rules()

        def run(trace: Trace | None, probes: tuple[Probe, ...] = ()) -> Propagation:
            return propagate(
                self.model,
                inputs,
                target,
                additional_forward_args,
                rules=rules,
                merge_batch_norm=self.merge_batch_norm,
                strict=self.strict,
                probes=probes,
                trace=trace,
            )

        done = run(None, probes)
        if verbose:
            for operation in done.operations:
                print(f"Applied {operation.rule} on layer {operation.name}")
        if self.nonfinite != "ignore" and not done.is_finite:
            self._report_nonfinite(explain_nonfinite(run, self.model))
        return done

    def _report_nonfinite(self, where: str) -> None:
        message = f"the relevance is not finite: {where}"
        if self.nonfinite == "raise":
            raise NonFiniteRelevanceError(message)
        warnings.warn(message, NonFiniteRelevanceWarning, stacklevel=4)


class LRP(_Explainer, CaptumLRP):  # type: ignore[misc]  # Captum has no type information
    r"""Layer-wise relevance propagation for any model, in one forward pass.

    A subclass of ``captum.attr.LRP`` with its signatures: a script works after changing the import.
    Residual additions, functional operations, reused modules and in-place operations need no
    rewriting; the model's parameters, hooks and attributes are never changed, rules persist from
    call to call, and several threads may explain one model at once.

    Args:
        model: The model, in eval mode where it has dropout or batch norm.
        rules: A name_map, a preset or any callable from the model to a name_map; None takes the
            rules set on the modules (``module.rule``, Captum's own included). Linear layers and
            convolutions left without a rule get ``EpsilonRule(1e-6)``, everything else that is
            linear LRP-0; :func:`captum_lrp_stab.plan` lists it all.
        merge_batch_norm: Treat a batch norm that follows a linear layer or convolution as one
            layer with it, under that layer's rule.
        strict: Refuse a model with operations that have no LRP rule and would get their plain
            gradient.
        nonfinite: What to do when NaN or Inf arises: ``"warn"``, ``"raise"`` or ``"ignore"``. The
            message names the first layer it arose in.

    Raises:
        ModelError: The model is scripted or quantized, or no module.
        RuleMapError: ``rules`` does not fit the model.

    Source: Bach et al. 2015; Montavon et al. 2019, ch. 10.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import LRP, presets
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> relevance = LRP(model, presets.epsilon()).attribute(torch.ones(5, 4), target=1)
        >>> relevance.shape
        torch.Size([5, 4])
    """

    @_attribution
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Return the relevance of every input feature for the target's score.

        Args:
            inputs: A tensor ``(N, ...)`` or a tuple of them, floating point, finite.
            target: The output to explain, in any of Captum's forms: an int for all samples; a list
                of ints or a 1D tensor, one per sample; a tuple, or a list of tuples, of indices
                for outputs with more dimensions; None for one score per sample.
            additional_forward_args: Further arguments of the model, without relevance.
            return_convergence_delta: Return score minus sum of relevance too.
            verbose: Print which rule each layer gets.

        Returns:
            Relevance shaped and typed like ``inputs``, and the delta, shape ``(N,)``, if asked for.
            Without biases and stabilizers the relevance sums to the score.

        Raises:
            InputError: An input is not a finite floating-point tensor, or the target does not fit.
            ModelError: The model is in train mode or cannot be followed, or has NaN parameters.
            RuleError: A rule cannot serve its layer.
            FallbackError: With ``strict=True``, an operation has no LRP rule.
            NonFiniteRelevanceError: With ``nonfinite="raise"``.
        """
        done = self._propagate(inputs, target, additional_forward_args, verbose=verbose)
        relevance = _format_output(_is_tuple(inputs), done.relevances)
        if return_convergence_delta:
            return relevance, self.compute_convergence_delta(done.relevances, done.score)
        return relevance


class LayerLRP(_Explainer, CaptumLayerLRP):  # type: ignore[misc]
    """Relevance of inner layers; see :class:`LRP` and ``captum.attr.LayerLRP``.

    Args:
        model: See :class:`LRP`.
        layer: The module whose relevance is wanted, a list of modules, or None for every leaf
            module that takes part in the pass (afterwards listed in ``layers``).
        rules: See :class:`LRP`; likewise the other arguments.

    Raises:
        ModelError: See :class:`LRP`; or ``layer`` is no module of the model.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import LayerLRP
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> LayerLRP(model, model[1]).attribute(torch.ones(5, 4), target=1).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | list[nn.Module] | None,
        rules: Rules = None,
        *,
        merge_batch_norm: bool = True,
        strict: bool = False,
        nonfinite: NonFinite = "warn",
    ) -> None:
        super().__init__(
            model,
            rules,
            merge_batch_norm=merge_batch_norm,
            strict=strict,
            nonfinite=nonfinite,
        )
        LayerAttribution.__init__(self, model, layer)
        names = {module: name for name, module in model.named_modules()}
        wanted = layer if isinstance(layer, (list, tuple)) else [layer]
        for module in wanted if layer is not None else ():
            if module not in names:
                raise ModelError(f"layer {module!r} is no module of {type(model).__name__}")
        self._names = names

    @_attribution
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Return the relevance of the layer's output, or input.

        Args:
            inputs: See :meth:`LRP.attribute`; likewise the arguments not listed here.
            target: See :meth:`LRP.attribute`.
            additional_forward_args: See :meth:`LRP.attribute`.
            return_convergence_delta: Return score minus sum of the layer's relevance too.
            attribute_to_layer_input: Relevance of what goes into the layer instead of its output.
            verbose: See :meth:`LRP.attribute`.

        Returns:
            A tensor shaped like the layer's output (or input), a tuple where that is one, or a
            list of these for several layers; and the delta, or list of deltas, if asked for. A
            layer used more than once gets the sum over its uses.

        Raises:
            ModelError: A layer takes no part in the pass; see also :meth:`LRP.attribute`.
        """
        several = self.layer is None or isinstance(self.layer, (list, tuple))
        if self.layer is None:
            wanted = [module for _, module in mapping.leaf_modules(self.model)]
        else:
            wanted = list(self.layer) if several else [self.layer]
        probes = {m: Probe(self._names[m], attribute_to_layer_input) for m in wanted}
        done = self._propagate(
            inputs, target, additional_forward_args, probes=tuple(probes.values()), verbose=verbose
        )
        if self.layer is None:
            wanted = self.layers = [module for module in wanted if probes[module].relevances]
        results = [_result(probes[module]) for module in wanted]
        deltas = [
            self.compute_convergence_delta(r if isinstance(r, tuple) else (r,), done.score)
            for r in results
        ]
        if return_convergence_delta:
            return (results, deltas) if several else (results[0], deltas[0])
        return results if several else results[0]


def _result(probe: Probe) -> Tensor | tuple[Tensor, ...]:
    known = [r for r in probe.relevances if r is not None]
    if not known:
        raise ModelError(
            f"layer '{probe.name}' takes no part in the score: no relevance reaches it; check "
            "that the model runs it, and that the target depends on it"
        )
    return tuple(known) if probe.was_tuple and len(probe.relevances) > 1 else known[0]
