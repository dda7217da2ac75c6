"""Captum's own rules as rules of this package, so that scripts for stock LRP work unchanged."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from captum.attr._utils import lrp_rules as captum_rules
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab import checks, mapping
from captum_lrp_stab.affine import Affine
from captum_lrp_stab.captum_bridge import RoutingRule, Rule
from captum_lrp_stab.errors import RuleError, RuleTypeError
from captum_lrp_stab.kernel import Group, Term
from captum_lrp_stab.leaves import leaf_modules
from captum_lrp_stab.mapping import Entries
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.rule_set import RuleSet
from captum_lrp_stab.rules import EpsilonRule, PassRule
from captum_lrp_stab.stabilizers import Signed

_NEEDS_NO_RULE = types.Activation + types.Dropout + types.MaxPool + types.Reshape + types.Padding
Rules = Entries | Callable[[nn.Module], Entries] | None


def rule_set_of(model: nn.Module, rules: Rules, **options: Any) -> RuleSet:
    """Return the rule of each operation.

    Args:
        model: The model.
        rules: A name_map, a preset or a callable from the model to a name_map; None takes the
            rules set on the modules.
        **options: Of :class:`~captum_lrp_stab.rule_set.RuleSet`.

    Raises:
        ModelTypeError: The model is scripted, compiled or quantized.
        RuleMapError: ``rules`` does not fit the model.
        RuleTypeError: ``module.rule`` is no propagation rule.
        RuleError: ``module.rule`` cannot be translated, or an option has no meaning.
    """
    checks.check_kind(model)  # before the names of the layers, which a scripted model hides
    if rules is None:
        return RuleSet(rules_on(model), on_modules=True, **options)
    if isinstance(rules, Preset):  # which gives each layer that the pass meets its rule
        return RuleSet({}, composite=rules, **options)
    mapping.check_is_called(rules)
    name_map: Any = rules
    if callable(rules) and not isinstance(rules, type):  # a rule's class makes no name_map
        name_map = rules(model)
    return RuleSet(_translated(model, mapping.build_rules(model, name_map)), **options)


def rules_on(model: nn.Module) -> dict[str, Rule]:
    """Return the rules set on the modules of a model (``module.rule``), by layer name.

    Raises:
        RuleTypeError: ``module.rule`` is no propagation rule, on any module.
        RuleError: It cannot be translated.
        RuleMapError: A rule does not fit its layer.
    """
    set_on = {name: getattr(module, "rule", None) for name, module in model.named_modules()}
    for name, rule in set_on.items():
        if rule is not None and not isinstance(rule, PropagationRule):
            raise RuleTypeError(
                f"{f'{name!r}.rule' if name else 'rule of the model'} is {rule!r}; set an instance "
                "of a PropagationRule, such as EpsilonRule(), or delete the attribute; with a "
                "name_map or a preset it is not looked at"
            )
    found: dict[str, PropagationRule] = {}
    for name, module in leaf_modules(model):
        rule = set_on[name]
        if rule is None or isinstance(rule, RoutingRule):  # set by attach_rules, for stock Captum
            continue
        mapping.check_fit(f"module.rule ({type(rule).__name__})", rule, name, module)
        found[name] = rule
    return _translated(model, found)


def _translated(model: nn.Module, rules: dict[str, PropagationRule]) -> dict[str, Rule]:
    """Return rules of this package; Captum's own on layers that need none have no effect."""
    known = dict(model.named_modules(remove_duplicate=False))
    modules = {name: known.get(name, model) for name in rules}
    return {
        name: translate(rule, name, modules[name])
        for name, rule in rules.items()
        if isinstance(rule, Rule) or not isinstance(modules[name], _NEEDS_NO_RULE)
    }


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
    """A rule given by what Captum's ``_manipulate_weights`` does to a layer's parameters.

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
