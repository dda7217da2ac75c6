"""``LRP`` and ``LayerLRP``: drop-in subclasses of Captum's, in gradient form."""

from collections.abc import Callable, Sequence
from typing import Any

from captum._utils.common import _format_output, _is_tuple
from captum.attr import LRP as CaptumLRP

from captum_lrp_stab.assignment.rules_of_model import Rules, rule_set_of
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.explainer import Explainer, _attribution
from captum_lrp_stab.propagation.batching import Piece
from captum_lrp_stab.propagation.undifferentiable import guarded
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.stabilizers import StabilizerLike


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
        attention: How attention is treated. ``"attnlrp"`` (Achtibat et al. 2024): relevance passes
            the softmax by its gradient, and a product of data halves it. ``"cp"`` (Ali et al.
            2022): the attention weights are held constant.
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
