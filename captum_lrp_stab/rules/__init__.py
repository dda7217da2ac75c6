"""The propagation rules, for stock ``captum.attr.LRP`` and for this package's own.

A rule holds parameters and a formula: :class:`Rule` is what to derive one of your own from.
"""

from captum_lrp_stab.rules.affine import Affine
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.input_layer import FlatRule, WSquareRule, ZBoxRule
from captum_lrp_stab.rules.kernel import Group, Part, Term
from captum_lrp_stab.rules.standard import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    PassRule,
    ZeroRule,
    ZPlusRule,
)

__all__ = [
    "Affine",
    "AlphaBetaRule",
    "EpsilonRule",
    "FlatRule",
    "GammaRule",
    "Group",
    "Part",
    "PassRule",
    "Rule",
    "Term",
    "WSquareRule",
    "ZBoxRule",
    "ZPlusRule",
    "ZeroRule",
]
