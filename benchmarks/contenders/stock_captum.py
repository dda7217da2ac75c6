"""Stock ``captum.attr.LRP`` with Captum's own rules."""

from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule, PropagationRule
from torch import Tensor, nn

from benchmarks.contenders.base import Explainer
from benchmarks.contenders.ours import EPSILON, GAMMA
from benchmarks.models import Subject
from captum_lrp_stab import types


class StockCaptum(Explainer):
    """Captum's epsilon rule everywhere, or its gamma rule for convolutions.

    Max pools and the like keep Captum's default rule.
    """

    changes_model = True

    def __init__(self, subject: Subject, rules: str = "") -> None:
        super().__init__(subject, rules)
        self.lrp = LRP(self.model)

    def prepare(self) -> None:
        """Set the rules anew, since ``attribute`` deletes them, or leaves None after an error."""
        self.finish()
        for module in self.model.modules():
            if isinstance(module, types.RuleBearing):
                module.rule = self._rule(module)

    def _rule(self, module: nn.Module) -> PropagationRule:
        is_gamma = self.rules == "gamma" and isinstance(module, types.Convolution)
        return GammaRule(GAMMA) if is_gamma else EpsilonRule(EPSILON)

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the relevance."""
        relevance: Tensor = self.lrp.attribute(inputs.detach().requires_grad_(), target=target)
        return relevance.detach()

    def finish(self) -> None:
        """Take the rules off."""
        for module in self.model.modules():
            vars(module).pop("rule", None)
