"""zennit as a reference: a name_map becomes one of its composites.

zennit is an optional extra, imported when it is asked for. Nothing of it is changed: it runs on a
copy of the model, its rules get this package's stabilizers as callables, batch norms are merged by
its own canonizer where this package merges them, and the blocks of torchvision's ResNets get
zennit's canonizers, which turn their functional addition into a module.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.comparison.base import Reference, where_not_0
from captum_lrp_stab.comparison.recording import Recording, Watch
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import MissingExtraError, RuleError
from captum_lrp_stab.propagation.targets import score_of
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.input_layer import FlatRule, WSquareRule, ZBoxRule
from captum_lrp_stab.rules.standard import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    PassRule,
    ZeroRule,
    ZPlusRule,
)
from captum_lrp_stab.stabilizers import RoundingAware
from captum_lrp_stab.task import Task
from captum_lrp_stab.tensors.complex_values import has_complex_weights


def package() -> Any:
    """Return the package zennit, all of it imported.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import zennit.canonizers
        import zennit.composites
        import zennit.core
        import zennit.rules
        import zennit.torchvision
    except ImportError as error:
        raise MissingExtraError(
            "the reference 'zennit' needs the package zennit: pip install zennit"
        ) from error
    return zennit


class ZennitReference(Reference):
    """zennit on the same model, under a composite of its own or one made of our rules.

    Args:
        composite: zennit's; None for one made of the task's rules.
        exact_merge: Let merged batch norms be the identity they are meant to be: zennit before
            1.0 leaves their eps in place, so that they divide by sqrt(1 + eps).

    Raises:
        MissingExtraError: zennit is not installed.
    """

    name = "zennit"

    def __init__(self, composite: Any = None, exact_merge: bool = False) -> None:
        package()  # or fail now, not after our own run
        self.composite = composite
        self.exact_merge = exact_merge

    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Run zennit on a copy of the model.

        Raises:
            RuleError: A rule or stabilizer has no counterpart in zennit.
        """
        zennit, task = package(), task.copied()
        model, composite = task.model, self.composite
        if composite is None:
            composite = composite_of(model, operations)
        leaves = tuple(x.requires_grad_() for x in task.inputs)
        modules, watch = dict(model.named_modules()), Watch(model)
        for operation in {o.name: o for o in operations if o.name in modules}.values():
            watch.input(operation.name, modules[operation.name])
            # a layer and its batch norm are one layer, whose output is the batch norm's
            last = operation.batch_norm or operation.name
            if last in modules:
                watch.output(operation.name, modules[last])
        with watch, composite.context(model):
            if self.exact_merge:
                _make_exact(zennit, composite)
            for name, module in model.named_modules():
                if isinstance(module, zennit.layer.Sum):  # what a canonizer made of an addition
                    watch.output(name.replace("canonizer_sum", "add_0"), module)
            with torch.enable_grad():
                output = task.forward(leaves)
                score = score_of(output, task.target)
                gradients = torch.autograd.grad(score, leaves, score.detach(), allow_unused=True)
        pairs = zip(gradients, leaves, strict=True)
        relevances = tuple(torch.zeros_like(x) if g is None else g.detach() for g, x in pairs)
        return watch.recording(relevances, score.detach())


def composite_of(model: nn.Module, operations: Sequence[Operation]) -> Any:
    """Return a ``NameMapComposite`` that gives each module of ``model`` what we give it.

    Args:
        model: The model.
        operations: What this package's run gives each operation.

    Raises:
        RuleError: A rule or stabilizer has no counterpart in zennit.
    """
    zennit = package()
    modules = dict(model.named_modules())
    hooks: dict[str, Any] = {}
    merged = []
    for operation in operations:
        module = modules.get(operation.name)
        if module is None:
            continue  # a functional call, which zennit does not see
        if operation.batch_norm and operation.batch_norm in modules:
            merged.append(([operation.name], operation.batch_norm))
            hooks[operation.batch_norm] = zennit.rules.Pass()
        if operation.rule is not None:
            if has_complex_weights(module):
                raise RuleError(
                    f"layer '{operation.name}': its weights are complex numbers, for which zennit "
                    "has no rules; compare with 'float64' or 'captum_driver'"
                )
            hooks[operation.name] = _hook_of(operation.rule, operation.name)
        elif isinstance(module, types.AvgPool + types.BatchNorm):
            hooks[operation.name] = zennit.rules.Epsilon(where_not_0)
        elif isinstance(module, types.Activation):
            hooks[operation.name] = zennit.rules.Pass()
    blocks = zennit.torchvision.ResNetBottleneck, zennit.torchvision.ResNetBasicBlock
    sums = [f"{name}.canonizer_sum" for name, m in modules.items() if isinstance(m, blocks)]
    canonizers = []
    if merged:
        canonizers.append(zennit.canonizers.NamedMergeBatchNorm(merged))
    if sums:
        canonizers.append(zennit.torchvision.ResNetBottleneckCanonizer())
        canonizers.append(zennit.torchvision.ResNetBasicBlockCanonizer())
        hooks |= {name: zennit.rules.Epsilon(where_not_0) for name in sums}
    name_map = [([name], hook) for name, hook in hooks.items()]
    return zennit.composites.NameMapComposite(name_map, canonizers)


def _hook_of(rule: Rule, name: str) -> Any:
    """Return zennit's rule with the formula, the parameters and the stabilizer of ``rule``.

    Raises:
        RuleError: There is none.
    """
    rules, make = package().rules, _HOOKS.get(type(rule))
    if isinstance(rule.stabilizer, RoundingAware):
        raise RuleError(
            f"layer '{name}': zennit calls a stabilizer with the denominators alone, and "
            f"{rule.stabilizer!r} needs the rounding error of each; compare with 'float64', or "
            "give stabilizer=1e-6"
        )
    if make is None:
        raise RuleError(
            f"layer '{name}': {rule!r} has no counterpart in zennit; compare with a callable "
            "(model, inputs, target) -> relevance, or with LRP(model, other_rules)"
        )
    return make(rules, rule)


def _denominators(rule: Rule) -> Callable[[Tensor], Tensor]:
    """Return the stabilizer of a rule as zennit takes it: from denominators to denominators."""

    def no_magnitude() -> Tensor:
        raise RuleError(f"{rule!r}: zennit calls a stabilizer with the denominators alone")

    return lambda z: rule.stabilize(z, no_magnitude)


def _make_exact(zennit: Any, composite: Any) -> None:
    for handle in composite.handles:
        if isinstance(handle, zennit.canonizers.MergeBatchNorm):
            handle.batch_norm.eps = 0.0  # of a copy


_HOOKS: dict[type[Rule], Callable[[Any, Any], Any]] = {
    EpsilonRule: lambda z, r: z.Epsilon(_denominators(r)),
    ZeroRule: lambda z, r: z.Epsilon(_denominators(r)),
    GammaRule: lambda z, r: z.Gamma(r.gamma, stabilizer=_denominators(r)),
    AlphaBetaRule: lambda z, r: z.AlphaBeta(r.alpha, r.beta, stabilizer=_denominators(r)),
    ZPlusRule: lambda z, r: z.ZPlus(stabilizer=_denominators(r)),
    ZBoxRule: lambda z, r: z.ZBox(r.low, r.high, stabilizer=_denominators(r)),
    WSquareRule: lambda z, r: z.WSquare(stabilizer=_denominators(r)),
    FlatRule: lambda z, r: z.Flat(stabilizer=_denominators(r)),
    PassRule: lambda z, r: z.Pass(),
}
