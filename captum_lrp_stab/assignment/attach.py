"""Rules on the modules of a model, for stock ``captum.attr.LRP``."""

import copyreg
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import PropagationRule
from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.assignment.name_map import Entries, build_rules
from captum_lrp_stab.dispatch.leaf_modules import leaf_modules
from captum_lrp_stab.errors import RuleMapError
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.captum_rules import RoutingRule
from captum_lrp_stab.rules.standard import EpsilonRule, PassRule


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

    def __repr__(self) -> str:
        """Return the rule of each layer."""
        return f"AttachedRules({self.rules})"

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
    call silently. torch.nn.utils.parametrize swaps a module's class in the same way.
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
        "__module__": cls.__module__,
    }
    if "inplace" in vars(module):
        # a rule hooks the layer's input, which an activation must not have written over by then
        body["inplace"] = property(lambda self: False, lambda self, value: None)
    made = type(cls.__name__, (cls,), body)
    return made


def attach_rules(model: nn.Module, name_map: Entries) -> AttachedRules:
    """Set one fresh rule per layer on ``module.rule``, for stock ``captum.attr.LRP``.

    Leaf modules that ``name_map`` does not name keep a rule they have. Of the others, linear
    layers, convolutions, average pools, batch norm and Captum's ``Addition_Module`` get
    ``EpsilonRule()``, activations get ``PassRule()``, and modules that only move or select values
    (flatten, pad, max pool, ...) propagate it as it is. The rules stay through any number of
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
    functional = rules.keys() - dict(leaf_modules(model)).keys()
    if functional:
        raise RuleMapError(
            f"{sorted(functional)[0]!r} is a functional call, and stock Captum only sees modules; "
            "leave it out, or use captum_lrp_stab.LRP"
        )
    check_seen(model, _OURS)
    for name, module in leaf_modules(model):
        if name in rules:
            continue
        own = getattr(module, "rule", None)
        if isinstance(own, PropagationRule):
            rules[name] = own  # attached too, because stock Captum would delete it
            continue
        rule = default_rule(name, module, f"name it in name_map with a rule that fits, or {_OURS}")
        rule.layer = name
        rules[name] = rule
    return AttachedRules(model, rules)


_OURS = "use captum_lrp_stab.LRP"


def check_seen(model: nn.Module, remedy: str) -> None:
    """Raise RuleMapError if stock Captum overlooks a layer of the model.

    Args:
        model: The model.
        remedy: What to do then, in words.
    """
    for name, module in leaf_modules(model):
        if module is model:
            raise RuleMapError(
                f"the model is a single {type(model).__name__}, and stock Captum only sees the "
                f"children of a model; wrap it in torch.nn.Sequential, or {remedy}"
            )
        if list(module.children()):
            raise RuleMapError(
                f"{name!r} ({type(module).__name__}) contains a module of its own, and stock "
                f"Captum only sees modules without children; {remedy}"
            )


def default_rule(name: str, module: nn.Module, remedy: str) -> Rule:
    """Return the rule a leaf module without one gets under stock Captum.

    Activations get one too: the hook Captum would put on a ReLU replaces the whole gradient of its
    input, and with it what other layers that read the same tensor send back.

    Args:
        name: The module's name.
        module: The module.
        remedy: What to do where there is no rule, in words.

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
        f"{name!r} is a {type(module).__name__}, for which stock Captum has no rule; {remedy}"
    )
