"""This package's ``LRP``, under its presets and under the rules the other libraries have."""

import inspect
from typing import Any

from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from benchmarks.contenders.base import Explainer
from benchmarks.models import Subject
from captum_lrp_stab import LRP, EpsilonRule, GammaRule, LayerFilter, presets, types

EPSILON, GAMMA = 1e-6, 0.25  # of zennit's composites, and given to everybody


class Ours(Explainer):
    """One ``LRP`` for all calls, with its default options."""

    def __init__(self, subject: Subject, rules: str = "") -> None:
        super().__init__(subject, rules)
        self.lrp = LRP(subject.model, rules_of(rules, subject))

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the relevance."""
        relevance: Tensor = self.lrp.attribute(inputs, target=target)
        return relevance


def rules_of(name: str, subject: Subject) -> Any:
    """Return rules by name, as ``LRP`` takes them: a preset, or one of :data:`FURTHER`."""
    if name in FURTHER:
        return lambda model: _by_type(model, *FURTHER[name])
    build = getattr(presets, name)
    if "low" in inspect.signature(build).parameters:
        return build(low=subject.low, high=subject.high)
    return build()


FURTHER: dict[str, tuple[type[Any], type[Any]]] = {
    "gamma": (GammaRule, EpsilonRule),
    "captum_gamma": (captum_rules.GammaRule, EpsilonRule),
}
"""Rules of convolutions and of everything else, for the contenders that have no zB rule."""


def _by_type(
    model: nn.Module, convolution: type[Any], other: type[Any]
) -> list[tuple[list[str], type[Any], dict[str, Any]]]:
    """Return a map of a gamma rule for convolutions and an epsilon rule for all else."""
    layers = LayerFilter(model)
    bearing = types.Linear + types.AvgPool
    names = layers(lambda n: True, bearing)
    convolutions = set(layers(lambda n: True, types.Convolution))
    entries: list[tuple[list[str], type[Any], dict[str, Any]]] = [
        ([n for n in names if n in convolutions], convolution, {"gamma": GAMMA}),
        ([n for n in names if n not in convolutions], other, {"epsilon": EPSILON}),
    ]
    return [entry for entry in entries if entry[0]]
