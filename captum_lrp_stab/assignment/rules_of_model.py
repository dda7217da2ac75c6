"""The rules of a model: from a name map, a preset, or those set on its modules."""

from collections.abc import Callable
from typing import Any

from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

from captum_lrp_stab.assignment import name_map
from captum_lrp_stab.assignment.name_map import Entries
from captum_lrp_stab.dispatch.leaf_modules import check_kind, leaf_modules
from captum_lrp_stab.errors import RuleTypeError
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.captum_rules import _NEEDS_NO_RULE, RoutingRule, translate
from captum_lrp_stab.rules.rule_set import Composite, RuleSet

Rules = Entries | Callable[[nn.Module], Entries] | None


def rule_set_of(model: nn.Module, rules: Rules, **options: Any) -> RuleSet:
    """Return the rule of each operation.

    Args:
        model: The model.
        rules: A name_map, a preset or a callable from the model to a name_map; None takes the
            rules set on the modules.
        **options: Of :class:`~captum_lrp_stab.rules.rule_set.RuleSet`.

    Raises:
        ModelTypeError: The model is scripted, compiled or quantized.
        RuleMapError: ``rules`` does not fit the model.
        RuleTypeError: ``module.rule`` is no propagation rule.
        RuleError: ``module.rule`` cannot be translated, or an option has no meaning.
    """
    check_kind(model)  # before the names of the layers, which a scripted model hides
    if rules is None:
        return RuleSet(rules_on(model), on_modules=True, **options)
    if isinstance(rules, Composite):  # which gives each layer that the pass meets its rule
        return RuleSet({}, composite=rules, **options)
    name_map.check_is_called(rules)
    entries: Any = rules
    if callable(rules) and not isinstance(rules, type):  # a rule's class makes no name_map
        entries = rules(model)
    return RuleSet(_translated(model, name_map.build_rules(model, entries)), **options)


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
        name_map.check_fit(f"module.rule ({type(rule).__name__})", rule, name, module)
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
