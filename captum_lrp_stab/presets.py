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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.errors import RuleMapError
from captum_lrp_stab.input_rules import FlatRule, ZBoxRule
from captum_lrp_stab.layer_filter import layers_of
from captum_lrp_stab.mapping import NameMap
from captum_lrp_stab.rules import AlphaBetaRule, EpsilonRule, GammaRule, ZeroRule, ZPlusRule

Choice = tuple[type[Rule], dict[str, Any]]
Layers = list[tuple[str, type[nn.Module]]]


@dataclass(frozen=True)
class Preset:
    """A named map from any model to a name_map.

    Args:
        name: What it is called.
        build: From the names and types of a model's layers to a name_map.
        by_type: The rule of a functional layer, which no name_map made without inputs can name:
            from the type of the layer (``nn.Conv2d`` for ``F.conv2d``), and whether it reads the
            model's input, to a rule class and its parameters, or None for LRP-0.
    """

    name: str
    build: Callable[[Layers], NameMap]
    by_type: Callable[[type[nn.Module], bool], Choice | None]

    def __call__(
        self, model: nn.Module, inputs: Any = None, additional_forward_args: Any = None
    ) -> NameMap:
        """Return the name_map for ``model``.

        Args:
            model: The model; its leaf modules get a rule.
            inputs: With inputs, functional layers are named too, in order of execution.
            additional_forward_args: Further arguments of the model.

        Raises:
            RuleMapError: The model has no layer the preset gives a rule to.
        """
        name_map = self.build(layers_of(model, inputs, additional_forward_args))
        if not name_map:
            raise RuleMapError(
                f"preset {self.name} finds no linear layer or convolution in "
                f"{type(model).__name__}; give inputs too if its layers are functional calls, or "
                "a name_map"
            )
        return [(names, rule, dict(parameters)) for names, rule, parameters in name_map]


def zero() -> Preset:
    """LRP-0 everywhere, without a stabilizer: on ReLU networks, gradient x input."""
    return _by_type("zero", [(types.Linear + types.AvgPool, (ZeroRule, {}))])


def epsilon(epsilon: float = 1e-6) -> Preset:
    """Give every linear layer and average pool the epsilon rule.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    choice = (EpsilonRule, {"epsilon": epsilon})
    return _by_type("epsilon", [(types.Linear + types.AvgPool, choice)])


def epsilon_plus(epsilon: float = 1e-6) -> Preset:
    """The z+ rule for convolutions, epsilon else (zennit's ``EpsilonPlus``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    return _by_type("epsilon_plus", _convolutional((ZPlusRule, {}), epsilon))


def epsilon_plus_flat(epsilon: float = 1e-6) -> Preset:
    """``epsilon_plus`` with the flat rule in the first layer (zennit's ``EpsilonPlusFlat``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    table = _convolutional((ZPlusRule, {}), epsilon)
    return _by_type("epsilon_plus_flat", table, (types.Linear, (FlatRule, {})))


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Preset:
    """Alpha 2, beta 1 for convolutions, epsilon else (zennit's ``EpsilonAlpha2Beta1``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    table = _convolutional((AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}), epsilon)
    return _by_type("epsilon_alpha2_beta1", table)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Preset:
    """``epsilon_alpha2_beta1`` with flat first (zennit's ``EpsilonAlpha2Beta1Flat``).

    Average pools get the epsilon rule with 1e-6.

    Args:
        epsilon: Of the epsilon rule, >= 0.
    """
    table = _convolutional((AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}), epsilon)
    return _by_type("epsilon_alpha2_beta1_flat", table, (types.Linear, (FlatRule, {})))


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
    table = _convolutional((GammaRule, {"gamma": gamma}), epsilon)
    box = (ZBoxRule, {"low": low, "high": high})
    return _by_type("epsilon_gamma_box", table, (types.Convolution, box))


def lrp_tutorial(
    low: Tensor | float, high: Tensor | float, gamma: float = 0.0, epsilon: float = 0.25
) -> Preset:
    """The rules zB, gamma, epsilon and zero by depth, in VGG16's proportions.

    Of the linear layers and convolutions, the first gets zB, those up to 7/16 of the depth gamma,
    up to 13/16 epsilon, and the rest zero. On VGG16 this is the map by leaf index 0, 1-16, 17-30
    and 31-38. Average pools get the rule of the depth they stand at. Functional layers whose depth
    is not known get the epsilon rule; call the preset with inputs to have them counted.

    Args:
        low: Smallest possible input, see :class:`captum_lrp_stab.ZBoxRule`.
        high: Largest possible input.
        gamma: Of the gamma rule.
        epsilon: Of the epsilon rule.

    Source: Montavon et al. 2019, ch. 10.3 and its tutorial.
    """
    choices: list[Choice] = [
        (ZBoxRule, {"low": low, "high": high}),
        (GammaRule, {"gamma": gamma}),
        (EpsilonRule, {"epsilon": epsilon}),
        (ZeroRule, {}),
    ]

    def build(layers: Layers) -> NameMap:
        bearing = [layer for layer in layers if issubclass(layer[1], types.Linear + types.AvgPool)]
        total = sum(issubclass(kind, types.Linear) for _, kind in bearing)
        parts: list[list[str]] = [[], [], [], []]
        passed = 0
        for name, kind in bearing:
            part = 1 if 16 * passed < 7 * total else 2 if 16 * passed < 13 * total else 3
            if issubclass(kind, types.Linear):
                part = 0 if passed == 0 else part
                passed += 1
            parts[part].append(name)
        named = [list(dict.fromkeys(names)) for names in parts]
        return [(n, *choice) for n, choice in zip(named, choices, strict=True) if n]

    def by_type(kind: type[nn.Module], reads_input: bool) -> Choice | None:
        if not issubclass(kind, types.Linear + types.AvgPool):
            return None
        return choices[0] if reads_input and issubclass(kind, types.Linear) else choices[2]

    return Preset("lrp_tutorial", build, by_type)


def _convolutional(convolution: Choice, epsilon: float) -> list[tuple[tuple[Any, ...], Choice]]:
    return [
        (types.AvgPool, (EpsilonRule, {"epsilon": 1e-6})),
        (types.Convolution, convolution),
        (types.FullyConnected, (EpsilonRule, {"epsilon": epsilon})),
    ]


def _by_type(
    name: str,
    table: list[tuple[tuple[Any, ...], Choice]],
    first: tuple[tuple[Any, ...], Choice] | None = None,
) -> Preset:
    """Return a preset that chooses by the type of layer, with another rule for the first one."""

    def by_type(kind: type[nn.Module], is_first: bool) -> Choice | None:
        rows = [first, *table] if first is not None and is_first else table
        return next((choice for wanted, choice in rows if issubclass(kind, wanted)), None)

    def build(layers: Layers) -> NameMap:
        firsts = () if first is None else first[0]
        special = next((layer for layer, kind in layers if issubclass(kind, firsts)), None)
        named: dict[int, list[str]] = {}
        order = [] if first is None else [first[1]]
        order += [choice for _, choice in table]
        for layer, kind in dict(layers).items():
            choice = by_type(kind, layer == special)
            if choice is not None:
                named.setdefault(id(choice), []).append(layer)
        return [(named[id(choice)], *choice) for choice in order if id(choice) in named]

    return Preset(name, build, by_type)
