"""``LRP`` and ``LayerLRP``: drop-in subclasses of Captum's, in gradient form."""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

from captum._utils.common import _format_output, _is_tuple
from captum.attr import LRP as CaptumLRP
from captum.attr import LayerLRP as CaptumLayerLRP
from captum.attr._utils.attribution import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_lrp_stab.batching import Piece
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.errors import InputError, ModelError, UnreachedError
from captum_lrp_stab.explainer import Explainer, Fallbacks, NonFinite, delta_of
from captum_lrp_stab.leaves import leaf_modules
from captum_lrp_stab.operations import tensors_in
from captum_lrp_stab.probes import Probe
from captum_lrp_stab.rule_set import Attention, RuleSet
from captum_lrp_stab.stabilizers import StabilizerLike
from captum_lrp_stab.translation import Rules, rule_set_of
from captum_lrp_stab.undifferentiable import guarded

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _attribution(method: _Method) -> _Method:
    """Decorate as Captum does: NoiseTunnel looks for the ``__wrapped__`` this leaves."""
    return log_usage()(method)  # type: ignore[no-any-return]


class LRP(Explainer, CaptumLRP):  # type: ignore[misc]  # Captum has no type information
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
        attention: How attention is treated. ``"attnlrp"`` (Achtibat et al. 2024): the softmax hands
            relevance down by its gradient, a product of data halves it. ``"cp"`` (Ali et al. 2022):
            the attention weights are held constant.
        merge_batch_norm: Treat a batch norm that follows a linear layer or convolution as one
            layer with it, under that layer's rule.
        strict: Refuse a model with operations that have no LRP rule and would get their plain
            gradient.
        nonfinite: What to do when NaN or Inf arises: ``"warn"``, ``"raise"`` or ``"ignore"``. The
            message names the first layer it arose in.
        fallbacks: What to do where relevance passes an operation under its plain gradient, because
            no LRP rule is known for it (an LSTM, an exponential, a custom autograd function):
            ``"warn"``, once of each, or ``"ignore"``.
        skip_output_activation: Where the output is made by a softmax, a sigmoid or one of their
            kin, explain what that reads, the logits: they are the score, then. It takes a second
            forward pass.
        optimize: Compute what can be left out or put together in fewer steps, which gives the same
            up to rounding; False works out every layer by its rule's formula, to compare with.
        cache_bytes: How much is kept from call to call, on a CPU, of what a few parameters make,
            such as the zB rule's constants; None for a quarter of what all parameters take. It is
            made again when one of them has another value.
        checkpoint: Names of modules whose inner values are not kept for the backward pass, but
            computed again in it: less memory for another forward pass of these. The relevance is
            the same. A batch norm must be in one module with the layer before it, and rules of
            the zB kind outside.

    Raises:
        ModelError: The model is scripted or quantized, or no module; or has no module of a name in
            ``checkpoint``.
        RuleMapError: ``rules`` does not fit the model.
        RuleError: ``attention`` is none of the two.
        RuleTypeError: ``module.rule`` is no propagation rule.
        InputError: ``nonfinite`` or ``fallbacks`` is none of those listed.

    Source: Bach et al. 2015; Montavon et al. 2019, ch. 10; Arras et al. 2017 for gates; Ali et al.
    2022 for normalisation and CP-LRP; Achtibat et al. 2024 for AttnLRP.

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
        internal_batch_size: int | None = None,
    ) -> Any:
        """Return the relevance of every input feature for the target's score.

        Args:
            inputs: A tensor ``(N, ...)`` or a tuple of them, floating point, finite.
            target: The output to explain, in any of Captum's forms: an int for all samples; a list
                of ints or a 1D tensor, one per sample; a tuple, or a list of tuples, of indices
                for outputs with more dimensions; None for one score per sample. Whole numbers and
                arrays of numpy count as ints and tensors.
            additional_forward_args: Further arguments of the model, without relevance.
            return_convergence_delta: Return score minus sum of relevance too.
            verbose: Print which rule each layer gets.
            internal_batch_size: Run so many samples at a time, which needs less memory; None for
                all at once. Tensors among the further arguments with N entries are divided too. It
                takes one more forward pass, to see that the model treats samples alone.

        Returns:
            Relevance shaped and typed like ``inputs``, and the delta, shape ``(N,)``, if asked for.
            Without biases and stabilizers the relevance sums to the score. It has no graph, and
            raises when it is differentiated, where ``inputs`` require a gradient.

        Raises:
            InputError: An input is not a finite floating-point tensor, or the target does not fit;
                or a row of the output is not a sample, where the delta or pieces are asked for.
            ModelError: The model is in train mode or cannot be followed, or has NaN parameters.
            RuleError: A rule cannot serve its layer.
            FallbackError: With ``strict=True``, an operation has no LRP rule.
            NonFiniteRelevanceError: With ``nonfinite="raise"``.
        """

        def run(inputs: Any, targets: Any, extra: Any) -> Piece:
            (done,) = self._propagate(inputs, targets, extra, verbose=verbose)
            relevance = _format_output(_is_tuple(inputs), done.relevances)
            if return_convergence_delta:
                relevance = relevance, self.compute_convergence_delta(done.relevances, done.score)
            return Piece(relevance, done.score)

        arguments = inputs, (target,), additional_forward_args
        return guarded(self._in_pieces(internal_batch_size, run, *arguments), self.model, inputs)

    @_attribution
    def attribute_many(
        self,
        inputs: Any,
        targets: Sequence[Any],
        additional_forward_args: Any = None,
        *,
        stabilizers: Sequence[StabilizerLike] | None = None,
        rules: Sequence[Rules] | None = None,
        internal_batch_size: int | None = None,
    ) -> list[Any]:
        """Return the relevance for several targets, stabilizers or rules, from one forward pass.

        Each result is what :meth:`attribute` returns. The forward pass, and what the backward
        passes have in common, is computed once and kept until the last of them, in up to twice the
        memory of the activations. A set of rules that names layers otherwise, or has rules of the
        zB kind on another layer than the first, gets a forward pass of its own.

        Args:
            inputs: See :meth:`attribute`.
            targets: One or more, each in any of Captum's forms: ``[3, 5]`` are two targets, and
                ``[torch.tensor([3, 5])]`` is one, of two samples.
            additional_forward_args: See :meth:`attribute`.
            stabilizers: Of every rule, one after the other; None for the rules' own.
            rules: Name_maps or presets, one after the other; None for those of the explainer.
            internal_batch_size: See :meth:`attribute`.

        Returns:
            One relevance for each target, in order. With ``stabilizers`` or ``rules``, for each
            target a list with one for each of these.

        Raises:
            InputError: There is no target, stabilizer or set of rules, or both of the last two are
                given; see also :meth:`attribute`.

        Example:
            >>> import torch
            >>> from captum_lrp_stab import LRP, presets, stabilizers
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
            >>> lrp = LRP(model, presets.epsilon())
            >>> [R.shape for R in lrp.attribute_many(torch.ones(5, 4), targets=[0, 2])]
            [torch.Size([5, 4]), torch.Size([5, 4])]
            >>> both = [stabilizers.Signed(1e-6), stabilizers.Clip(1e-6)]
            >>> ((signed, clipped),) = lrp.attribute_many(
            ...     torch.ones(5, 4), targets=[0], stabilizers=both
            ... )
        """
        targets = _several("targets", targets)
        if stabilizers is not None:
            stabilizers = _several("stabilizers", stabilizers)
        if rules is not None:
            rules = _several("rules", rules)
        variants = self._variants(stabilizers, rules)

        def run(inputs: Any, targets: Any, extra: Any) -> Piece:
            found = self._propagate(inputs, targets, extra, rule_sets=variants)
            relevances = [_format_output(_is_tuple(inputs), done.relevances) for done in found]
            return Piece(relevances, found[0].score)

        arguments = inputs, targets, additional_forward_args
        relevances = self._in_pieces(internal_batch_size, run, *arguments)
        relevances = guarded(relevances, self.model, inputs)
        by_target = [relevances[index :: len(targets)] for index in range(len(targets))]
        several = stabilizers is not None or rules is not None
        return by_target if several else [only for (only,) in by_target]

    def _variants(
        self, stabilizers: Sequence[StabilizerLike] | None, rules: Sequence[Rules] | None
    ) -> list[RuleSet]:
        if stabilizers is not None and rules is not None:
            raise InputError("both stabilizers and rules are given; give one, or rules with both")
        if rules is not None:
            return [rule_set_of(self.model, one, **self._options()) for one in rules]
        current = self.current_rules()
        if stabilizers is None:
            return [current]
        return [current.changed(_with(stabilizer)) for stabilizer in stabilizers]


class LayerLRP(Explainer, CaptumLayerLRP):  # type: ignore[misc]
    """Relevance of inner layers; see :class:`LRP` and ``captum.attr.LayerLRP``.

    Args:
        model: See :class:`LRP`.
        layer: The layer whose relevance is wanted: a module, or a name. A name is that of a module
            or of any operation that :func:`captum_lrp_stab.plan` lists, such as ``"add_0"`` or
            ``"encoder.softmax_0"``. Or a list of these, all in one pass; or None for every leaf
            module that is called and takes part in the pass (afterwards listed in ``layers``). What
            a layer gives that is asked for counts as data, also where it depends on no input: an
            embedding of further arguments has relevance then.
        rules: See :class:`LRP`; likewise the other arguments, of which ``checkpoint`` is none.

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
        layer: nn.Module | str | list[nn.Module | str] | None,
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
    ) -> None:
        super().__init__(
            model,
            rules,
            attention=attention,
            merge_batch_norm=merge_batch_norm,
            strict=strict,
            nonfinite=nonfinite,
            fallbacks=fallbacks,
            skip_output_activation=skip_output_activation,
            optimize=optimize,
            cache_bytes=cache_bytes,
        )
        LayerAttribution.__init__(self, model, layer)
        self._names()

    def _shown(self) -> dict[str, Any]:
        known = {id(module): name for name, module in self.model.named_modules()}
        several = isinstance(self.layer, (list, tuple))
        layers = [known.get(id(one), one) for one in (self.layer if several else [self.layer])]
        return {"layer": layers if several else layers[0], **super()._shown()}

    def _names(self) -> list[str]:
        """Return the names of ``layer``, which Captum's TCAV sets after construction."""
        several = isinstance(self.layer, (list, tuple))
        wanted = self.layer if several else [] if self.layer is None else [self.layer]
        return [self._name_of(one) for one in wanted]

    def _name_of(self, layer: nn.Module | str) -> str:
        if isinstance(layer, str):
            return layer
        for name, module in self.model.named_modules():
            if module is layer:
                return str(name)
        raise ModelError(f"layer {layer!r} is no module of {type(self.model).__name__}")

    @_attribution
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
        internal_batch_size: int | None = None,
    ) -> Any:
        """Return the relevance of the layer's output, or input.

        Args:
            inputs: See :meth:`LRP.attribute`; likewise the arguments not listed here.
            target: See :meth:`LRP.attribute`.
            additional_forward_args: See :meth:`LRP.attribute`.
            return_convergence_delta: Return score minus sum of the layer's relevance too.
            attribute_to_layer_input: Relevance of what goes into the layer instead of its output.
            verbose: See :meth:`LRP.attribute`.
            internal_batch_size: See :meth:`LRP.attribute`.

        Returns:
            A tensor shaped like the layer's output (or input), or a list of these for several
            layers; and the delta, or list of deltas, if asked for. Where a layer gives several
            tensors (a tuple, nested or not, or a dict), or takes several, a tuple with the
            relevance of each, in order: 0 for a part that gets none. Complex values have real
            relevance, that of both parts. A layer used more than once gets the sum over its uses.

        Raises:
            UnreachedError: A layer takes no part in the pass; see also :meth:`LRP.attribute`.
        """
        several = self.layer is None or isinstance(self.layer, (list, tuple))
        leaves = dict(leaf_modules(self.model))
        wanted = list(leaves) if self.layer is None else self._names()

        def run(inputs: Any, targets: Any, extra: Any) -> Piece:
            options = attribute_to_layer_input, self.layer is not None
            probes = {name: Probe(name, *options) for name in wanted}
            watching = tuple(probes.values())
            (done,) = self._propagate(inputs, targets, extra, probes=watching, verbose=verbose)
            names = [n for n in wanted if probes[n].noted] if self.layer is None else wanted
            if self.layer is None:
                self.layers = [leaves[name] for name in names]
            known = dict(self.model.named_modules()).keys() | {o.name for o in done.operations}
            results = [_result(probes[name], known) for name in names]
            found: Any = results if several else results[0]
            pairs = zip(names, results, strict=True)
            layers = [name for name, result in pairs for _ in tensors_in((result,), {})]
            if return_convergence_delta:
                # the other parts have no relevance, and need not have a row for each sample
                noted = ((f"layer '{name}'", probes[name].noted) for name in names)
                deltas = [delta_of(tuple(parts), done.score, place) for place, parts in noted]
                found = found, deltas if several else deltas[0]
                layers += names
            return Piece(found, done.score, layers)

        arguments = inputs, (target,), additional_forward_args
        return guarded(self._in_pieces(internal_batch_size, run, *arguments), self.model, inputs)


def _several(name: str, values: Any) -> list[Any]:
    try:
        found = list(values)
    except TypeError as error:
        raise InputError(f"{name} is {values!r}; give a list of them") from error
    if not found:
        raise InputError(f"{name} is empty; give one or more")
    return found


def _with(stabilizer: StabilizerLike) -> Callable[[Rule], Rule]:
    return lambda rule: rule.with_stabilizer(stabilizer)


def _result(probe: Probe, known: Collection[str]) -> Tensor | tuple[Tensor, ...]:
    if probe.name not in known:
        close = difflib.get_close_matches(probe.name, known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ModelError(
            f"layer '{probe.name}' is no module, and the pass ran no operation of this name; "
            f"captum_lrp_stab.plan lists the names{hint}"
        )
    if not probe.noted:
        raise UnreachedError(f"layer '{probe.name}' takes no part in the score: {_why(probe)}")
    parts = probe.parts()
    return parts if probe.was_tuple and len(parts) > 1 else parts[0]


def _why(probe: Probe) -> str:
    """Return why no relevance was noted, and what may help, in words."""
    if not probe.has_run:
        return "the model does not run it on these inputs"
    if not probe.relevances:
        gets, other = ("gets", "output") if probe.at_input else ("gives", "input")
        return f"it {gets} nothing that could have relevance, such as integers; ask for its {other}"
    return (
        "it runs, but no relevance reaches it; check that the target depends on it, by more than a "
        "gate that is held constant or a detached value (captum_lrp_stab.plan says so)"
    )
