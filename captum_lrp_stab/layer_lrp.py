"""``LayerLRP``: the relevance of inner layers."""

import difflib
from collections.abc import Collection
from typing import Any

from captum.attr import LayerLRP as CaptumLayerLRP
from captum.attr._utils.attribution import LayerAttribution
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.dispatch.leaf_modules import leaf_modules
from captum_lrp_stab.errors import ModelError, UnreachedError
from captum_lrp_stab.explainer import Explainer, Fallbacks, NonFinite, _attribution, delta_of
from captum_lrp_stab.propagation.batching import Piece
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.propagation.undifferentiable import guarded
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.tensors.nested import tensors_in


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
