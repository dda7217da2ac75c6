"""Seeing every operation of a forward pass.

:class:`Interception` is a ``TorchFunctionMode``: while it is active *on this thread*, each torch
function the model calls, as a module, functional, method or operator, passes through it. That is
what lets one forward pass of an unchanged model serve functional code, reused modules, control flow
that depends on data, and several threads at once: a traced graph would fix the control flow, a
``TorchDispatchMode`` sees operations only below autograd, where their backward is decided already,
and module hooks see no functional code. It costs a few microseconds for each operation.

What LRP does with an operation is decided in ``treatments``; how relevance is carried, by the
subclasses in ``propagation``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lrp_stab.dispatch import (
    backward_hooks,
    first_layers,
    output_activation,
    treatments,
    without_rule,
)
from captum_lrp_stab.dispatch.call_checks import check_call
from captum_lrp_stab.dispatch.compiler import Eager
from captum_lrp_stab.dispatch.form import Compute, Form
from captum_lrp_stab.dispatch.layer_use import LayerUse, Turn, count_readers, keep_order
from captum_lrp_stab.dispatch.naming import Naming
from captum_lrp_stab.dispatch.operation import Operation, hidden_fallbacks, link
from captum_lrp_stab.dispatch.origins import UNSEEN, Origins
from captum_lrp_stab.dispatch.rule_assignment import Assignment
from captum_lrp_stab.dispatch.weights import Weights
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import flex_attention, nonnegative
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.operations.gates import Gates
from captum_lrp_stab.operations.table import kind_of
from captum_lrp_stab.rules import contractions
from captum_lrp_stab.rules.affine import Affine, Scale
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.graph import graph, is_transformed
from captum_lrp_stab.tensors.nested import mapped, tensors_in


class Connected(Protocol):
    """An object that holds a tensor with its node of the graph while the forward pass runs."""

    x: Tensor


_Connected = TypeVar("_Connected", bound=Connected)


def _writable(t: Tensor) -> Tensor:
    """Return a tensor made under no_grad so that the model may write to it, as it may without.

    Torch refuses every write to a view that was made under no_grad. That is right for a view of a
    parameter, but a function such as ``repeat_interleave`` returns a view of a tensor of its own.
    """
    if not t._is_view() or isinstance(t._base, nn.Parameter):
        return t
    out = t.detach()
    marks.carry(t, out)
    return out


class Interception(TorchFunctionMode, Form):
    """Run each operation of a forward pass under its treatment, and list them all.

    Args:
        model: The model.
        rule_sets: The rule of each operation; several for variants that share the forward pass.
    """

    def __init__(self, model: nn.Module, *rule_sets: RuleSet) -> None:
        super().__init__()
        self.rule_sets = rule_sets
        self.turn = Turn()
        self.optimize = True  # whether faster computations are allowed
        self.left_out: frozenset[int] = frozenset()  # output activations, by their ordinals
        self.naming = Naming(model)
        self.assignment = Assignment(self.naming, rule_sets)
        self._weights = Weights(model)
        self.operations: list[Operation] = []
        self.sources: tuple[Tensor, ...] = ()  # the leaves of all that depends on the inputs
        self._opening: list[Any] = []  # functions of Python whose body is running
        self._count = 0  # of operations listed so far
        self._origins = Origins()  # what depends on them
        self._connected: list[Connected] = []  # to be cut from the graph after the forward pass
        self._overwritten: list[Tensor] = []  # by the model, in place
        self.eager = Eager()  # while the model runs

    @property
    def rule_set(self) -> RuleSet:
        """The first variant's: how attention and batch norm are treated is the same in all."""
        return self.rule_sets[0]

    # dispatch ------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one torch function call; inside, the mode is off."""
        func, kwargs = treatments.of_operator(func), kwargs or {}
        if kind_of(func).fact:
            return self._fact(func, args, kwargs)
        call, has_graph = TorchCall(func, args, kwargs), torch.is_grad_enabled()
        transformed = is_transformed()
        if transformed or not has_graph or call.kind.random or "dropout_p" in kwargs:
            check_call(call, self.naming, self.depends_on_input, transformed)
        if transformed:  # such as a mask, of what is constant
            return call.run()
        given = [t for t in call.tensors if t.requires_grad]
        count_readers(given)
        if call.name == "data":  # what is written there leaves no trace
            marks.drop(args[0], "nonnegative")
        if not has_graph:
            return self._noted(call)
        call.data = tuple(filter(self.depends_on_input, given))
        if not call.data:
            return self._constant(call, given)
        if call.name == "register_hook":
            return backward_hooks.unused()
        written_out = self._written_out(call)
        if written_out is not None:
            return self._run_inside(call, written_out)
        return self._treated(call, given)

    def _treated(self, call: TorchCall, given: list[Tensor]) -> Any:
        """Run an operation on data under its treatment, and list it."""
        operation, served = self.assignment.operation(call, self.is_weights)
        operation.ordinals = frozenset([self._count])
        if self._count in self.left_out:
            call = output_activation.left_out(call)
        operation.function = call.name
        has_no_negative = self.optimize and nonnegative.gives_nonnegative(call)
        own, call = call, self.on_arguments(operation, call)
        if call is not own:
            call.data = tuple(filter(self.depends_on_input, call.tensors))
        call.gates = known = Gates(call)
        inputs = first_layers.among(call.data)  # before it runs, as well
        follow = self.following(call) if inputs else None
        treat = treatments.of(call.func, served) or without_rule.unknown
        out = treat(self, operation, call)
        known.keep_bases()
        if has_no_negative:
            nonnegative.mark(out)
        result = call.result(out)
        first_layers.note(operation, call.kind, result, inputs)
        if follow is not None and not operation.fallback:
            follow(result)
        return self._recorded(operation, out, result, given)

    def _fact(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return a property of a tensor, such as its shape."""
        name = kind_of(func).name
        asked_by = flex_attention.asked_by() if name in ("device", "requires_grad") else ""
        if asked_by:
            self.eager.begin()  # it compiles what it calls
        if asked_by == "_validate_device" and name == "requires_grad":
            return False  # it has no backward pass on a CPU, and here needs none of its own
        return func(*args, **kwargs)

    def _written_out(self, call: TorchCall) -> Callable[..., Any] | None:
        """Return the same function in single operations, None if it is one itself."""
        if call.kind.summand:
            return contractions.apart(call, self.is_weights)
        known, opened = treatments.written_out(call.func)
        return opened if known is None and call.func not in self._opening else known

    def _run_inside(self, call: TorchCall, written_out: Callable[..., Any]) -> Any:
        """Run a function that is written out, each operation of it under the mode."""
        self._opening.append(call.func)
        try:
            with self:
                return written_out(*call.args, **call.kwargs)
        finally:
            self._opening.pop()

    def _constant(self, call: TorchCall, given: list[Tensor]) -> Any:
        """Run an operation whose arguments do not depend on the input."""
        self.assignment.constant(call)
        if given and all(isinstance(t, nn.Parameter) for t in given):
            target = call.target
            if target is None or not target.requires_grad:  # else torch raises an error
                with torch.no_grad():  # no graph: less to keep, less to search
                    return mapped(_writable, self._noted(call))
        return self._noted(call)

    def _noted(self, call: TorchCall) -> Any:
        """Run an operation without data, and note what it computes from the model's parameters."""
        origin = self._weights.origin(call)
        out = call.run()  # one of these is what torch.no_grad() itself calls
        self._weights.note(call.result(out), origin)
        return out

    def _recorded(self, operation: Operation, out: Any, result: Any, given: list[Tensor]) -> Any:
        """List an operation whose result depends on the input; return what takes its place."""
        results = [t for t in tensors_in((result,), {}) if t.requires_grad]
        if not results:
            return out
        for t in results:
            if t._version:
                self.overwrote(t)
            if t.layout is not torch.strided or t.is_nested:
                kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
                raise ModelError(
                    f"operation '{operation.name}' gives a {kind} tensor, through which relevance "
                    "cannot be followed; make the model compute with dense tensors"
                )
        self._list(operation, results, given)
        return self.on_result(operation, out, result)

    def _list(self, operation: Operation, results: list[Tensor], given: Sequence[Tensor]) -> None:
        self._origins.note(results)
        operation.note(results, given)
        self.operations.append(operation)
        self._count += 1

    def refuse_unserved(self) -> None:
        """Raise RuleError if a rule met no operation of the pass that it serves."""
        self.assignment.refuse_unserved(self.operations, self._weights.used)

    def restart(self) -> None:
        """Forget a pass, except what the rules of modules serve, before another one."""
        Interception.release(self)
        self.operations, self._count = [], 0
        self.assignment.restart()

    def adopt(self, other: Interception) -> None:
        """List the operations of a part of the pass that ran under another form."""
        self.operations += other.operations

    def take_turn(self, variant: int) -> None:
        """Make another set of rules active for the backward pass that follows."""
        self.turn.variant = variant
        for operation in self.operations:
            if operation.rules:
                operation.rule = operation.rules[variant]

    def check_pass(self, output: Any) -> None:
        """Raise an error if relevance cannot be propagated through the pass that has run."""

    def settle(self, output: Any, whole: bool = False) -> None:
        """Note, after the pass, which operations relevance reaches on its way from ``output``.

        Args:
            output: What the model returned.
            whole: Look at every operation, not at fallbacks alone, and at what each reads.
        """
        for t in tensors_in((output,), {}):
            self.depends_on_input(t)  # lists operations that ran out of sight
        self._note_reached(output, whole)
        count_readers(tensors_in((output,), {}))
        self._disconnect()

    def _note_reached(self, output: Any, whole: bool) -> None:
        """Note which operations relevance reaches, and free their nodes of the graph."""
        ran, nodes = self.operations, dict.fromkeys(graph(output))
        for operation in ran:
            in_question = whole or operation.fallback or operation.is_merged
            if in_question and operation.nodes is not None:
                found = any(node in nodes for node in operation.nodes)
                operation.reached = found or operation.is_absorbed
        behind = output_activation.find(output, ran)
        for operation in ran:
            operation.head = behind.get(operation)
        self.operations = [o for o in ran if o.reached or not o.is_merged]
        self.operations += hidden_fallbacks(nodes)
        if whole:
            link(self.operations)
        for operation in ran:  # also of those left out: their nodes would keep the pass alive
            operation.nodes = None

    def release(self) -> None:
        """Free the graph, after the pass or after an exception in it.

        Nodes of the graph hold this form and the layers, and a cycle that leads back to a node is
        never freed, because the garbage collector does not see what the graph holds. A write in
        place closes such a cycle if a tensor is kept with its node: ``x += conv(x)`` does, with the
        x that the convolution has read.
        """
        self.sources = ()
        for operation in self.operations:
            operation.nodes = None
        self._disconnect()
        for t in self._overwritten:  # one of torch's nodes may have kept its former value
            (t if t._base is None else t._base).detach_()
        self._overwritten.clear()

    def _disconnect(self) -> None:
        """Free nodes, and cut what is kept beside the graph from it."""
        self._origins.clear()
        for one in self._connected:
            one.x = one.x.detach()
        self._connected.clear()

    def overwrote(self, t: Tensor) -> None:
        """Note a tensor that has been written to in place, with what depends on an input."""
        self._origins.note([t])
        self._overwritten.append(t)

    def cut_after(self, one: _Connected) -> _Connected:
        """Return an object that holds a tensor ``x``, to be cut from the graph after the pass."""
        self._connected.append(one)
        return one

    # what treatments ask -------------------------------------------------------------------------

    def depends_on_input(self, t: Tensor) -> bool:
        """Return whether a tensor depends on the model's input: not so one made of parameters."""
        return self._origins.has(t, self._list_unseen)

    def known(self, t: Tensor) -> Tensor:
        """Return a tensor that a treatment computed from data, noted as data too."""
        self._origins.note([t])
        return t

    def _list_unseen(self, t: Tensor, names: str) -> str:
        """List the unseen operation that made a tensor, and return the name it gets."""
        number = sum(operation.kind == UNSEEN for operation in self.operations)
        reason = f"run out of sight: {names}"
        operation = Operation(f"{UNSEEN}_{number}", UNSEEN, fallback=reason)
        operation.ordinals = frozenset([self._count])
        self._list(operation, [t], ())
        return operation.name

    def is_weights(self, t: Tensor) -> bool:
        """Return whether a tensor is a parameter of the model, or made of parameters."""
        return self._weights.has(t) or (t.requires_grad and not self.depends_on_input(t))

    def rules_of(self, operation: Operation, call: TorchCall, x: Tensor) -> tuple[Rule, ...]:
        """Return the rules of a layer, one for each variant; none if no variant has one."""
        is_first = first_layers.is_read_by_first(x, self.operations)
        return self.assignment.of_layer(operation, call, is_first)

    def layer_use(
        self,
        operation: Operation,
        op: Affine,
        rules: tuple[Rule, ...],
        x: Tensor,
        scale: Scale | None = None,
    ) -> LayerUse:
        """Return the use of a layer under its rule."""
        use = LayerUse(
            operation,
            op,
            rules,
            x,
            scale,
            nonnegative=self.optimize and nonnegative.is_nonnegative(x),
            turn=self.turn,
            run=self.naming.run,
        )
        return self.cut_after(use)

    def serve(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the output of a rule-bearing layer, marked as such."""
        use.operation.rule, use.operation.rules = use.rule, use.rules
        out = self.affine(use, compute)
        marks.put(out, "layer", use)
        keep_order(out, (use, use.x._version))
        return out

    def serve_merged(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the output of a layer that its batch norm or its bias has been merged with."""
        if use.operation.batch_norm:
            self.assignment.served.add(use.operation.batch_norm)
        return self.serve(use, compute)
