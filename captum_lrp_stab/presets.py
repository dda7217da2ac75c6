"""Rule maps with a name: zennit's composites, and the four-part map of the LRP tutorial.

A preset is given to :class:`captum_lrp_stab.LRP` as it is, or called with a model to get a name_map
that one can print and edit.

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

from captum_lrp_stab import types
from captum_lrp_stab.captum_bridge import Rule
from captum_lrp_stab.errors import RuleMapError
from captum_lrp_stab.mapping import NameMap, leaf_modules
from captum_lrp_stab.rules import (
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
)

Choice = tuple[type[Rule], dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """A named map from any model to a name_map."""

    name: str
    build: Callable[[nn.Module], NameMap]

    def __call__(self, model: nn.Module) -> NameMap:
        """Return the name_map for ``model``.

        Raises:
            RuleMapError: The model has no layer the preset gives a rule to.
        """
        name_map = self.build(model)
        if not name_map:
            raise RuleMapError(
                f"preset {self.name} finds no linear layer or convolution in "
                f"{type(model).__name__}; give a name_map"
            )
        return [(names, rule, dict(parameters)) for names, rule, parameters in name_map]


def zero() -> Preset:
    """LRP-0 everywhere, without a stabilizer: on ReLU networks, gradient x input."""
    return _by_type("zero", [(types.Linear + types.AvgPool, (ZeroRule, {}))])


def epsilon(epsilon: float = 1e-6) -> Preset:
    """Give every linear layer and average pool the epsilon rule."""
    choice = (EpsilonRule, {"epsilon": epsilon})
    return _by_type("epsilon", [(types.Linear + types.AvgPool, choice)])


def epsilon_plus(epsilon: float = 1e-6) -> Preset:
    """The z+ rule for convolutions, epsilon else (zennit's ``EpsilonPlus``)."""
    return _by_type("epsilon_plus", _convolutional((ZPlusRule, {}), epsilon))


def epsilon_plus_flat(epsilon: float = 1e-6) -> Preset:
    """``epsilon_plus`` with the flat rule in the first layer (zennit's ``EpsilonPlusFlat``)."""
    table = _convolutional((ZPlusRule, {}), epsilon)
    return _by_type("epsilon_plus_flat", table, (types.Linear, (FlatRule, {})))


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Preset:
    """Alpha 2, beta 1 for convolutions, epsilon else (zennit's ``EpsilonAlpha2Beta1``)."""
    table = _convolutional((AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}), epsilon)
    return _by_type("epsilon_alpha2_beta1", table)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Preset:
    """``epsilon_alpha2_beta1`` with flat first (zennit's ``EpsilonAlpha2Beta1Flat``)."""
    table = _convolutional((AlphaBetaRule, {"alpha": 2.0, "beta": 1.0}), epsilon)
    return _by_type("epsilon_alpha2_beta1_flat", table, (types.Linear, (FlatRule, {})))


def epsilon_gamma_box(
    low: Tensor | float, high: Tensor | float, epsilon: float = 1e-6, gamma: float = 0.25
) -> Preset:
    """The zB rule first, gamma for convolutions, epsilon else (zennit's ``EpsilonGammaBox``).

    Args:
        low: Smallest possible input, see :class:`captum_lrp_stab.ZBoxRule`.
        high: Largest possible input.
        epsilon: Of the epsilon rule.
        gamma: Of the gamma rule.
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
    and 31-38. Average pools get the rule of the depth they stand at.

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

    def build(model: nn.Module) -> NameMap:
        leaves = [
            (name, module)
            for name, module in leaf_modules(model)
            if isinstance(module, types.Linear + types.AvgPool)
        ]
        total = sum(isinstance(module, types.Linear) for _, module in leaves)
        names: list[list[str]] = [[], [], [], []]
        passed = 0
        for name, module in leaves:
            part = 1 if 16 * passed < 7 * total else 2 if 16 * passed < 13 * total else 3
            if isinstance(module, types.Linear):
                part = 0 if passed == 0 else part
                passed += 1
            names[part].append(name)
        return [(n, *choice) for n, choice in zip(names, choices, strict=True) if n]

    return Preset("lrp_tutorial", build)


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
    """Return a preset that chooses by module type, with a rule of its own for the first layer."""

    def build(model: nn.Module) -> NameMap:
        rows: list[tuple[list[str], Choice]] = [([], choice) for _, choice in table]
        special: list[str] = []
        for leaf, module in leaf_modules(model):
            if first is not None and not special and isinstance(module, first[0]):
                special.append(leaf)
                continue
            for (names, _), (wanted, _) in zip(rows, table, strict=True):
                if isinstance(module, wanted):
                    names.append(leaf)
                    break
        if first is not None:
            rows.insert(0, (special, first[1]))
        return [(names, *choice) for names, choice in rows if names]

    return Preset(name, build)
