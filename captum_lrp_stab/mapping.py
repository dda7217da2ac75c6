"""From layer filters and name maps to one rule per layer.

A name map is a list of ``(layer names, rule class, parameters)``. :class:`LayerFilter` makes the
lists of names, :func:`attach_rules` sets the rules on the modules for stock ``captum.attr.LRP``,
and :class:`captum_lrp_stab.LRP` takes a name map as it is.
"""

import copyreg
import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

from captum_lrp_stab import types
from captum_lrp_stab.captum_bridge import RoutingRule, Rule
from captum_lrp_stab.errors import LayerFilterError, RuleError, RuleMapError, StabilizerError
from captum_lrp_stab.rules import EpsilonRule, PassRule

NameMap = list[tuple[list[str], type[PropagationRule], dict[str, Any]]]
TypeTuple = tuple[type[nn.Module], ...]


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every leaf, in order of ``children()``, depth first.

    A rule-bearing module counts as a leaf even when it has children, such as a padding. A module
    that stands in several places counts once, under its first name.
    """
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        children = list(module.named_children())
        if not children or isinstance(module, types.RuleBearing):
            yield name, module
            return
        for child_name, child in children:
            yield from walk(f"{name}.{child_name}" if name else child_name, child)

    return walk("", model)


class LayerFilter:
    """Select names of leaf modules by index and type.

    Args:
        model: The model whose leaf modules are counted, see :func:`leaf_modules`.
        target_types: Types to select; None selects the layers that take a rule: linear layers,
            convolutions, average pools and batch norm (``types.RuleBearing``).

    Raises:
        LayerFilterError: ``target_types`` is no tuple of module types.

    Example:
        >>> from torch import nn
        >>> from captum_lrp_stab import types
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> layers = LayerFilter(model)
        >>> layers(lambda n: n >= 1)
        ['3']
        >>> layers(lambda n: True, target_types=types.Convolution)
        ['0']
    """

    def __init__(self, model: nn.Module, target_types: TypeTuple | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise LayerFilterError(
                f"LayerFilter counts the layers of a torch.nn.Module, not of a {type(model)}"
            )
        self.model = model
        self.set_target_types(target_types)

    def set_target_types(self, types_: TypeTuple | None) -> None:
        """Select modules of these types from now on; None for all layers that take a rule."""
        self.target_types = _checked_types(types_)

    def filter(
        self, cond: Callable[[int], bool], target_types: TypeTuple | None = None
    ) -> list[str]:
        """Return the names of the leaf modules whose index meets ``cond``, of the target types.

        Args:
            cond: Called with the index of each leaf module.
            target_types: Types for this call only.

        Raises:
            LayerFilterError: Nothing is selected, or ``target_types`` is no tuple of types.
        """
        wanted = self.target_types if target_types is None else _checked_types(target_types)
        leaves = list(leaf_modules(self.model))
        in_range = [leaf for index, leaf in enumerate(leaves) if cond(index)]
        names = [name for name, module in in_range if isinstance(module, wanted)]
        if not names:
            found = sorted({type(module).__name__ for _, module in in_range})
            raise LayerFilterError(
                f"the filter selects no layer of {type(self.model).__name__}: of its leaf indices "
                f"0 to {len(leaves) - 1} it meets {len(in_range)}"
                + (f", of types {', '.join(found)}" if found else "")
                + f"; the target types are {', '.join(t.__name__ for t in wanted)}"
            )
        return names

    def __call__(
        self, cond: Callable[[int], bool], target_types: TypeTuple | None = None
    ) -> list[str]:
        """Return ``filter(cond, target_types)``."""
        return self.filter(cond, target_types)


def _checked_types(types_: TypeTuple | type[nn.Module] | None) -> TypeTuple:
    if types_ is None:
        return types.RuleBearing
    as_tuple = tuple(types_) if isinstance(types_, (tuple, list)) else (types_,)
    if not as_tuple or not all(isinstance(t, type) for t in as_tuple):
        raise LayerFilterError(
            f"target_types is {types_!r}; give a tuple of module types, such as (nn.Conv2d,) or "
            "captum_lrp_stab.types.Linear"
        )
    return as_tuple


def build_rules(model: nn.Module, name_map: NameMap) -> dict[str, PropagationRule]:
    """Return one fresh rule per layer that ``name_map`` names.

    Raises:
        RuleMapError: An entry is malformed or names no layer, a name matches no leaf module or
            stands in two entries, or a rule or its parameters do not fit.
    """
    if isinstance(name_map, (str, bytes)) or not isinstance(name_map, Sequence):
        raise RuleMapError(
            f"name_map is a {type(name_map).__name__}; give a list of (layer names, rule class, "
            "parameters)"
        )
    leaves = dict(leaf_modules(model))
    rules: dict[str, PropagationRule] = {}
    owner: dict[str, int] = {}
    for index, entry in enumerate(name_map):
        names, rule_class, parameters = _checked_entry(index, entry)
        place = f"name_map entry {index} ({rule_class.__name__})"
        for name in names:
            if name not in leaves:
                raise RuleMapError(f"{place} names {name!r}, {_why_no_leaf(model, name, leaves)}")
            if name in owner:
                raise RuleMapError(
                    f"{place} names {name!r}, which entry {owner[name]} "
                    f"({type(rules[name]).__name__}) names already; a layer takes one rule"
                )
            owner[name] = index
            rules[name] = _build(place, rule_class, parameters, name)
            check_fit(place, rules[name], name, leaves[name])
    return rules


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


class AttachedRules(AbstractContextManager["AttachedRules"]):
    """What :func:`attach_rules` set, by layer name, and the way back."""

    def __init__(self, model: nn.Module, rules: dict[str, PropagationRule]) -> None:
        self.rules = rules
        self._saved: list[tuple[nn.Module, type[nn.Module], type[nn.Module], dict[str, Any]]] = []
        leaves = dict(leaf_modules(model))
        for name, rule in rules.items():
            module = leaves[name]
            kept = {key: vars(module)[key] for key in _CAPTUM_NAMES if key in vars(module)}
            made = _with_rule(module, rule)
            self._saved.append((module, made, type(module), kept))
            vars(module).pop("rule", None)
            module.__class__ = made

    def restore(self) -> None:
        """Put every module back as it was; a second call does nothing.

        Raises:
            RuleMapError: Rules attached later are still there.
        """
        if any(type(module) is not made for module, made, _, _ in self._saved):
            raise RuleMapError(
                "attach_rules was called on this model again; restore the rules attached last first"
            )
        while self._saved:
            module, _, cls, kept = self._saved.pop()
            module.__class__ = cls
            for key in _CAPTUM_NAMES:
                vars(module).pop(key, None)
            vars(module).update(kept)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the modules."""
        self.restore()


_CAPTUM_NAMES = ("rule", "activations")  # what stock Captum leaves on a module


def _with_rule(module: nn.Module, rule: PropagationRule) -> type[nn.Module]:
    """Return a subclass of the module's class with a ``rule`` that Captum cannot delete.

    Captum deletes ``module.rule`` at the end of ``attribute`` and uses its defaults in the next
    call without a word. torch.nn.utils.parametrize swaps a module's class in the same way.
    """
    cls = type(module)

    def keep(self: nn.Module) -> None:
        """Ignore ``del module.rule``."""

    def as_base(self: nn.Module, protocol: Any) -> Any:
        """Copy and pickle as an instance of ``cls``, without the rule."""
        reduced: Any = cls.__reduce_ex__(self, protocol)
        return copyreg._reconstructor, (cls, object, None), *reduced[2:]  # type: ignore[attr-defined]

    body: dict[str, Any] = {
        "rule": property(lambda self: rule, None, keep),
        "__reduce_ex__": as_base,
    }
    if "inplace" in vars(module):
        # a rule hooks the layer's input, which an activation must not have written over by then
        body["inplace"] = property(lambda self: False, lambda self, value: None)
    made = type(cls.__name__, (cls,), body)
    return made


def attach_rules(model: nn.Module, name_map: NameMap) -> AttachedRules:
    """Set one fresh rule per layer on ``module.rule``, for stock ``captum.attr.LRP``.

    Leaf modules that ``name_map`` does not name keep a rule they have. Of the others, linear
    layers, convolutions, average pools, batch norm and Captum's ``Addition_Module`` get
    ``EpsilonRule()``, activations get ``PassRule()``, and modules that only move or select values
    (flatten, pad, max pool, ...) hand relevance on. The rules stay through any number of
    ``attribute`` calls, which stock Captum's own do not.

    Args:
        model: The model to explain; no parameter is touched.
        name_map: A list of (layer names, rule class, parameters); rule classes may be Captum's own.

    Returns:
        A context manager that puts everything back on exit; ``restore()`` does so without one.

    Raises:
        RuleMapError: ``name_map`` does not fit the model, or a layer is one stock Captum cannot
            see or serve.

    Example:
        >>> import torch
        >>> from captum.attr import LRP
        >>> from captum_lrp_stab import GammaRule, attach_rules
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2)
        ... )
        >>> with attach_rules(model, [(["0"], GammaRule, {"gamma": 0.1})]):
        ...     relevance = LRP(model).attribute(torch.ones(1, 4, requires_grad=True), target=0)
        >>> relevance.shape
        torch.Size([1, 4])
    """
    rules = build_rules(model, name_map)
    for name, module in leaf_modules(model):
        if module is model:
            raise RuleMapError(
                f"the model is a single {type(model).__name__}, and stock Captum only sees the "
                "children of a model; wrap it in torch.nn.Sequential, or use captum_lrp_stab.LRP"
            )
        if list(module.children()):
            raise RuleMapError(
                f"{name!r} ({type(module).__name__}) contains a module of its own, and stock "
                "Captum only sees modules without children; use captum_lrp_stab.LRP"
            )
        if name in rules:
            continue
        own = getattr(module, "rule", None)
        if isinstance(own, PropagationRule):
            rules[name] = own  # attached too, because stock Captum would delete it
            continue
        rule = default_rule(name, module)
        rule.layer = name
        rules[name] = rule
    return AttachedRules(model, rules)


def default_rule(name: str, module: nn.Module) -> Rule:
    """Return the rule a leaf module without one gets under stock Captum.

    Activations get one too: the hook Captum would put on a ReLU replaces the whole gradient of its
    input, and with it what other layers that read the same tensor send back.

    Raises:
        RuleMapError: Nothing is known about the module's type.
    """
    if isinstance(module, (*types.RuleBearing, Addition_Module)):
        return EpsilonRule()
    if isinstance(module, types.Activation):
        return PassRule()
    routing = types.MaxPool + types.Reshape + types.Padding + types.Dropout
    if isinstance(module, routing) or (isinstance(module, nn.Sequential) and not len(module)):
        return RoutingRule()
    raise RuleMapError(
        f"{name!r} is a {type(module).__name__}, for which stock Captum has no rule; name it in "
        "name_map with a rule that fits, or use captum_lrp_stab.LRP"
    )
