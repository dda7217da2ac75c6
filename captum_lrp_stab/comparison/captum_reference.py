"""Stock ``captum.attr.LRP`` as a reference, with Captum's own rules or with ours."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr import LRP as StockLRP
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from captum.attr._utils import lrp_rules as captum_rules
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.assignment.attach import AttachedRules, check_seen, default_rule
from captum_lrp_stab.comparison.base import TINY, Reference, where_not_0
from captum_lrp_stab.comparison.recording import Recording, Use, Watch
from captum_lrp_stab.dispatch.leaf_modules import leaf_modules
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.propagation.targets import in_captums_form, score_of
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.captum_rules import ManipulatedWeightsRule
from captum_lrp_stab.rules.standard import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    PassRule,
    ZeroRule,
    ZPlusRule,
)
from captum_lrp_stab.stabilizers import Identity, Signed
from captum_lrp_stab.task import Task
from captum_lrp_stab.tensors.complex_values import has_complex_weights, total


class CaptumReference(Reference):
    """Stock ``captum.attr.LRP`` on the same model and target.

    Args:
        own_rules: Use Captum's own rule where it has one of that meaning; else rules of this
            package, under Captum's driver. Layers without a rule get Captum's defaults.
        exact_defaults: Give layers that have no rule here LRP-0, where Captum would divide by
            z + 1e-9 sign z: max pools, average pools, batch norms, Captum's own additions.
    """

    merges_batch_norm = False
    #: What to do where stock Captum cannot run the model, in words.
    remedy = "compare with another reference, such as 'float64', or take another model"

    def __init__(self, own_rules: bool = True, exact_defaults: bool = False) -> None:
        self.own_rules = own_rules
        self.exact_defaults = exact_defaults or not own_rules
        self.name = "captum" if own_rules else "captum_driver"

    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Run stock Captum on a copy of the model, and watch the outputs of its modules.

        Not their inputs: Captum treats layers that share an input tensor in a way of its own, and
        copies are not shared. Nor their values, which Captum computes with manipulated weights.

        Raises:
            RuleMapError: Captum has no rule for a leaf module, and nor has this package; or it
                overlooks a layer.
        """
        task = task.copied()
        model, names = task.model, {operation.name for operation in operations}
        check_seen(model, self.remedy)
        rules = self.rules(model, operations)
        seen_as = {name: name for name, _ in model.named_modules() if name in names}
        for name, module in model.named_modules():
            # a leaf to Captum, and an operation in a module to us
            if isinstance(module, Addition_Module) and f"{name}.add_0" in names:
                seen_as[name] = f"{name}.add_0"
        self._attach(model, rules)
        # where a layer's output is the very tensor that feeds a rule, Captum turns its gradient
        # into relevance in a hook of its own; the output of a layer with a rule it copies
        plain = [n for n, m in leaf_modules(model) if type(m) in SUPPORTED_NON_LINEAR_LAYERS]
        late = set(plain) - rules.keys()
        inputs = tuple(x.requires_grad_() for x in task.inputs)
        stock = StockLRP(model)
        score = score_of(task.forward(inputs), task.target).detach()
        relevances: tuple[Tensor, ...] = ()

        def gradients(forward: Any, xs: Any, target: Any = None, extra: Any = None) -> Any:
            """Start from the score: Captum starts from 1, and multiplies at the very end."""
            nonlocal relevances
            with torch.enable_grad():
                arguments = _format_additional_forward_args(extra) or ()
                found = score_of(forward(*xs, *arguments), target)
                relevances = torch.autograd.grad(found, xs, score)
            return relevances

        stock.gradient_func = gradients
        with Watch(model, values=False) as watch:
            for name, shown in seen_as.items():
                watch.output(shown, model.get_submodule(name), name in late)
            target = in_captums_form(task.target)
            stock.attribute(inputs, target, task.additional_forward_args)
        seen = watch.recording(tuple(r.detach() for r in relevances), score)
        for name, shown in seen_as.items():
            if isinstance(rules.get(name), Rule):
                self._note(seen, shown, rules[name])
        return seen

    def _note(self, seen: Recording, name: str, rule: PropagationRule) -> None:
        """Record the relevance that a rule of this package keeps; no hook stands on its output."""
        for place, uses in (
            (rule.relevance_output, seen.outputs),
            (rule.relevance_input, seen.inputs),
        ):
            for R in place.values():
                tensors = R if isinstance(R, list) else [R]
                uses[name] = [Use([None] * len(tensors), [total(r) for r in tensors])]

    def rules(
        self, model: nn.Module, operations: Sequence[Operation]
    ) -> dict[str, PropagationRule]:
        """Return the rule of each leaf module that does not get Captum's default."""
        ours = {o.name: o.rule for o in operations if o.rule is not None}
        found: dict[str, PropagationRule] = {}
        for name, module in leaf_modules(model):
            if name in ours:
                own = captums_own(ours[name]) if self.own_rules else None
                if has_complex_weights(module):  # Captum's rules look at the sign of numbers
                    own = None
                found[name] = copy.copy(ours[name]) if own is None else own
            elif type(module) in SUPPORTED_NON_LINEAR_LAYERS and self.own_rules:
                continue
            elif type(module) in SUPPORTED_LAYERS_WITH_RULES and self.own_rules:
                if self.exact_defaults:
                    found[name] = captum_rules.EpsilonRule(TINY)
            elif isinstance(module, (*types.RuleBearing, Addition_Module)):
                found[name] = ZeroRule(where_not_0)
            else:
                found[name] = default_rule(name, module, self.remedy)
        return found

    def _attach(self, model: nn.Module, rules: dict[str, PropagationRule]) -> None:
        for module in model.modules():
            vars(module).pop("rule", None)
        AttachedRules(model, {name: r for name, r in rules.items() if isinstance(r, Rule)})
        for name, rule in rules.items():
            if not isinstance(rule, Rule):
                model.get_submodule(name).rule = rule


def captums_own(rule: Rule) -> PropagationRule | None:
    """Return Captum's own rule of the same meaning and stabilizer as ``rule``, None for none."""
    make = _OWN.get(type(rule))
    epsilon = _signed_epsilon(rule)
    if make is None or epsilon is None:
        return None
    own = make(rule)
    if own is not None:
        own.STABILITY_FACTOR = epsilon
    return own


def _signed_epsilon(rule: Rule) -> float | None:
    """Return e of a rule that divides by z + e sign z, as every rule of Captum's does."""
    stabilizer = rule.stabilizer
    if isinstance(rule, EpsilonRule):
        plain = rule.signed and isinstance(stabilizer, Identity)
        return rule.epsilon if plain else None
    if isinstance(stabilizer, Signed) and not stabilizer.relative:
        return stabilizer.epsilon
    return 0.0 if isinstance(stabilizer, Identity) else None


def _alpha_beta(rule: AlphaBetaRule) -> PropagationRule | None:
    return captum_rules.Alpha1_Beta0_Rule() if rule.beta == 0 else None


_OWN: dict[type[Rule], Callable[[Any], PropagationRule | None]] = {
    EpsilonRule: lambda rule: captum_rules.EpsilonRule(),
    ZeroRule: lambda rule: captum_rules.EpsilonRule(),
    GammaRule: lambda rule: captum_rules.GammaRule(rule.gamma),
    ZPlusRule: _alpha_beta,
    AlphaBetaRule: _alpha_beta,
    PassRule: lambda rule: captum_rules.IdentityRule(),
    ManipulatedWeightsRule: lambda rule: copy.copy(rule.rule),
}
