"""LRP in gradient form, in one forward and one backward pass of an unchanged model.

The backward pass carries the coefficient c of each tensor, with relevance R = tensor * c; it starts
with 1 at the target and ends with ``input * c``. Every operation that is linear through 0 on each
of its pieces (ReLU, max pooling, +, mean, cat, reshape, ...) is exactly LRP-0 under plain autograd;
layers with a rule, and other activations, get a custom backward pass.

Source: Montavon et al. 2019, ch. 10.2 and Algorithm 8; see ``kernel`` for the formulas.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch import first_layers
from captum_lrp_stab.dispatch.form import Compute, Follow
from captum_lrp_stab.dispatch.layer_use import LayerUse, layer_of
from captum_lrp_stab.dispatch.mode import Interception
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError, UnreachedError
from captum_lrp_stab.fast import coefficients
from captum_lrp_stab.fast.factor_cache import Memo
from captum_lrp_stab.fast.parameter_cache import Derived
from captum_lrp_stab.operations import activations
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.propagation.autograd_nodes import FactorStep, RuleStep
from captum_lrp_stab.propagation.carriers import Carriers
from captum_lrp_stab.propagation.observer import Observer, Passage, as_it_is
from captum_lrp_stab.propagation.probes import CarrierProbeStep, Probe, Probes
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.kernel import Division
from captum_lrp_stab.tensors.blocks import Buffer
from captum_lrp_stab.tensors.complex_values import as_real, like, total


def times(x: Tensor, c: Tensor, scale: float = 1.0) -> Tensor:
    """Return the relevance ``x * c / scale``, 0 where either is 0; part by part of complex ones."""
    x_, c_ = (as_real(x), as_real(c)) if x.is_complex() or c.is_complex() else (x, c)
    R = x_ * c_ if scale == 1 else (x_.float() * c_.float() / scale).to(x_.dtype)
    if not bool(R.sum().isfinite()):  # else 0 times anything is 0 already
        R.masked_fill_((x_ == 0) | (c_ == 0), 0)
    return like(R, x) if x.is_complex() else R


def divided(R: Tensor, x: Tensor) -> Tensor:
    """Return the coefficient ``R / x``, where 0/0 is 0; part by part of complex ones."""
    x_ = as_real(x)
    return like((as_real(R) / x_).masked_fill(x_ == 0, 0), x)


def propagated(
    observer: Observer | None,
    use: LayerUse,
    op: Affine,
    x: Tensor,
    z: Tensor,
    carried: Tensor,
    division: Division,
    **options: Any,
) -> Tensor:
    """Return what a layer's rule propagates to its input, and call the observer, if there is one.

    Args:
        observer: Called with the passage.
        use: The layer.
        op: Its map.
        x: Its input.
        z: Its output.
        carried: What the backward pass carries for ``z``.
        division: How the rule divides.
        **options: Further fields of :class:`Passage`; relevance is carried as it is without them.
    """
    result, sent = use.rule.propagated(op, x, z, carried, division)
    if observer is not None:
        options = {"above": as_it_is, "below": as_it_is} | options
        ends = (x,), z, carried, (result,), division
        observer.backward(Passage(use.operation, *ends, use=use, messages=sent, **options))
    return result


class GradientForm(Interception):
    """Carry coefficients; see the module's docstring."""

    #: In float16 what is carried is multiplied by this: coefficients below 1e-7, which would be
    #: rounded to 0, are common, and such above 64 are not. All is proportional to the seed, so that
    #: a power of 2 changes nothing else.
    float16_scale = 2.0**10
    #: Whether the backward pass of an activation multiplies by g(z) / z.
    has_factors = True
    store: Derived | None = None  # the cache of what is computed from parameters
    has_several = False  # backward passes

    def prepare(
        self, inputs: tuple[Tensor, ...], probes: tuple[Probe, ...], observer: Observer | None
    ) -> tuple[Tensor, ...]:
        """Return stand-ins for the inputs, with leaves that collect coefficient and relevance."""
        self.observer = observer
        self._scale = 1.0  # of what the backward pass carries
        self._is_last = False  # the model may run a backward pass of its own before
        self._buffer: Buffer | None = None
        self._memos: dict[LayerUse, Memo] = {}  # where several backward passes follow
        self._constants: list[Tensor] = []  # which count as data, because a probe is there
        # layers whose rule is not proportional to their input
        self.direct_uses: list[LayerUse] = []
        # by a weak reference: a cycle would keep the model alive until the garbage collector runs
        self._probes = Probes(probes, weakref.proxy(self)) if probes else ()
        self.leaves = tuple(x.detach().clone().requires_grad_() for x in inputs)
        self.carriers = tuple(torch.zeros_like(x, requires_grad=True) for x in inputs)
        self.sources = (*self.leaves, *self.carriers)
        stand_ins = tuple(leaf.clone() for leaf in self.leaves)
        self._origins.note(stand_ins)
        self._beside = Carriers(zip(stand_ins, self.carriers, strict=True))
        first_layers.mark(stand_ins)
        return stand_ins

    def seed(self, score: Tensor) -> Tensor:
        """Return what the backward pass starts with."""
        return torch.ones_like(score)

    def relevance_of(self, value: Tensor, carried: Tensor) -> Tensor:
        """Return the relevance of a tensor, given what the backward pass carries for it."""
        R = times(value, carried, self._scale)
        return total(R) if R.is_complex() else R

    def relevances(self, score: Tensor, is_last: bool = True) -> tuple[Tensor, ...]:
        """Run the backward pass and return the relevance of each input.

        Args:
            score: The target's output, shape ``(N,)``.
            is_last: Whether no other backward pass follows.

        Raises:
            UnreachedError: The score does not depend on any input.
        """
        self._is_last = is_last
        points = (*self.leaves, *self.carriers, *self._constants)
        gradients: tuple[Tensor | None, ...] = ()
        if score.requires_grad:
            half = any(t.dtype == torch.float16 for t in (score, *self.leaves))
            self._scale = self.float16_scale if half else 1.0
            gradients = self._gradients(score, points)
            if self._scale != 1 and not self._are_finite(gradients):
                self._scale = 1.0
                self.forget_relevance()
                gradients = self._gradients(score, points)
        if all(gradient is None for gradient in gradients):
            model = type(self.naming.modules[""]).__name__
            raise UnreachedError(
                f"the output of {model} does not depend on the inputs through "
                "differentiable operations; remove torch.no_grad(), detach() or argmax "
                "from its forward"
            )
        n = len(self.leaves)
        totals = []
        for leaf, c, direct in zip(self.leaves, gradients[:n], gradients[n : 2 * n], strict=True):
            total = torch.zeros_like(leaf)
            if c is not None:
                total = self.noted(leaf.detach(), c, self.carries_relevance(leaf))
            totals.append((total if direct is None else total + direct / self._scale).detach())
        return tuple(totals)

    def forget_relevance(self) -> None:
        """Drop what was seen of the backward pass, before another one."""
        for probe in self._probes:
            probe.forget()
        if self.observer is not None:
            self.observer.again()

    def release(self) -> None:
        """Free the tensors of the pass: their graph holds the probes."""
        super().release()
        self._beside.clear()
        self.direct_uses.clear()
        self.leaves = self.carriers = ()
        self._constants.clear()
        self._probes = ()
        self._memos.clear()

    def _are_finite(self, gradients: tuple[Tensor | None, ...]) -> bool:
        noted = (R for probe in self._probes for R in probe.relevances)
        return all(bool(t.isfinite().all()) for t in (*gradients, *noted) if t is not None)

    def _gradients(self, score: Tensor, points: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        seed, again = self.seed(score) * self._scale, self.retains
        try:
            return torch.autograd.grad(score, points, seed, retain_graph=again, allow_unused=True)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise ModelError(
                "the model writes in place over a value that its backward pass needs, such as the "
                "output of a ReLU that is no longer the last to be written; training it would fail "
                f"in the same way, with: {error}. Make that operation out of place"
            ) from error

    def settle(self, output: Any, whole: bool = False) -> None:
        """Note which operations relevance reaches."""
        self.direct_uses.clear()
        super().settle(output, whole)

    def affine(self, use: LayerUse, compute: Compute) -> Tensor:
        """Return the layer's output with its rule as backward pass."""
        proportional = all(rule.proportional for rule in use.rules)
        carrier = None if proportional else self.carrier_of(use)
        out: Tensor = RuleStep.apply(use.x, carrier, compute, use, self)
        if self.observer is not None:
            self.observer.forward(use.operation, use.x, out, out)
        return out

    def propagated(self, use: LayerUse, x: Tensor, c: Tensor) -> Tensor:
        """Return the coefficient of a layer's input, or its relevance, given that of its output."""
        in_few_steps = self.optimize and self.observer is None
        unmerged = in_few_steps and coefficients.has_own_weights(use.rule) and use.is_wide(c)
        op = use.affine if unmerged else use.op
        c = use.through_batch_norm(c) if unmerged else c
        z, rectified = use.pre_activation(op, x, c)
        result = self._in_few_steps(use, op, x, z, c, rectified) if in_few_steps else None
        if result is None:
            if use.activation is not None:  # c is still its coefficient; where z is 0 so is c
                c = activations.scaled(c, z, use.activation, 0.0)
            below = self.relevance_of if use.rule.proportional else self._unscaled
            ends: Any = {"above": self.relevance_of, "below": below, "scale": self._scale}
            result = propagated(self.observer, use, op, x, z, c, Division.COEFFICIENT, **ends)
        use.release(self.retains)
        return result

    def _in_few_steps(
        self, use: LayerUse, op: Affine, x: Tensor, z: Tensor, c: Tensor, rectified: bool
    ) -> Tensor | None:
        """Return the same up to rounding, None where only the rule's formula gives it."""
        known = coefficients.Known(use.nonnegative, rectified or use.is_cut, rectified)
        place = use.name, use.operation.batch_norm
        self._buffer = self._buffer or Buffer()
        tools = coefficients.Tools(self._buffer, self._memo_of(use), self.store, place)
        return coefficients.coefficient(use.rule, op, x, z, c, known, tools, use.activation)

    def _memo_of(self, use: LayerUse) -> Memo | None:
        """Return what the layer has kept of earlier backward passes, None if there is only one."""
        if not self.has_several:
            return None
        if use not in self._memos:
            self._memos[use] = Memo(use.rules, self.turn)
        return self._memos[use]

    def _unscaled(self, value: Tensor, relevance: Tensor) -> Tensor:
        return relevance / self._scale

    @property
    def retains(self) -> bool:
        """Whether there may be another backward pass."""
        return self._scale != 1 or not self._is_last

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``g(z)`` with ``g(z) / z`` as backward factor."""
        use = self._layer_of(z)
        return FactorStep.apply(z, slope, g, None, use)  # type: ignore[no-any-return]

    def _layer_of(self, z: Tensor) -> LayerUse | None:
        """Return the layer whose output ``z`` is, if it can include the activation's factor."""
        plain = self.has_factors and self.optimize and self.observer is None
        use = layer_of(z) if plain and not self._probes else None
        return use if use is not None and use.keeps_sign else None

    def activation_in_place(
        self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor], kept: Tensor
    ) -> Tensor:
        """Write ``g(z)`` over ``z`` and return it, with ``g(z) / z`` as backward factor."""
        # a custom function must not write to a view; other forms have activations of their own
        if z._is_view() or not self.has_factors:
            return super().activation_in_place(z, slope, g, kept)
        out: Any = FactorStep.apply(z, slope, g, kept, self._layer_of(z))
        out.grad_fn.version = out._version  # which autograd has raised once more
        return out  # type: ignore[no-any-return]

    def as_activation(self, call: TorchCall) -> Any:
        """Run a rectifier as an activation, in place where it is."""
        # not the call in a function that the graph keeps: see FactorStep
        func, further, options = call.func, call.args[1:], call.options
        out = self.activation(call.x, 0.0, lambda z: func(z.clone(), *further, **options))
        return call.x.copy_(out) if call.writes else out

    def following(self, call: TorchCall) -> Follow | None:
        """Return the function that gives an operation's result its carrier."""
        return self._beside.following(call)

    def carrier_of(self, use: LayerUse) -> Tensor | None:
        """Return the carrier of the input that ``use`` reads, None if it reads none."""
        carrier = self._beside.of(use.x)
        use.reads_input = carrier is not None
        self.direct_uses.append(use)
        return carrier

    # probes --------------------------------------------------------------------------------------

    def on_input(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Probe a module's inputs if asked to."""
        if not self._probes:
            return args, kwargs
        with torch._C.DisableTorchFunction():
            return self._probes.entering(name, args, kwargs)

    def on_output(self, name: str, output: Any) -> Any:
        """Probe a module's output if asked to."""
        if not self._probes:
            return output
        with torch._C.DisableTorchFunction():
            return self._probes.leaving(name, output, output)

    def serve_merged(self, use: LayerUse, compute: Compute) -> Tensor:
        """Probe a layer behind its batch norm, with which it is one layer."""
        if self.observer is not None:
            self.observer.forget(use.operation)
        out = super().serve_merged(use, compute)
        if self._probes:
            for name in (use.name, use.operation.owner):
                self._probes.watched(name, out, out)
        return out

    def on_arguments(self, operation: Operation, call: TorchCall) -> TorchCall:
        """Probe the arguments of an operation if asked to, unless its module does so."""
        if not self._probes:
            return call
        names = (operation.name, operation.owner) if operation.owner else (operation.name,)
        operation.probed = tuple(filter(self._is_probed_here, names))
        for name in operation.probed:
            args, kwargs = self._probes.entering(name, call.args, call.kwargs)
            call = TorchCall(call.func, args, kwargs, call.data)
        return call

    def _is_probed_here(self, name: str) -> bool:
        if name not in self.naming.modules:
            return True
        is_wanted = any(probe.is_wanted for probe in self._probes if probe.name == name)
        return is_wanted and not self.naming.is_running(name)

    def _list_unseen(self, t: Tensor, names: str) -> str:
        """List the unseen operation that made a tensor, and probe it if asked to."""
        name = super()._list_unseen(t, names)
        if self._probes:
            self._probes.watched(name, t, t)
        return name

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Probe the result of an operation if asked to, unless its module does so."""
        if self._probes:
            for name in reversed(operation.probed):
                output = self._probes.leaving(name, output, result)
        return output

    def as_data(self, t: Tensor) -> Tensor:
        """Return a copy of a constant that counts as if it came from an input, with relevance."""
        with torch.enable_grad():
            leaf = t.detach().clone().requires_grad_()
            self._constants.append(leaf)
            return self.known(leaf.clone())

    def noted(self, value: Tensor, carried: Tensor, as_it_is: bool) -> Tensor:
        """Return the relevance of a value, given what the backward pass carries for it."""
        return total(carried / self._scale) if as_it_is else self.relevance_of(value, carried)

    def branch(self, t: Tensor, copy: Tensor, note: Callable[[Tensor], None]) -> None:
        """Note the relevance of the carrier of ``t``, and give the carrier to ``copy``."""
        carrier = self._beside.of(t)
        if carrier is not None:
            noting = CarrierProbeStep.apply(carrier, lambda R: note(R / self._scale))
            self._beside.put(copy, noting)

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Give the carrier of a tensor to another one that has its values now."""
        self._beside.carry(source, target)
