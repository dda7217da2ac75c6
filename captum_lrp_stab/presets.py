"""Rule maps with a name: zennit's composites, and the four-part map of the LRP tutorial.

A preset is given to :class:`captum_lrp_stab.LRP` as it is, or called with a model to get a name_map
that one can print and edit. Functional layers get the rule of the module they stand for.

Example:
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    >>> for names, rule, parameters in epsilon_plus()(model):
    ...     print(names, rule.__name__, parameters)
    ['0'] ZPlusRule {}
    ['3'] EpsilonRule {'epsilon': 1e-06}
"""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.assignment import definition_order
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.errors import RuleMapError, RuleMapWarning
from captum_lrp_stab.propagation.attribution import layers_of_pass
from captum_lrp_stab.rules.base import Rule, described
from captum_lrp_stab.rules.input_layer import FlatRule, ZBoxRule
from captum_lrp_stab.rules.rule_set import Composite, Layer, Layers
from captum_lrp_stab.rules.standard import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    ZeroRule,
    ZPlusRule,
)

Choice = tuple[type[Rule], dict[str, Any]]
"""A rule class and its parameters."""
Row = tuple[tuple[type[nn.Module], ...], Choice]
"""Types of layers, and the rule they get."""


@dataclass(frozen=True, eq=False, repr=False)
class Preset(Composite):
    """A rule for each layer of any model, by its type and place.

    Prints as the call that makes it, and equals another of the same name and arguments.

    Args:
        name: Of the function that makes it.
        arguments: Of that call.

    Raises:
        RuleError: A rule does not take what it is given.
    """

    name: str
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        for rule, parameters in self.choices():
            rule(**parameters)  # which checks them

    @abstractmethod
    def choices(self) -> tuple[Choice, ...]:
        """Return the rules it gives, in the order of a name_map."""

    @abstractmethod
    def choice_of(self, layer: Layer, depth: int) -> Choice | None:
        """Return the choice for a layer, None for LRP-0.

        Args:
            layer: The layer.
            depth: How many linear layers and convolutions the model runs.
        """

    @property
    @abstractmethod
    def first_types(self) -> tuple[type[nn.Module], ...]:
        """The types of layers that get a rule of their own where they are first layers."""

    def rule_of(self, layer: Layer, depth: int) -> Rule | None:
        """Return a new rule on a layer, None for LRP-0; see :meth:`choice_of`."""
        choice = self.choice_of(layer, depth)
        if choice is None:
            return None
        rule = choice[0](**choice[1])
        rule.layer = layer.name
        return rule

    def __call__(
        self, model: nn.Module, inputs: Any = None, additional_forward_args: Any = None
    ) -> NameMap:
        """Return the name_map for ``model``; with inputs, what ``LRP(model, preset)`` does on them.

        Args:
            model: The model; its leaf modules get a rule.
            inputs: With inputs, a forward pass shows which layers it runs, functional ones too,
                in which order, and which of them read an input. Without, the code of the model's
                forward says so where it can be traced; else it is the order of definition.
            additional_forward_args: Further arguments of the model.

        Raises:
            RuleMapError: The model has no layer the preset gives a rule to.

        Warns:
            RuleMapWarning: Without inputs, which layers are first ones can only be guessed; or a
                layer is a first one in some of its uses alone, and a name_map has one rule for all
                of them.
        """
        if inputs is not None:
            layers = layers_of_pass(model, inputs, additional_forward_args)
        else:
            layers = self._layers(model)
        name_map = self._name_map(layers)
        if not name_map:
            raise RuleMapError(
                f"preset {self.name} finds no linear layer or convolution in "
                f"{type(model).__name__}; give inputs too if its layers are functional calls, or "
                "a name_map"
            )
        return name_map

    def by_definition(self, model: nn.Module) -> NameMap:
        """Return the name_map by the order of definition alone, as zennit's composites go by it."""
        return self._name_map(definition_order.by_definition(model, self.first_types))

    def _layers(self, model: nn.Module) -> Layers:
        """Return the layers of a model without a forward pass."""
        defined = definition_order.by_definition(model, self.first_types)
        first = self._first(defined)
        if not first or defined.depth == 1:
            return defined
        runs_first = not first[0].position and definition_order.is_in_sequence(model, first[0].name)
        found = definition_order.as_traced(model)
        layers, is_certain = found or (defined, runs_first)
        names = [layer.name for layer in self._first(layers)]
        if not is_certain and (found is None or names != [first[0].name]):
            _warn(
                f"preset {self.name} takes {', '.join(map(repr, names)) or 'none'} for the first "
                f"layer of {type(model).__name__}: which layers read an input cannot be told for "
                "certain from the code of its forward. Give inputs too, preset(model, x), or give "
                "the preset itself to LRP, which sees it in the pass"
            )
        return layers

    def _first(self, layers: Layers) -> list[Layer]:
        """Return the first layers that get a rule of their own, each once."""
        first = (x for x in layers.uses if x.is_first and issubclass(x.kind, self.first_types))
        return list({layer.name: layer for layer in first}.values())

    def _name_map(self, layers: Layers) -> NameMap:
        """Return the choices with the names of their layers."""
        chosen: dict[str, Choice] = {}
        mixed: dict[str, None] = {}
        for layer in layers.uses:
            choice = self.choice_of(layer, layers.depth)
            if choice is None:
                continue
            if chosen.setdefault(layer.name, choice) is not choice:
                mixed[layer.name] = None
                chosen[layer.name] = choice if layer.is_first else chosen[layer.name]
        if mixed:
            _warn(
                f"preset {self.name}: layers {', '.join(map(repr, mixed))} read an input of the "
                "model in one of their uses and another value in another, and a name_map has one "
                "rule for both: they get that of a first layer. Give the preset itself to LRP, "
                "which decides for each use"
            )
        named = [[n for n, own in chosen.items() if own is choice] for choice in self.choices()]
        return [
            (names, rule, dict(parameters))
            for names, (rule, parameters) in zip(named, self.choices(), strict=True)
            if names
        ]

    def __repr__(self) -> str:
        """Return the call that makes the preset, with tensors shortened to their shape."""
        return f"{self.name}({', '.join(described(self.arguments))})"

    def __eq__(self, other: object) -> bool:
        """Return whether another preset has the same name and equal arguments."""
        if not isinstance(other, Preset):
            return NotImplemented
        theirs = other.arguments
        return self.name == other.name and all(
            _are_equal(value, theirs[name]) for name, value in self.arguments.items()
        )

    def __hash__(self) -> int:
        """Return the hash of the name, the same for equal presets."""
        return hash(self.name)


def _warn(message: str) -> None:
    warnings.warn(message, RuleMapWarning, stacklevel=4)


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype
        return both and torch.equal(a, b)
    return bool(a == b)


@dataclass(frozen=True, eq=False, repr=False)
class _ByType(Preset):
    """The rule of a layer is that of its type, but for first layers.

    Args:
        name: See :class:`Preset`.
        arguments: Likewise.
        rows: By type.
        first: Of first layers, of these types alone; None for no other rule.
    """

    rows: tuple[Row, ...]
    first: Row | None = None

    @property
    def first_types(self) -> tuple[type[nn.Module], ...]:
        """The types of layers that get a rule of their own where they are first layers."""
        return () if self.first is None else self.first[0]

    def choices(self) -> tuple[Choice, ...]:
        """Return the rules it gives, in the order of a name_map."""
        firsts = () if self.first is None else (self.first,)
        return tuple(choice for _, choice in (*firsts, *self.rows))

    def choice_of(self, layer: Layer, depth: int) -> Choice | None:
        """Return the choice for a layer, None for LRP-0."""
        rows = (self.first, *self.rows) if layer.is_first and self.first else self.rows
        return next((choice for kinds, choice in rows if issubclass(layer.kind, kinds)), None)


@dataclass(frozen=True, eq=False, repr=False)
class _ByDepth(Preset):
    """The rule of a layer is that of its depth, but for first layers.

    Args:
        name: See :class:`Preset`.
        arguments: Likewise.
        parts: Of first layers; up to 7/16 of the depth; up to 13/16; of the rest.
    """

    parts: tuple[Choice, Choice, Choice, Choice]

    @property
    def is_by_depth(self) -> bool:
        """Whether a layer's rule depends on how many there are."""
        return True

    @property
    def first_types(self) -> tuple[type[nn.Module], ...]:
        """The types of layers that get a rule of their own where they are first layers."""
        return types.Linear

    def choices(self) -> tuple[Choice, ...]:
        """Return the rules it gives, in the order of a name_map."""
        return self.parts

    def choice_of(self, layer: Layer, depth: int) -> Choice | None:
        """Return the choice for a layer, None for LRP-0."""
        if not issubclass(layer.kind, types.Linear + types.AvgPool):
            return None
        if layer.is_first and issubclass(layer.kind, types.Linear):
            return self.parts[0]
        passed = 16 * layer.position
        return self.parts[1 if passed < 7 * depth else 2 if passed < 13 * depth else 3]


def zero() -> Preset:
    """LRP-0 everywhere, without a stabilizer: on ReLU networks, gradient x input."""
    return _ByType("zero", {}, ((types.Linear + types.AvgPool, (ZeroRule, {})),))


def epsilon(epsilon: float = 1e-6) -> Preset:
    """Give every linear layer and average pool the epsilon rule.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    arguments = {"epsilon": epsilon}
    rows = ((types.Linear + types.AvgPool, (EpsilonRule, arguments)),)
    return _ByType("epsilon", arguments, rows)


def epsilon_plus(epsilon: float = 1e-6) -> Preset:
    """The z+ rule for convolutions, epsilon else (zennit's ``EpsilonPlus``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    rows = _convolutional((ZPlusRule, {}), epsilon)
    return _ByType("epsilon_plus", {"epsilon": epsilon}, rows)


def epsilon_plus_flat(epsilon: float = 1e-6) -> Preset:
    """``epsilon_plus`` with the flat rule in the first layer (zennit's ``EpsilonPlusFlat``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    rows = _convolutional((ZPlusRule, {}), epsilon)
    first: Row = (types.Linear, (FlatRule, {}))
    return _ByType("epsilon_plus_flat", {"epsilon": epsilon}, rows, first)


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Preset:
    """Alpha 2, beta 1 for convolutions, epsilon else (zennit's ``EpsilonAlpha2Beta1``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    rows = _convolutional((AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}), epsilon)
    return _ByType("epsilon_alpha2_beta1", {"epsilon": epsilon}, rows)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Preset:
    """``epsilon_alpha2_beta1`` with flat first (zennit's ``EpsilonAlpha2Beta1Flat``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    rows = _convolutional((AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}), epsilon)
    first: Row = (types.Linear, (FlatRule, {}))
    return _ByType("epsilon_alpha2_beta1_flat", {"epsilon": epsilon}, rows, first)


def epsilon_gamma_box(
    low: Tensor | float, high: Tensor | float, epsilon: float = 1e-6, gamma: float = 0.25
) -> Preset:
    """The zB rule first, gamma for convolutions, epsilon else (zennit's ``EpsilonGammaBox``).

    Args:
        low: Smallest possible input, see :class:`captum_lrp_stab.ZBoxRule`.
        high: Largest possible input.
        epsilon: Of the epsilon rule, >= 0.
        gamma: Of the gamma rule, >= 0.

    Source: zennit's composite; rules by depth as in Montavon et al. 2019, ch. 10.3.
    """
    rows = _convolutional((GammaRule, {"gamma": gamma}), epsilon)
    arguments = {"low": low, "high": high, "epsilon": epsilon, "gamma": gamma}
    box = (ZBoxRule, {"low": low, "high": high})
    return _ByType("epsilon_gamma_box", arguments, rows, (types.Convolution, box))


def lrp_tutorial(
    low: Tensor | float, high: Tensor | float, gamma: float = 0.0, epsilon: float = 0.25
) -> Preset:
    """The rules zB, gamma, epsilon and zero by depth, in VGG16's proportions.

    Of the linear layers and convolutions, in the order in which they run, first layers get zB,
    those up to 7/16 of the depth gamma, up to 13/16 epsilon, and the rest zero. On VGG16 this is
    the map by leaf index 0, 1-16, 17-30 and 31-38. Average pools get the rule of the depth they
    stand at.

    Args:
        low: Smallest possible input, see :class:`captum_lrp_stab.ZBoxRule`.
        high: Largest possible input.
        gamma: Of the gamma rule.
        epsilon: Of the epsilon rule.

    Source: Montavon et al. 2019, ch. 10.3 and its tutorial.
    """
    parts: tuple[Choice, Choice, Choice, Choice] = (
        (ZBoxRule, {"low": low, "high": high}),
        (GammaRule, {"gamma": gamma}),
        (EpsilonRule, {"epsilon": epsilon}),
        (ZeroRule, {}),
    )
    arguments = {"low": low, "high": high, "gamma": gamma, "epsilon": epsilon}
    return _ByDepth("lrp_tutorial", arguments, parts)


def _convolutional(convolution: Choice, epsilon: float) -> tuple[Row, ...]:
    return (
        (types.AvgPool, (EpsilonRule, {"epsilon": 1e-6})),
        (types.Convolution, convolution),
        (types.FullyConnected, (EpsilonRule, {"epsilon": epsilon})),
    )
