"""The two runs of a segment, in the forward and in the backward pass; see ``checkpointing``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import LayerUse, is_mergeable, layer_of, order_of
from captum_lrp_stab.errors import LRPError, ModelError, RuleError
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.repeats import Made, made
from captum_lrp_stab.tensors import graph, marks
from captum_lrp_stab.tensors.nested import mapped, tensors_in

if TYPE_CHECKING:
    from captum_lrp_stab.propagation.checkpointing import SegmentedForm


_LEFT_BEHIND = ("layer", "order", "padded")
"""Marks that name tensors or layers of another graph."""


class Inside(GradientForm):
    """The gradient form in one run of a segment.

    Args:
        outer: The form of the pass.
        segment: The segment's name.
    """

    def __init__(self, outer: SegmentedForm, segment: str) -> None:
        super().__init__(outer.model, *outer.rule_sets)
        self.turn, self.optimize, self.store = outer.turn, outer.optimize, outer.store
        self.segment = segment

    def begin(self, inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Return stand-ins for what depends on the model's inputs."""
        self.prepare((), (), None)
        self._is_last = True
        self.leaves = self.sources = tuple(x.detach().requires_grad_() for x in inputs)
        for leaf in self.leaves:
            marks.put(leaf, "cut", self.segment)
        stand_ins = tuple(leaf.clone() for leaf in self.leaves)
        self._origins.note(stand_ins)
        return stand_ins

    def carrier_of(self, use: LayerUse) -> None:
        """Raise RuleError: relevance beside the input cannot leave the segment."""
        raise refusal(use.name, f"inside segment '{self.segment}'")


class SegmentRun:
    """The run of a segment in a forward pass, and what is needed to run it again."""

    def __init__(self, outer: SegmentedForm, name: str, args: Any, kwargs: Any) -> None:
        self.outer, self.name = outer, name
        self.args, self.kwargs = args, kwargs
        unique = {id(t): t for t in tensors_in(args, kwargs) if outer.depends_on_input(t)}
        self.inputs = tuple(unique.values())
        self.form: Inside
        self._stand_ins: tuple[Tensor, ...] = ()
        self._arguments: tuple[Any, Any] = (), {}
        self._given: list[Tensor] = []  # its arguments, to see whether it writes to them
        self._made: Made  # by the first run
        device = self.inputs[0].device.type if self.inputs else "cpu"
        self._autocast = torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            torch.is_autocast_enabled(device),
        )

    def begin(self, form: Inside, inputs: tuple[Tensor, ...]) -> tuple[Any, Any]:
        """Return the arguments to run the segment with.

        Args:
            form: The one it runs under.
            inputs: The values of those that depend on the model's inputs.
        """
        self.form = form
        self._stand_ins = form.begin(inputs)
        for x, stand_in in zip(self.inputs, self._stand_ins, strict=True):
            # the layer that knows the order is still to be propagated through: it has its tensors
            marks.carry(x, stand_in, ("layer", "padded"))
            self._mark_cut(x, stand_in)
        args, kwargs = self._with(self._stand_ins)
        self._arguments, self._given = (args, kwargs), tensors_in(args, kwargs)
        return args, kwargs

    def _mark_cut(self, t: Tensor, new: Tensor) -> None:
        """Mark what stands for a layer's output, where a batch norm could be one with the layer."""
        use = layer_of(t)
        if use is not None and is_mergeable(use, t):
            marks.put(new, "cut", self.name)

    def _with(self, inputs: Sequence[Tensor]) -> tuple[Any, Any]:
        """Return the arguments with other inputs; a list or dict without any stays itself."""
        places = {id(x): new for x, new in zip(self.inputs, inputs, strict=True)}

        def changed(value: Any) -> Any:
            if not any(id(t) in places for t in tensors_in((value,), {})):
                return value
            return mapped(lambda t: places.get(id(t), t), value)

        return tuple(map(changed, self.args)), {k: changed(v) for k, v in self.kwargs.items()}

    def finish(self, output: Any) -> Any:
        """Return the output to go on with, and free the inner values."""
        form, outer = self.form, self.outer
        results = _results(form, output)
        if results:
            self._check(results)
        form.settle(tuple(results), whole=True)
        outer.adopt(form)
        if not results:  # also where the forward pass has ended with an error
            self._end()
            return output
        self._made = made(form.operations, results)
        given = _SegmentStep.apply(self, tuple(t.detach() for t in results), *self._read(results))
        places = {id(t): new for t, new in zip(results, given, strict=True)}
        for t, new in zip(results, given, strict=True):
            marks.carry(t, new, _LEFT_BEHIND)
            _keep_order(t, new)
            self._mark_cut(t, new)
        memory = Counter(map(_memory, (*self._stand_ins, *results)))
        outer.note_shared(self.name, given, [memory[_memory(t)] > 1 for t in results])
        self._end()
        for operation in form.operations:
            operation.ordinals = frozenset()  # of another pass
            if operation.head is None:
                operation.function = ""  # what is behind it in the segment is not known any more
            if operation.reached:  # from the outputs; whether these are, the whole graph says
                operation.nodes = (given[0].grad_fn,)
        return mapped(lambda t: places.get(id(t), t), output)

    def _read(self, results: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs, those without a graph that no relevance comes to, such as a gate."""
        nodes = graph.graph(tuple(results))
        variables = {id(getattr(node, "variable", None)) for node in nodes}  # of AccumulateGrad
        pairs = zip(self.inputs, self.form.leaves, strict=True)
        return [x if id(leaf) in variables else x.detach() for x, leaf in pairs]

    def again(self, inputs: tuple[Tensor, ...], upstream: Sequence[Tensor | None]) -> Any:
        """Run the segment again and return the coefficients of its inputs."""
        form = Inside(self.outer, self.name)
        form.assignment.know(self.outer.assignment)
        module = form.naming.modules[self.name]

        def on_input(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
            # the user's hooks have run: the arguments kept are those they returned
            return given if name == self.name else form.on_input(name, args, kwargs)

        with torch.enable_grad(), ExitStack() as ending:
            given = self.begin(form, inputs)
            ending.callback(self._end)
            # the arguments that such hooks get, and may write to
            spare = [x.detach().clone() if module._forward_pre_hooks else x for x in inputs]
            args, kwargs = self._with(spare)
            try:
                watch = form.naming.watch(on_input, form.on_output)
                with self._autocast, form.eager, watch, form:
                    output = module(*args, **kwargs)
            except (LRPError, MemoryError, torch.cuda.OutOfMemoryError):
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                raise self._differs(f"failed when it ran again ({said})") from error
            results = _results(form, output)
            if _inner_values(tuple(results), form.leaves):
                raise self._differs("read values of its earlier run when it ran again")
            form.settle(tuple(results), whole=True)
            now = made(form.operations, results)
            if now.operations != self._made.operations:
                raise self._differs("computed something else when it ran again")
            if now != self._made:
                raise self._differs("gave other values when it ran again")
            pairs = [(t, c) for t, c in zip(results, upstream, strict=True) if c is not None]
            outputs, coefficients = zip(*pairs, strict=True)
            found = torch.autograd.grad(outputs, form.leaves, coefficients, allow_unused=True)
        return found

    def _differs(self, how: str) -> ModelError:
        """Return the error to raise where the second run is not the same as the first."""
        modules = self.outer.naming.modules.values()
        remedy = "leave it out"
        if any(getattr(getattr(m, "config", None), "use_cache", False) for m in modules):
            remedy = (
                "the model's config says use_cache=True, a key-value cache that every run adds to: "
                "call the model with use_cache=False, or leave the segment out"
            )
        return ModelError(
            f"checkpoint: '{self.name}' {how}, as where it keeps a state, draws numbers, reads "
            "what is written to after it, or adds up in no fixed order (index_put on several "
            f"threads; torch.use_deterministic_algorithms fixes it); {remedy}"
        )

    def _end(self) -> None:
        """Free the inner values."""
        self.form.release()
        del self.form
        self._stand_ins = ()
        self._arguments, self._given = ((), {}), []

    def _check(self, results: Sequence[Tensor]) -> None:
        """Raise where a run of its own would not be the same."""
        now = tensors_in(*self._arguments)
        if list(map(id, now)) != list(map(id, self._given)):
            raise ModelError(
                f"checkpoint: '{self.name}' changes a list or dict that it is given; leave it out"
            )
        if any(s._version for s in self._stand_ins):
            raise ModelError(
                f"checkpoint: '{self.name}' writes over its input in place, which others may read; "
                "make its first operation out of place, or leave it out"
            )
        refuse_inner_values(tuple(results), self.form.leaves)
        sources = self.outer.sources
        for node in graph.graph(tuple(results)):
            variable = getattr(node, "variable", None)  # of AccumulateGrad
            if any(variable is source for source in sources):
                raise ModelError(
                    f"checkpoint: '{self.name}' reads a value that depends on the inputs and is "
                    "none of its arguments; leave it out, or name the module around both"
                )


class _SegmentStep(torch.autograd.Function):
    """A segment's outputs, whose backward pass runs it again."""

    @staticmethod
    def forward(ctx: Any, run: SegmentRun, outputs: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        """Return the outputs."""
        ctx.set_materialize_grads(False)  # None for an output that nothing reads
        ctx.run = run
        ctx.save_for_backward(*(x.detach() for x in inputs))  # see autograd_nodes
        return tuple(t.clone() if t._is_view() else t for t in outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> Any:
        """Return the coefficients of the inputs."""
        try:
            inputs = ctx.saved_tensors
        except RuntimeError as error:
            raise ModelError(
                f"checkpoint: the model writes over an input of '{ctx.run.name}', in place, after "
                "it has run; make that operation out of place"
            ) from error
        return None, None, *ctx.run.again(inputs, upstream)


def _memory(t: Tensor) -> int:
    """Return a key that is equal for tensors that share their memory."""
    return t.untyped_storage().data_ptr() if t.numel() else id(t)


def _keep_order(t: Tensor, new: Tensor) -> None:
    """Let a max pool behind the segment choose between equals as the layer in it would."""
    order = order_of(t)
    if order is not None:
        use, version = order
        alone = replace(use, x=use.x.detach(), z=None)  # without the graph
        marks.put(new, "order", (alone, version))


def _results(form: GradientForm, output: Any) -> list[Tensor]:
    """Return the tensors of an output that depend on a segment's inputs, each once."""
    tensors = tensors_in((output,), {})
    return list({id(t): t for t in tensors if form.depends_on_input(t)}.values())


def refuse_inner_values(output: Any, own: Sequence[Tensor] = ()) -> None:
    """Raise ModelError where an output comes from an inner value of a segment.

    Args:
        output: The model's output, or a segment's.
        own: The leaves of the run of the segment.
    """
    for name in _inner_values(output, own):
        raise ModelError(
            f"checkpoint: a value made in '{name}' is read outside of it, and is not a tensor of "
            "its output, in tuples, lists or dicts; leave it out, or name the module around both"
        )


def _inner_values(output: Any, own: Sequence[Tensor]) -> list[str]:
    """Return the segments of which an output comes from an inner value, but for a run's own."""
    variables = (getattr(node, "variable", None) for node in graph.graph(output))
    others = (v for v in variables if v is not None and not any(v is leaf for leaf in own))
    return [name for v in others if (name := marks.get(v, "cut")) is not None]


def refusal(layer: str, where: str) -> RuleError:
    """Return the error for a rule that is not proportional to its input."""
    return RuleError(
        f"checkpoint: the rule on layer '{layer}' gives relevance that is not proportional to the "
        f"layer's input, which cannot be {where}; let a segment begin behind the layer, or choose "
        "a proportional rule such as EpsilonRule for it"
    )
