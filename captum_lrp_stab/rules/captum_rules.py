"""Captum's own rules as rules of this package, so that scripts for stock LRP work unchanged."""

import copy
from typing import Any

import torch
from captum.attr._utils import lrp_rules as captum_rules
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.kernel import Group, Term
from captum_lrp_stab.rules.standard import EpsilonRule, PassRule
from captum_lrp_stab.stabilizers import Signed
from captum_lrp_stab.tensors.step import Backward

_NEEDS_NO_RULE = types.Activation + types.Dropout + types.MaxPool + types.Reshape + types.Padding


def translate(rule: PropagationRule, name: str, module: nn.Module) -> Rule:
    """Return ``rule`` with its layer's name, or for one on Captum's base class an equal.

    Raises:
        RuleError: The rule overrides Captum's hooks, so that its formula is unknown.
    """
    translated: Rule
    if isinstance(rule, Rule):
        if rule.layer == name:
            return rule
        translated = copy.copy(rule)  # the one that is set on the module is the user's
    elif type(rule) is captum_rules.EpsilonRule:
        translated = EpsilonRule(epsilon=float(rule.STABILITY_FACTOR))
    elif type(rule) is captum_rules.IdentityRule:
        translated = PassRule()
    else:
        overridden = [
            hook
            for hook in _HOOKS
            if getattr(type(rule), hook) is not getattr(PropagationRule, hook)
        ]
        if overridden:
            raise RuleError(
                f"{type(rule).__name__} on layer '{name}' overrides {', '.join(overridden)}, so "
                "its formula is unknown here; derive it from captum_lrp_stab's rules, or use it "
                "with captum.attr.LRP"
            )
        translated = ManipulatedWeightsRule(rule, module)
    translated.layer = name
    return translated


_HOOKS = (
    "forward_hook",
    "forward_hook_weights",
    "forward_pre_hook_activations",
    "_create_backward_hook_input",
    "_create_backward_hook_output",
)


class ManipulatedWeightsRule(Rule):
    """A rule whose weights are those that Captum's ``_manipulate_weights`` gives a layer.

    Args:
        rule: The stock rule; its ``STABILITY_FACTOR`` is the stabilizer.
        module: The layer; a stand-in with copies of its parameters is manipulated in its place.
    """

    def __init__(self, rule: PropagationRule, module: nn.Module) -> None:
        super().__init__(Signed(float(rule.STABILITY_FACTOR)))
        self.rule = rule
        self.module = module

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        """Return one group with the manipulated weights."""
        stand_in: Any = copy.copy(self.module)
        present = {"weight": op.weight, "bias": op.bias}
        stand_in._parameters = {
            name: None if tensor is None else nn.Parameter(tensor.clone())
            for name, tensor in present.items()
            if name in self.module._parameters
        }
        with torch.no_grad():
            self.rule._manipulate_weights(stand_in, (x,), None)
        weight = stand_in._parameters.get("weight")
        bias = stand_in._parameters.get("bias")
        return (
            Group(
                (
                    Term(
                        op.weight if weight is None else weight.detach(),
                        op.bias if bias is None else bias.detach(),
                    ),
                )
            ),
        )

    def parameters(self) -> dict[str, Any]:
        """Return nothing: Captum's rules show none of theirs."""
        return {}

    def __repr__(self) -> str:
        """Return the name of Captum's rule."""
        return f"captum.{type(self.rule).__name__}()"


class RoutingRule(Rule):
    """Propagate through a layer that only moves or selects values (reshape, pad, max pool)."""

    def backward_of(self, module: nn.Module, inputs: tuple[Tensor, ...], z: Tensor) -> Backward:
        """Return the layer's own vector-Jacobian product, which routes relevance as it is."""
        with torch.enable_grad():
            points = tuple(x.detach().requires_grad_() for x in inputs)
            # forward, not __call__: the module's hooks have fired already
            routed = module.forward(*points)

        def backward(R: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(routed, points, R, retain_graph=True)

        return backward
