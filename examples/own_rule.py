"""A rule and a stabilizer of one's own, on EfficientNet-Lite0.

Both are checked by the contracts that the shipped ones keep; docs/howto/own_rule.md explains them.

    python examples/own_rule.py [FOLDER]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab import LRP, EpsilonRule, LayerFilter, presets, types, visualize, zoo
from captum_lrp_stab.images import reading
from captum_lrp_stab.rules.standard import Affine, Group, Part, Rule, Term
from captum_lrp_stab.stabilizers import Stabilizer, signs
from captum_lrp_stab.testing import assert_rule_contract, assert_stabilizer_contract


class AbsoluteRule(Rule):
    r"""Share relevance by the size of each contribution, whatever its sign.

    .. math:: R_j = \sum_k \frac{|x_j w_{jk}|}{s(\sum_j |x_j w_{jk}| + |b_k|)} R_k

    """

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        plus, minus = op.weight.clamp(min=0), op.weight.clamp(max=0)
        bias = None if op.bias is None else op.bias.abs()
        terms = (
            Term(plus, bias, Part.POSITIVE),  # x+ w+
            Term(minus, None, Part.NEGATIVE),  # x- w-
            Term(minus, None, Part.POSITIVE, sign=-1.0),  # -x+ w-
            Term(plus, None, Part.NEGATIVE, sign=-1.0),  # -x- w+
        )
        return (Group(terms, one_sign=True),)  # a denominator of 0 is a sum of nothing


@dataclass(frozen=True)
class Hypot(Stabilizer):
    """Round off the corner at 0: sign(z) sqrt(z² + epsilon²)."""

    epsilon: float
    moves_away_from_0 = True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return signs(z) * torch.hypot(z, torch.full_like(z, self.epsilon))


def main(folder: Path) -> None:
    assert_rule_contract(AbsoluteRule())
    assert_stabilizer_contract(Hypot(1e-3))
    print("the rule and the stabilizer keep their contracts")

    classifier = zoo.load("efficientnet_lite0")
    picture = classifier.preprocessing.picture(reading.default_picture())
    x = classifier.preprocessing.input(picture)
    scores = classifier.model(x)[0].detach()
    target = int(scores.argmax())

    layers = LayerFilter(classifier.model)
    name_map = [
        (layers(lambda n: True, types.Convolution), AbsoluteRule, {"stabilizer": Hypot(1e-3)}),
        (layers(lambda n: True, types.FullyConnected), EpsilonRule, {"epsilon": 1e-6}),
    ]
    plus, epsilon = presets.epsilon_plus(), presets.epsilon()
    rules: dict[str, Any] = {"by size": name_map, "z+": plus, "epsilon": epsilon}
    relevance = {name: LRP(classifier.model, r).attribute(x, target) for name, r in rules.items()}
    for name, R in relevance.items():
        print(f"{name}: score {scores[target]:.3f}, sum of relevance {R.sum():.3f}")
    options = {"title": classifier.label(target), "shared": False}  # their sums differ by far
    figure = visualize.heatmaps(relevance, picture, scores=scores[target], **options)
    figure.savefig(folder / "own_rule.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
