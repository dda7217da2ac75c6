"""From a name map to one rule per layer.

A name map is a list of ``(layer names, rule class, parameters)``. A layer is a leaf module, or a
functional call such as ``F.conv2d`` under the name that :func:`captum_lrp_stab.plan` gives it.
"""

import difflib
from collections.abc import Collection, Sequence
from types import FunctionType
from typing import Any

from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch.leaf_modules import leaf_modules
from captum_lrp_stab.errors import RuleError, RuleMapError, StabilizerError
from captum_lrp_stab.operations.table import canonical_name, names_of
from captum_lrp_stab.rules import affine_builders, sums
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.standard import PassRule
from captum_lrp_stab.tensors.graph import OWN

Entry = tuple[list[str], type[PropagationRule], dict[str, Any]]
NameMap = list[Entry]
Entries = Sequence[Entry]
"""What users may give: a list whose rules are all of one class has a type of its own."""


def build_rules(model: nn.Module, name_map: Entries) -> dict[str, PropagationRule]:
    """Return one fresh rule per layer that ``name_map`` names.

    Raises:
        RuleMapError: An entry is malformed or names no layer, a name can be that of no layer or
            stands in two entries, or a rule or its parameters do not fit.
    """
    check_is_called(name_map)
    if isinstance(name_map, (str, bytes)) or not isinstance(name_map, Sequence):
        what, remedy = f"a {type(name_map).__name__}", "give"
        if isinstance(name_map, type):
            what = f"the class {name_map.__name__}"
        elif callable(name_map):
            what, remedy = repr(name_map), "call it with the model, or give"
        raise RuleMapError(
            f"name_map is {what}; {remedy} a list of (layer names, rule class, parameters)"
        )
    leaves = dict(leaf_modules(model))
    rules: dict[str, PropagationRule] = {}
    owner: dict[str, int] = {}
    for index, entry in enumerate(name_map):
        names, rule_class, parameters = _checked_entry(index, entry)
        place = f"name_map entry {index} ({rule_class.__name__})"
        for name in names:
            if name not in leaves and not is_functional(model, name):
                raise RuleMapError(f"{place} names {name!r}, {_why_no_leaf(model, name, leaves)}")
            if name in owner:
                raise RuleMapError(
                    f"{place} names {name!r}, which entry {owner[name]} "
                    f"({type(rules[name]).__name__}) names already; a layer takes one rule"
                )
            owner[name] = index
            rules[name] = _build(place, rule_class, parameters, name)
            if name in leaves:
                check_fit(place, rules[name], name, leaves[name])
    return rules


def check_is_called(rules: Any) -> None:
    """Raise RuleMapError for a preset function that has not been called."""
    is_function = isinstance(rules, FunctionType)  # not so a preset's method
    if is_function and rules.__module__ == f"{OWN}presets":
        raise RuleMapError(
            f"the rules are the function presets.{rules.__name__}, which makes a preset: call it, "
            f"presets.{rules.__name__}(...)"
        )


_FUNCTIONAL = (
    {canonical_name(f) for f in affine_builders.BUILDERS} | names_of("contracts") | sums.NAMES
)


def is_functional(model: nn.Module, name: str) -> bool:
    """Return whether ``name`` may be that of a functional layer or sum; only a pass can tell."""
    module, _, call = name.rpartition(".")
    kind, _, number = call.rpartition("_")
    known = dict(model.named_modules())
    return kind in _FUNCTIONAL and number.isdecimal() and module in known and name not in known


def _checked_entry(
    index: int, entry: Any
) -> tuple[list[str], type[PropagationRule], dict[str, Any]]:
    if not isinstance(entry, (tuple, list)) or len(entry) != 3:
        raise RuleMapError(
            f"name_map entry {index} is {entry!r}; give (layer names, rule class, parameters), as "
            'in (["features.0"], EpsilonRule, {"epsilon": 0.25})'
        )
    names, rule_class, parameters = entry
    is_list = isinstance(names, Collection) and not isinstance(names, str)
    if not is_list or not all(isinstance(name, str) for name in names):
        raise RuleMapError(f"name_map entry {index}: layer names are {names!r}; give a list of str")
    if not (isinstance(rule_class, type) and issubclass(rule_class, PropagationRule)):
        raise RuleMapError(
            f"name_map entry {index}: the rule is {rule_class!r}; give the class itself, such as "
            "EpsilonRule, and its parameters as the third item: each layer gets an instance of "
            "its own"
        )
    if not len(names):
        raise RuleMapError(
            f"name_map entry {index} ({rule_class.__name__}) names no layer: its filter selected "
            "nothing; leave the entry out or widen the filter"
        )
    if not isinstance(parameters, dict):
        raise RuleMapError(
            f"name_map entry {index} ({rule_class.__name__}): parameters are {parameters!r}; give "
            "a dict, {} for none"
        )
    return list(names), rule_class, parameters


def _why_no_leaf(model: nn.Module, name: str, leaves: dict[str, nn.Module]) -> str:
    every = list(leaves)
    span = every[0] if len(every) == 1 else f"{every[0]} ... {every[-1]}"
    if name in dict(model.named_modules(remove_duplicate=False)):
        inside = [leaf for leaf in every if leaf.startswith(f"{name}.")]
        if inside:
            return f"which contains other layers; name those: {inside[0]!r}" + (
                f" to {inside[-1]!r}" if len(inside) > 1 else ""
            )
        return "which is the same module as a leaf of another name, or lies inside a leaf"
    close = difflib.get_close_matches(name, every, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"which is not a leaf module of {type(model).__name__}; leaf names are {span}{hint}"


def _build(
    place: str, rule_class: type[PropagationRule], parameters: dict[str, Any], name: str
) -> PropagationRule:
    try:
        rule = rule_class(**parameters)
    except TypeError as error:
        raise RuleMapError(
            f"{place}: the rule does not take these parameters, {parameters!r}: {error}"
        ) from error
    except (RuleError, StabilizerError) as error:
        raise RuleMapError(f"{place}: {error}") from error
    if isinstance(rule, Rule):
        rule.layer = name
    return rule


def check_fit(place: str, rule: PropagationRule, name: str, module: nn.Module) -> None:
    """Raise RuleMapError if ``rule`` is known not to serve ``module``."""
    if not isinstance(rule, Rule):
        return  # Captum's own: stock Captum serves or ignores them as it always did
    kind = f"{place}: {name!r} is a {type(module).__name__}"
    if isinstance(rule, PassRule):
        if isinstance(module, types.MaxPool + types.AvgPool + types.Reshape + types.Padding):
            raise RuleMapError(
                f"{kind}, which changes the shape; PassRule needs a layer that does not"
            )
        return
    if isinstance(module, types.Activation + types.Dropout):
        raise RuleMapError(f"{kind}, which relevance passes unchanged; give it PassRule or no rule")
    if isinstance(module, types.MaxPool + types.Reshape + types.Padding):
        raise RuleMapError(f"{kind}, through which relevance is routed as it is; give it no rule")
