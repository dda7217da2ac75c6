"""Which rule each operation of a pass gets: everything the user chose, as one value."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.names import ATTENTION as ATTENTION
from captum_lrp_stab.names import Attention as Attention
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.standard import EpsilonRule


class Layer(NamedTuple):
    """A rule-bearing layer as a pass meets it.

    Args:
        name: Its name; a functional ``F.conv2d`` has one too.
        kind: Its type; a functional ``F.conv2d`` is a ``Conv2d``.
        is_first: Whether it reads an input of the model (``first_layers``).
        position: How many linear layers and convolutions run before it does so first.
    """

    name: str
    kind: type[nn.Module]
    is_first: bool
    position: int


class Layers(NamedTuple):
    """Each use of the layers of a model, and how many linear layers and convolutions it runs."""

    uses: list[Layer]
    depth: int


class Positions:
    """The positions of the layers of a pass, each by its first use."""

    def __init__(self) -> None:
        self.count = 0  # of linear layers and convolutions
        self._positions: dict[str, int] = {}

    def of(self, name: str, kind: type[nn.Module]) -> int:
        """Return how many linear layers and convolutions have run before this layer did first."""
        if name not in self._positions:
            self._positions[name] = self.count
            self.count += issubclass(kind, types.Linear)
        return self._positions[name]


class Composite(ABC):
    """A source of rules for the layers of any model, such as a preset."""

    @property
    def is_by_depth(self) -> bool:
        """Whether a layer's rule depends on how many there are."""
        return False

    @abstractmethod
    def rule_of(self, layer: Layer, depth: int) -> Rule | None:
        """Return a new rule on a layer, None for LRP-0.

        Args:
            layer: The layer.
            depth: How many linear layers and convolutions the pass runs.
        """


@dataclass(frozen=True)
class RuleSet:
    """The rule of each operation.

    Args:
        named: Rule by layer name.
        default: Rule of linear layers and convolutions that have no other.
        composite: The source of rules for layers that are not named; None for none.
        attention: ``"attnlrp"`` propagates through the softmax by its gradient and halves products
            (Achtibat et al. 2024); ``"cp"`` holds the attention weights constant (Ali et al. 2022).
        merge_batch_norm: Treat a batch norm that follows a linear layer as one layer with it.
        on_modules: The rules are those set on the modules, not of a name_map.

    Raises:
        RuleError: ``attention`` is none of the two.
    """

    named: Mapping[str, Rule]
    default: Rule = field(default_factory=EpsilonRule)
    composite: Composite | None = None
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
        return replace(
            self,
            named={name: change(rule) for name, rule in self.named.items()},
            default=change(self.default),
            composite=None if self.composite is None else _Changed(self.composite, change),
        )

    def rule_of(self, layer: Layer, depth: int) -> Rule | None:
        """Return the rule of a layer, None for LRP-0.

        Args:
            layer: The layer.
            depth: How many linear layers and convolutions the pass runs.
        """
        if layer.name in self.named:
            return self.named[layer.name]
        rule = None if self.composite is None else self.composite.rule_of(layer, depth)
        if rule is not None:
            return rule
        return None if issubclass(layer.kind, types.AvgPool + types.BatchNorm) else self.default


@dataclass(frozen=True)
class _Changed(Composite):
    composite: Composite
    change: Callable[[Rule], Rule]

    @property
    def is_by_depth(self) -> bool:
        """Whether a layer's rule depends on how many there are."""
        return self.composite.is_by_depth

    def rule_of(self, layer: Layer, depth: int) -> Rule | None:
        """Return a layer's rule, changed."""
        rule = self.composite.rule_of(layer, depth)
        return None if rule is None else self.change(rule)
