"""Which rule each operation of a pass gets: everything the user chose, as one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.rules import EpsilonRule

Attention = Literal["attnlrp", "cp"]
ATTENTION: tuple[Attention, ...] = get_args(Attention)


@dataclass(frozen=True)
class RuleSet:
    """The rule of each operation.

    Args:
        named: Rule by layer name.
        default: Rule of linear layers and convolutions that have no other.
        by_type: From the type of a layer without a name in the map (a functional ``F.conv2d`` is a
            ``Conv2d``), and whether it reads the model's input, to a new rule, or None.
        attention: ``"attnlrp"`` propagates through the softmax by its gradient and halves products
            (Achtibat et al. 2024); ``"cp"`` holds the attention weights constant (Ali et al. 2022).
        merge_batch_norm: Treat a batch norm that follows a linear layer as one layer with it.
        on_modules: The rules are those set on the modules, not of a name_map.

    Raises:
        RuleError: ``attention`` is none of the two.
    """

    named: Mapping[str, Rule]
    default: Rule = field(default_factory=EpsilonRule)
    by_type: Callable[[type[nn.Module], bool], Rule | None] | None = None
    attention: Attention = "attnlrp"
    merge_batch_norm: bool = True
    on_modules: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise RuleError(f"attention is {self.attention!r}; give 'attnlrp' or 'cp'")

    @property
    def remedy(self) -> str:
        """What to do about a rule that does not fit its layer, for error messages."""
        return "delete its rule" if self.on_modules else "leave the layer out of the name_map"

    def changed(self, change: Callable[[Rule], Rule]) -> "RuleSet":
        """Return the set with every rule changed."""

        def by_type(layer: type[nn.Module], reads_input: bool) -> Rule | None:
            rule = None if self.by_type is None else self.by_type(layer, reads_input)
            return None if rule is None else change(rule)

        return replace(
            self,
            named={name: change(rule) for name, rule in self.named.items()},
            default=change(self.default),
            by_type=None if self.by_type is None else by_type,
        )

    def rule_of(self, name: str, layer: type[nn.Module], reads_input: bool) -> Rule | None:
        """Return the rule of a layer, None for LRP-0.

        Args:
            name: The layer's name.
            layer: Its type.
            reads_input: Whether it reads the model's input as it is.
        """
        if name in self.named:
            return self.named[name]
        rule = None if self.by_type is None else self.by_type(layer, reads_input)
        if rule is not None:
            rule.layer = name
            return rule
        return None if issubclass(layer, types.AvgPool + types.BatchNorm) else self.default
