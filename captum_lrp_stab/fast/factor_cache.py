"""What several backward passes over one forward pass have in common, layer by layer."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

from captum_lrp_stab.dispatch.layer_use import Turn
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.standard import EpsilonRule


@dataclass
class Memo:
    """Tensors of a layer that one backward pass computes and the next ones use.

    Args:
        rules: Of the layer, one for each variant.
        turn: The variant that is running.
    """

    rules: tuple[Rule, ...]
    turn: Turn
    kept: dict[tuple[Hashable, ...], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._formulas = [_formula(rule) for rule in self.rules]

    @property
    def whole(self) -> bool:
        """Whether the factors z / s(d) are kept: all passes have one rule. Else it is d alone."""
        return len(self.rules) == 1

    @property
    def formula(self) -> Hashable:
        """What the active rule has in common with those that can use the same tensors."""
        return self._formulas[self.turn.variant]

    def keep(self, key: tuple[Hashable, ...], value: Tensor) -> None:
        """Cache a tensor, and drop those that no later variant uses.

        Args:
            key: A formula, and what else the tensor depends on.
            value: The tensor.
        """
        needed = self._formulas[self.turn.variant :]
        self.kept = {key: value for key, value in self.kept.items() if key[0] in needed}
        self.kept[key] = value


def _formula(rule: Rule) -> tuple[Hashable, ...]:
    """Return what two rules have in common that differ in their stabilizer alone."""
    if type(rule).__module__ != EpsilonRule.__module__:
        return (id(rule),)
    parameters = {k: v for k, v in rule.parameters().items() if k != "stabilizer"}
    values = (id(v) if isinstance(v, Tensor) else v for v in parameters.values())
    return type(rule).__name__, *values
