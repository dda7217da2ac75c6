"""The same rules under stock ``captum.attr.LRP``, watched.

Captum sees modules, not operations: what a functional ``+`` or a mean does to relevance under its
driver has no record here, and shows in the ledger as relevance that is unaccounted for.
"""

from collections.abc import Sequence

from captum.attr._utils.lrp_rules import PropagationRule
from torch import Tensor, nn

from captum_lrp_stab.comparison import captum_reference
from captum_lrp_stab.comparison.base import run_checked
from captum_lrp_stab.dispatch.layer_use import LayerUse
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.ledger.watching import Collector, Watched, records_of
from captum_lrp_stab.propagation.attribution import Propagation
from captum_lrp_stab.propagation.observer import Observer, Passage, as_it_is
from captum_lrp_stab.rules import kernel
from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.captum_rules import RoutingRule
from captum_lrp_stab.rules.kernel import Division
from captum_lrp_stab.task import Task


class _WatchedDriver(captum_reference.CaptumReference):
    """Stock Captum with this package's rules, each of which notifies an observer."""

    remedy = "take another form, such as 'gradient', or another model"

    def __init__(self, observer: Observer) -> None:
        super().__init__(own_rules=False)
        self._observer = observer

    def rules(
        self, model: nn.Module, operations: Sequence[Operation]
    ) -> dict[str, PropagationRule]:
        """Return the rule of each leaf module."""
        by_name = {o.name: o for o in operations}
        modules = dict(model.named_modules())
        found = super().rules(model, operations)
        for name, rule in found.items():
            if isinstance(rule, Rule) and not isinstance(rule, RoutingRule):
                kind = type(modules[name]).__name__
                operation = by_name.get(name) or Operation(name, kind, rule=rule)
                _notifying(rule, operation, self._observer)
        return found


def _notifying(rule: Rule, operation: Operation, observer: Observer) -> None:
    """Let the rule of one layer notify an observer of the relevance it propagates."""
    own = rule.relevance  # bound to the class's, whatever is set on the instance

    def relevance(op: Affine, x: Tensor, z: Tensor, R: Tensor, protected: bool = False) -> Tensor:
        sent = None
        if rule.is_by_messages:
            sent = list(rule.messages(op, x, z, R, Division.BARE))
            result = kernel.relevance(sent, op, x)
        else:
            result = own(op, x, z, R, protected)
        use, how = LayerUse(operation, op, (rule,), x), Division.BARE
        observer.forward(operation, x, z, z)
        observer.backward(
            Passage(operation, (x,), z, R, (result,), how, as_it_is, as_it_is, use, sent)
        )
        return result

    rule.relevance = relevance  # type: ignore[method-assign]  # of this instance alone


def watch_stock(task: Task) -> Watched:
    """Run stock Captum on a copy of the model and look at every layer with a rule.

    Raises:
        RuleMapError: Captum has no rule for a leaf module, and nor has this package; or it
            overlooks a layer.
        ReferenceFailedError: Captum raised an error of its own.
    """
    operations = task.operations()
    collector = Collector()
    seen = run_checked(_WatchedDriver(collector), task, operations)
    assert seen.score is not None  # of the plain model, which always has one
    done = Propagation(seen.score, seen.relevances, operations)
    return Watched.of(done, records_of(collector, (), operations, task.dtype))


def unseen(operations: Sequence[Operation]) -> tuple[str, ...]:
    """Return the operations that mix values and that stock Captum does not see."""
    mixing = (o for o in reversed(operations) if o.treatment.mixes)
    return tuple(o.name for o in mixing if o.reached)
