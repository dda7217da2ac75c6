"""The base class of all rules: Captum's ``PropagationRule`` protocol around the shared kernel.

Stock ``captum.attr.LRP`` calls ``forward_hook_weights`` on every layer in a first forward pass,
``forward_pre_hook_activations`` before and ``forward_hook`` after it in a second one, and expects
to find ``relevance_input`` and ``relevance_output`` filled after the backward pass. Captum's own
rules overwrite ``weight.data`` in the first pass; these replace the layer's output by a custom
autograd function in the second, so that no parameter is ever touched.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

import captum_lrp_stab.stabilizers as stabilizers
import captum_lrp_stab.types as types
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.rules import affine_builders, kernel
from captum_lrp_stab.rules.affine import Affine, Sum
from captum_lrp_stab.rules.complex_layers import join, on_pairs, split
from captum_lrp_stab.rules.kernel import Division, Group, Sent
from captum_lrp_stab.stabilizers import StabilizerLike
from captum_lrp_stab.tensors.graph import OWN
from captum_lrp_stab.tensors.step import Backward, Step

_FORMULA = ("coefficient", "groups", "messages", "relevance", "stabilize")


class Rule(PropagationRule):  # type: ignore[misc]  # Captum has no type information
    """A propagation rule: parameters, a stabilizer, and a formula (``groups``).

    Subclasses implement :meth:`groups`. Instances work in stock ``captum.attr.LRP``, set as
    ``module.rule``, and in :class:`captum_lrp_stab.LRP`; they hold parameters only.

    Args:
        stabilizer: A float e for ``Signed(e)``, one of :mod:`captum_lrp_stab.stabilizers`, or any
            callable from denominators to denominators of the same shape and dtype.

    Raises:
        StabilizerError: ``stabilizer`` is neither a non-negative number nor a callable.
    """

    #: Whether the relevance is proportional to the layer's input, so that a gradient form exists.
    proportional = True
    #: Name of the layer the rule is set on, for error messages.
    layer = ""

    def __init__(self, stabilizer: StabilizerLike = 1e-6) -> None:
        self.stabilizer = stabilizers.ensure(stabilizer)

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return the rule's formula on a layer.

        Args:
            op: The layer's affine map; its weights are never written to.
            x: The layer's input, shape ``(N, *in_features)``.
        """
        raise RuleError(f"{type(self).__name__} has no formula: implement groups(op, x)")

    @property
    def is_elementwise(self) -> bool:
        """Whether each stabilized denominator depends on its own denominator only."""
        s = self.stabilizer
        if not self.is_by_messages or not isinstance(s, stabilizers.Stabilizer):
            return False
        known = (type(s).stabilize, type(self).stabilize)
        ours = all(f.__module__.startswith(OWN) for f in known)
        return ours and s.is_elementwise

    @property
    def moves_away_from_0(self) -> bool:
        """Whether no denominator ever comes nearer to 0 by the stabilizer."""
        s = self.stabilizer
        return isinstance(s, stabilizers.Stabilizer) and s.moves_away_from_0

    def with_stabilizer(self, stabilizer: StabilizerLike) -> "Rule":
        """Return the same rule with another stabilizer, on the same layer."""
        other = copy.copy(self)
        other.stabilizer = stabilizers.ensure(stabilizer)
        return other

    def stabilize(self, z: Tensor, magnitude: Callable[[], Tensor]) -> Tensor:
        """Return the stabilized denominators, shaped like ``z``.

        Raises:
            StabilizerError: The stabilizer returned another shape, dtype or device.
        """
        return stabilizers.apply(self.stabilizer, z, magnitude)

    def relevance(
        self, op: Affine, x: Tensor, z: Tensor, R: Tensor, protected: bool = False
    ) -> Tensor:
        """Return the relevance of ``x``, given that of ``z = op(x)``. Relevance form.

        With ``protected``, 0/0 is 0.
        """
        division = Division.PROTECTED if protected else Division.BARE
        return kernel.relevance(self.messages(op, x, z, R, division), op, x)

    def coefficient(self, op: Affine, x: Tensor, z: Tensor, c: Tensor) -> Tensor:
        """Return the coefficient of ``x``, given that of ``z = op(x)``. Gradient form.

        For a rule that is not proportional to its input, returns the relevance of ``x`` instead.
        """
        return kernel.coefficient(self.messages(op, x, z, c, Division.COEFFICIENT), op, x)

    def messages(
        self, op: Affine, x: Tensor, z: Tensor, carried: Tensor, division: Division
    ) -> Iterator[Sent]:
        """Yield the message of each group of the formula, see ``kernel``."""
        groups = self.groups(op, x)
        return kernel.messages(groups, op, x, z, carried, self.stabilize, division)

    def propagated(
        self, op: Affine, x: Tensor, z: Tensor, carried: Tensor, division: Division
    ) -> tuple[Tensor, list[Sent] | None]:
        """Return the coefficient or relevance of ``x``, and the messages it is the sum of, if any.

        Args:
            op: The layer's affine map.
            x: Its input.
            z: Its output.
            carried: The coefficient of ``z``, or its relevance.
            division: How the rule divides; it says which of the two is carried.
        """
        carries_coefficient = division is Division.COEFFICIENT
        if self.is_by_messages:
            sent = list(self.messages(op, x, z, carried, division))
            summed = kernel.coefficient if carries_coefficient else kernel.relevance
            return summed(sent, op, x), sent
        if carries_coefficient:
            return self.coefficient(op, x, z, carried), None
        return self.relevance(op, x, z, carried, division is Division.PROTECTED), None

    @property
    def is_by_messages(self) -> bool:
        """Whether the rule is the sum of its messages: not so if a subclass overrides more."""
        own = type(self)
        if not vars(self).keys().isdisjoint(_FORMULA):  # methods set on the rule itself
            return False
        mine = own.relevance, own.coefficient, own.messages
        return mine == (Rule.relevance, Rule.coefficient, Rule.messages)

    def parameters(self) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def describe_parameters(self) -> list[str]:
        """Return ``name=value`` for each argument, with tensors shortened to their shape."""
        return described(self.parameters())

    def __repr__(self) -> str:
        """Return the constructor call, with tensors shortened to their shape."""
        return f"{type(self).__name__}({', '.join(self.describe_parameters())})"

    # Captum's protocol ---------------------------------------------------------------------------

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep the layer's true inputs: a stock rule below it may change them in pass two."""
        if not _tensors(inputs):
            raise RuleError(
                f"{self.describe_place(module)}: it is called with keyword arguments, which stock "
                "Captum's hooks do not see; call it with positional ones, or use "
                "captum_lrp_stab.LRP"
            )
        kept: dict[torch.device, Any] = module.activations  # type: ignore[assignment]
        kept.setdefault(_device(inputs), []).append(tuple(x.detach() for x in _tensors(inputs)))

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None:
        """Put the layer's true inputs back, call by call."""
        kept: dict[torch.device, Any] = module.activations  # type: ignore[assignment]
        for x, activation in zip(_tensors(inputs), kept[_device(inputs)].pop(0), strict=True):
            x.data = activation

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor:
        """Replace the layer's output by one whose backward pass is this rule."""
        inputs = _tensors(inputs)
        if not isinstance(outputs, Tensor):
            raise RuleError(
                f"{self.describe_place(module)}: its output is a {type(outputs).__name__}, but a "
                "rule serves layers with one output tensor; use captum_lrp_stab.LRP"
            )
        relevance_of = self.backward_of(module, inputs, outputs.detach())

        def backward(R: Tensor) -> tuple[Tensor, ...]:
            for x in inputs:
                if hasattr(x, "hook_registered"):
                    raise RuleError(
                        f"{self.describe_place(module)}: its input also feeds a layer with one of "
                        "Captum's own rules, which rescales the shared gradient; give both layers "
                        "rules of captum_lrp_stab, or use captum_lrp_stab.LRP"
                    )
            with torch.no_grad():
                relevances = relevance_of(R)
            self.relevance_output[R.device] = R
            self.relevance_input[R.device] = (
                relevances[0] if len(relevances) == 1 else list(relevances)
            )
            return relevances

        return Step.apply(backward, outputs.detach(), *inputs)  # type: ignore[no-any-return]

    def backward_of(self, module: nn.Module, inputs: tuple[Tensor, ...], z: Tensor) -> Backward:
        """Return the function from the relevance of ``z`` to those of ``inputs``.

        Raises:
            RuleError: The layer computes no affine map this rule could serve.
        """
        x = inputs[0].detach()
        op = affine_builders.of_module(module, x)
        if op is None and len(inputs) > 1:
            op, x = _addition(inputs, z)
        if op is None:
            raise RuleError(
                f"{self.describe_place(module)}: the rule serves linear layers, convolutions, "
                "average pools, batch norm, and modules that add their inputs; give this layer "
                "PassRule() or no rule, or use captum_lrp_stab.LRP"
            )
        unknown = type(module).forward not in _KNOWN_FORWARDS and not isinstance(op, Sum)
        if unknown or isinstance(module, types.ConvolutionTranspose):  # it may have an output_size
            with torch.no_grad():
                own = op.apply(x, op.weight, op.bias)
            if own.shape != z.shape or not torch.allclose(own, z, rtol=1e-3, atol=1e-4):
                raise RuleError(
                    f"{self.describe_place(module)}: its forward() computes something else than "
                    "its base class, or was given an output_size, so the rule's weights are "
                    "unknown; use captum_lrp_stab.LRP, which follows the operations themselves"
                )
        described = op
        if op.weight.is_complex() and not isinstance(op, Sum):
            return self._backward_of_pairs(op, x, z)

        def backward(R: Tensor) -> tuple[Tensor, ...]:
            result = self.relevance(described, x, z, R)
            if isinstance(described, Sum):
                return tuple(r.sum_to_size(t.shape) for r, t in zip(result, inputs, strict=True))
            return (result,)

        return backward

    def _backward_of_pairs(self, op: Affine, x: Tensor, z: Tensor) -> Backward:
        """Return the same for a layer with complex weights, by the real map it is on pairs."""
        real, inputs, outputs = on_pairs(op), split(x, op), split(z, op)
        return lambda R: (join(self.relevance(real, inputs, outputs, split(R, op)), op),)

    def describe_place(self, module: nn.Module) -> str:
        """Return the rule and the layer in words, for error messages."""
        name = f" '{self.layer}'" if self.layer else ""
        return f"{type(self).__name__} on layer{name} ({type(module).__name__})"

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """Change nothing (Captum's abstract method; its rules write to the weights here)."""


def described(parameters: Mapping[str, Any]) -> list[str]:
    """Return ``name=value`` for each parameter, with tensors shortened to their shape."""
    return [
        f"{name}=tensor{tuple(value.shape)}" if isinstance(value, Tensor) else f"{name}={value!r}"
        for name, value in parameters.items()
    ]


def _addition(inputs: tuple[Tensor, ...], z: Tensor) -> tuple[Affine | None, Tensor]:
    """Return the sum of several inputs as a map, and its input; None if ``z`` is not their sum."""
    if any(t.dim() > z.dim() or t.dtype != z.dtype for t in inputs):
        return None, z
    sizes = [(t.shape[-k], z.shape[-k]) for t in inputs for k in range(1, t.dim() + 1)]
    if any(size not in (1, whole) for size, whole in sizes):
        return None, z
    x = torch.stack([t.detach().expand_as(z) for t in inputs])
    rounding = 4 * torch.finfo(z.dtype).eps * x.abs().sum(0)
    is_sum = bool(((x.sum(0) - z).abs() <= rounding).all())
    weight = torch.ones(len(x), *(1,) * z.dim(), dtype=x.dtype, device=x.device)
    return Sum(weight, None) if is_sum else None, x


def _tensors(inputs: Any) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _device(inputs: Any) -> torch.device:
    return _tensors(inputs)[0].device


_KNOWN_FORWARDS = {
    cls.forward for cls in vars(nn).values() if isinstance(cls, type) and issubclass(cls, nn.Module)
} | {nn.modules.batchnorm._BatchNorm.forward}
