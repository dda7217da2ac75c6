"""autoLRP (``pip install autolrp``), where it is installed: LRP by hooks on the autograd graph."""

from typing import Any

from torch import Tensor, nn

from benchmarks.contenders.base import Explainer, NotInstalledError
from benchmarks.contenders.ours import EPSILON, GAMMA
from benchmarks.models import Subject


def package() -> Any:
    """Return autoLRP.

    Raises:
        NotInstalledError: It is not installed.
    """
    try:
        import autolrp
    except ImportError as error:
        raise NotInstalledError("autoLRP is not installed; pip install autolrp") from error
    return autolrp


class AutoLRP(Explainer):
    """The epsilon rule everywhere, or the gamma rule for convolutions."""

    def __init__(self, subject: Subject, rules: str = "") -> None:
        super().__init__(subject, rules)
        self.autolrp = package()
        norms = self.autolrp.on(self.autolrp.LAYERNORM_NODES, "detach_std")
        # what comes closest to this package's defaults in transformers
        table = {**self.autolrp.BASE, **self.autolrp.ATTNLRP, **norms}
        if rules == "gamma":
            table["ConvolutionBackward"] = "gamma", {"gamma": GAMMA}
        self.config = self.autolrp.LRPConfig(rule=table, eps=EPSILON)

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the relevance, which autoLRP starts from 1, times the score."""
        x = self.autolrp.tensor(inputs)
        score = self.model(x)[range(len(inputs)), target].sum()
        score.lrp(config=self.config)
        relevance: Tensor = x.relevance * score
        return relevance.detach().as_subclass(Tensor)

    def known_difference(self) -> str:
        """Return its layer norm: on a single attention layer without one it agrees to 1e-9."""
        if any(isinstance(module, nn.LayerNorm) for module in self.model.modules()):
            return "autoLRP's layer norm hands the mean's share down by absolute values"
        return ""
