"""Seeing every operation of a forward pass.

:class:`Interception` is a ``TorchFunctionMode``: while it is active *on this thread*, each torch
function the model calls, as a module, functional, method or operator, passes through it. That is
what lets one forward pass of an unchanged model serve functional code, reused modules, data-
dependent control flow and several threads at once: a traced graph would fix the control flow, a
``TorchDispatchMode`` sees operations only below autograd, where their backward is decided already,
and module hooks see no functional code. It costs a few microseconds for each operation.

What LRP makes of an operation is decided in ``treatments``; how relevance is carried, by the
subclasses in ``gradient_form``, ``relevance_form`` and ``modified_forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from captum_lrp_stab.dispatch import (
    backward_hooks,
    call_checks,
    first_layers,
    max_pools,
    output_activation,
    reached,
    treatments,
)
from captum_lrp_stab.dispatch.compiler import Eager
from captum_lrp_stab.dispatch.form import Call, Carrying
from captum_lrp_stab.dispatch.layer_use import Site, Turn, count_readers
from captum_lrp_stab.dispatch.naming import Places
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.dispatch.origins import UNSEEN, Origins
from captum_lrp_stab.dispatch.rule_assignment import Assignment
from captum_lrp_stab.dispatch.weights import Weights
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.fast.factor_cache import Memo
from captum_lrp_stab.fast.parameter_cache import Derived
from captum_lrp_stab.operations import (
    calls,
    decompositions,
    flex_attention,
    nonnegative,
    table,
)
from captum_lrp_stab.operations.gates import Operands
from captum_lrp_stab.rules import contractions
from captum_lrp_stab.rules.affine import Affine, Scale
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.tensors import marks, nested
from captum_lrp_stab.tensors.nested import tensors_in


class Connected(Protocol):
    """What keeps a tensor with its node of the graph, while the forward pass runs."""

    x: Tensor


_Connected = TypeVar("_Connected", bound=Connected)


def _writable(t: Tensor) -> Tensor:
    """Return what was made under no_grad so that it may be written to where it may without.

    Torch refuses to write to any view that was made there. It is right to where the view is one
    of a parameter; a function such as ``repeat_interleave`` gives a view of what it has made.
    """
    if not t._is_view() or isinstance(t._base, nn.Parameter):
        return t
    out = t.detach()
    marks.carry(t, out)
    return out


class Interception(TorchFunctionMode, Carrying):
    """Let each operation of a forward pass have its treatment, and list them all.

    Args:
        model: The model.
        rule_sets: The rule of each operation; several for variants that share the forward pass.
    """

    def __init__(self, model: nn.Module, *rule_sets: RuleSet) -> None:
        super().__init__()
        self.rule_sets = rule_sets
        self.turn = Turn()
        self.optimize = True  # take the short ways, where there are some
        self.store: Derived | None = None  # keeps what is made of parameters
        self.has_several = False  # backward passes
        self.left_out: frozenset[int] = frozenset()  # output activations, by their ordinals
        self.places = Places(model)
        self.assignment = Assignment(self.places, rule_sets)
        self._weights = Weights(model)
        self.operations: list[Operation] = []
        self.sources: tuple[Tensor, ...] = ()  # what all that depends on the inputs comes from
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
        call_checks.check_call(func, args, kwargs, self.places, self.depends_on_input)
        name = table.canonical_name(func)
        if name in table.FACTS:
            return self._fact(func, name, args, kwargs)
        if call_checks.is_transformed():  # such as a mask, of what is constant
            return func(*args, **kwargs)
        given = [t for t in tensors_in(args, kwargs) if t.requires_grad]
        count_readers(given)
        if name == "data":  # what is written there leaves no trace
            marks.drop(args[0], "nonnegative")
        if not torch.is_grad_enabled():
            return self._noted(func, args, kwargs)
        live = list(filter(self.depends_on_input, given))
        if not live:
            return self._constant(func, given, args, kwargs)
        if name == "register_hook":
            return backward_hooks.unused()
        written_out = self._written_out(func)
        if written_out is None and name in table.SUMMANDS:
            written_out = contractions.apart(func, args, kwargs, self)
        if written_out is not None:
            return self._run_inside(func, written_out, args, kwargs)
        operation, served = self.assignment.operation(func, args, kwargs, self)
        operation.ordinals = frozenset([self._count])
        own = args
        if self._count in self.left_out:
            func, args, kwargs = output_activation.left_out(func, args, kwargs)
        operation.function = table.canonical_name(func)
        has_no_negative = nonnegative.gives_nonnegative(func, args, kwargs)
        args, kwargs = self.on_operands(operation, func, args, kwargs)
        if args is not own:
            live = list(filter(self.depends_on_input, tensors_in(args, kwargs)))
        operation.operands = operands = Operands(live)
        inputs = first_layers.among(live)  # before it runs, as well
        follow = self.following(func, args, kwargs) if inputs else None
        treatment = treatments.of(func, served) or treatments.unknown
        out = treatment(self, operation, func, args, kwargs)
        operation.operands = Operands()
        operands.keep_bases()
        if has_no_negative:
            nonnegative.mark(out)
        result = args[0] if func is Tensor.__setitem__ else out
        first_layers.note(operation, func, result, inputs)
        if follow is not None and not operation.fallback:
            follow(result)
        return self._recorded(operation, out, result, given)

    def _fact(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Return what a tensor tells of itself."""
        asked_by = flex_attention.asked_by() if name in ("device", "requires_grad") else ""
        if asked_by:
            self.eager.begin()  # it compiles what it calls
        if asked_by == "_validate_device" and name == "requires_grad":
            return False  # it has no backward pass on a CPU, and here needs none of its own
        return func(*args, **kwargs)

    def _written_out(self, func: Any) -> Call | None:
        """Return the same function in single operations, None if it is one itself."""
        known: Call | None = decompositions.written_out(func)
        if known is None and treatments.of(func) is None and func not in self._opening:
            known = decompositions.opened(func)
        return known

    def _run_inside(self, func: Any, written_out: Any, args: Any, kwargs: Any) -> Any:
        """Run a function that is written out, each operation of it under the mode."""
        self._opening.append(func)
        try:
            with self:
                return written_out(*args, **kwargs)
        finally:
            self._opening.pop()

    def _constant(self, func: Any, given: list[Tensor], args: Any, kwargs: Any) -> Any:
        """Run an operation that nothing of the input takes part in."""
        self.assignment.constant(func)
        target = calls.written(func, args, kwargs)
        writes_to_parameter = target is not None and target.requires_grad  # torch's to refuse
        if given and not writes_to_parameter and all(isinstance(t, nn.Parameter) for t in given):
            with torch.no_grad():  # no graph: less to keep, less to search
                return nested.mapped(_writable, self._noted(func, args, kwargs))
        return self._noted(func, args, kwargs)

    def _noted(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation without data, and note what it makes of the model's parameters."""
        origin = self._weights.origin(func, args, kwargs)
        out = func(*args, **kwargs)  # one of these is what torch.no_grad() itself calls
        self._weights.note(args[0] if func is Tensor.__setitem__ else out, origin)
        return out

    def _recorded(self, operation: Operation, out: Any, result: Any, given: list[Tensor]) -> Any:
        """List an operation whose result depends on the input; return what takes its place."""
        results = [t for t in tensors_in((result,), {}) if t.requires_grad]
        if not results:
            return out
        for t in results:
            if t.is_nested or t.layout is not torch.strided:
                kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.")
                raise ModelError(
                    f"operation '{operation.name}' gives a {kind} tensor, through which relevance "
                    "cannot be followed; make the model compute with dense tensors"
                )
        for t in results:
            if t._version:
                self.overwrote(t)
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
        """Forget a pass, but what the rules of modules serve, before another one."""
        Interception.release(self)
        self.operations, self._count = [], 0
        self.assignment.restart()

    def adopt(self, other: Interception) -> None:
        """List the operations of a part of the pass that ran under another form."""
        self.operations += other.operations

    def take_turn(self, variant: int) -> None:
        """Let the backward pass that follows be that of another set of rules."""
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
            self.depends_on_input(t)  # which lists what nobody has seen that made it
        self.operations = reached.settled(self.operations, output, whole)
        count_readers(tensors_in((output,), {}))
        self._disconnect()

    def release(self) -> None:
        """Let go of the graph, after the pass or after an exception in it.

        Nodes of the graph hold this form and the layers, and nothing frees a cycle that leads back
        to a node: the garbage collector does not see what the graph holds. An operation that writes
        in place makes one of every tensor that is kept with its node, ``x += conv(x)`` of the x
        that the convolution has read.
        """
        self.sources = ()
        for operation in self.operations:
            operation.nodes = None
        self._disconnect()
        for t in self._overwritten:  # an operation of torch's own may have kept what it was
            (t if t._base is None else t._base).detach_()
        self._overwritten.clear()

    def _disconnect(self) -> None:
        """Let go of nodes, and cut what is kept beside the graph from it."""
        self._origins.clear()
        for one in self._connected:
            one.x = one.x.detach()
        self._connected.clear()

    def overwrote(self, t: Tensor) -> None:
        """Note a tensor that has been written to in place, with what depends on an input."""
        self._origins.note([t])
        self._overwritten.append(t)

    def connected(self, one: _Connected) -> _Connected:
        """Return what reads a tensor of the graph, to be cut from it after the forward pass."""
        self._connected.append(one)
        return one

    # what treatments ask -------------------------------------------------------------------------

    def depends_on_input(self, t: Tensor) -> bool:
        """Return whether a tensor depends on the model's input: not so one made of parameters."""
        return self._origins.has(t, self._list_unseen)

    def known(self, t: Tensor) -> Tensor:
        """Return a value that is no operation's, but made here of what depends on an input."""
        self._origins.note([t])
        return t

    def _list_unseen(self, t: Tensor, names: str) -> str:
        """List what has made a tensor, which nobody has seen, and return the name it gets."""
        number = sum(operation.kind == UNSEEN for operation in self.operations)
        reason = f"run out of sight: {names}"
        operation = Operation(f"{UNSEEN}_{number}", UNSEEN, fallback=reason)
        operation.ordinals = frozenset([self._count])
        self._list(operation, [t], ())
        return operation.name

    def is_weights(self, t: Tensor) -> bool:
        """Return whether a tensor is a parameter of the model, or made of parameters."""
        return self._weights.has(t) or (t.requires_grad and not self.depends_on_input(t))

    def rules_of(self, operation: Operation, func: Any, x: Tensor) -> tuple[Rule, ...]:
        """Return the rules of a layer that calls ``func`` on ``x``."""
        is_first = first_layers.is_read_by_first(x, self.operations)
        return self.assignment.of_layer(operation, func, is_first)

    def site(
        self,
        operation: Operation,
        op: Affine,
        rules: tuple[Rule, ...],
        x: Tensor,
        scale: Scale | None = None,
    ) -> Site:
        """Return the use of a rule-bearing layer.

        Args:
            operation: Its record.
            op: Its map.
            rules: One for each variant.
            x: Its input.
            scale: A batch norm that is one layer with it.
        """
        several = self.has_several and self.optimize
        site = Site(
            operation,
            op,
            rules,
            x,
            scale,
            nonnegative=nonnegative.is_nonnegative(x),
            turn=self.turn,
            run=self.places.run,
            store=self.store,
            memo=Memo(rules, self.turn) if several else None,
        )
        return self.connected(site)

    def serve(self, site: Site, call: Call) -> Tensor:
        """Return the output of a rule-bearing layer, marked as such."""
        site.operation.rule, site.operation.rules = site.rule, site.rules
        out = self.affine(site, call)
        marks.put(out, "site", site)
        max_pools.keep_order(out, (site, site.x._version))
        return out

    def on_merge(self, site: Site, call: Call) -> Tensor:
        """Return the output of a layer that its batch norm or its bias has been merged with."""
        if site.operation.batch_norm:
            self.assignment.served.add(site.operation.batch_norm)
        return self.serve(site, call)
