"""zennit's composites, where zennit is installed.

The composite is registered and the model canonized before the clock starts: who explains many
pictures does that once. Only zennit's public names are called; nothing of its code is used.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models import ResNet

from benchmarks.contenders.base import Explainer, NotInstalledError
from benchmarks.contenders.ours import EPSILON, GAMMA
from benchmarks.models import Subject
from captum_lrp_stab import plan, presets


def package() -> Any:
    """Return zennit.

    Raises:
        NotInstalledError: It is not installed.
    """
    try:
        import zennit.attribution
        import zennit.canonizers
        import zennit.composites
        import zennit.rules
        import zennit.torchvision
        import zennit.types
    except ImportError as error:
        raise NotInstalledError("zennit is not installed; pip install zennit") from error
    return zennit


class Zennit(Explainer):
    """zennit's ``Gradient`` attributor under one of its composites."""

    changes_model = True

    def __init__(self, subject: Subject, rules: str = "") -> None:
        super().__init__(subject, rules)
        zennit = package()
        options = {"canonizers": [_canonizer(zennit, subject)]}
        composite = _composite(zennit, rules, subject, options)
        self.attributor = zennit.attribution.Gradient(subject.model, composite)

    def prepare(self) -> None:
        """Register the composite."""
        self.attributor.__enter__()

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the relevance."""

        def score(output: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(target, output.shape[1]) * output.detach()

        _, relevance = self.attributor(inputs.detach().requires_grad_(), score)
        return relevance.detach()  # type: ignore[no-any-return]

    def finish(self) -> None:
        """Take the composite off."""
        self.attributor.__exit__(None, None, None)


def _canonizer(zennit: Any, subject: Subject) -> Any:
    """Return the canonizer that zennit has for a model, or one that merges its batch norms.

    By name, since ``SequentialMergeBatchNorm`` passes over a convolution with a padding inside.
    """
    if isinstance(subject.model, ResNet):
        return zennit.torchvision.ResNetCanonizer()
    layers = plan(subject.model, torch.zeros_like(subject.inputs(1)), presets.zero()).layers
    pairs = [([row.name], row.batch_norm) for row in layers if row.batch_norm]
    return zennit.canonizers.NamedMergeBatchNorm(pairs)


def _composite(zennit: Any, rules: str, subject: Subject, options: dict[str, Any]) -> Any:
    composites = zennit.composites
    if rules == "epsilon":
        layer_map = composites.layer_map_base(EPSILON)
        layer_map.append((zennit.types.Linear, zennit.rules.Epsilon(EPSILON)))
        return composites.LayerMapComposite(layer_map, **options)
    if rules == "epsilon_gamma_box":
        box = {"low": subject.low, "high": subject.high}
        return composites.EpsilonGammaBox(**box, epsilon=EPSILON, gamma=GAMMA, **options)
    named = {
        "epsilon_plus": composites.EpsilonPlus,
        "epsilon_alpha2_beta1": composites.EpsilonAlpha2Beta1,
    }
    return named[rules](epsilon=EPSILON, **options)
