"""Layer-wise relevance propagation with injectable stabilizers, as a plugin for Captum."""

from captum_lrp_stab import presets, stabilizers, types, visualize
from captum_lrp_stab._version import __version__
from captum_lrp_stab.attachment import attach_rules
from captum_lrp_stab.comparison import compare
from captum_lrp_stab.diagnosis.diagnosing import diagnose
from captum_lrp_stab.input_rules import FlatRule, WSquareRule, ZBoxRule
from captum_lrp_stab.layer_filter import LayerFilter
from captum_lrp_stab.lrp import LRP, LayerLRP
from captum_lrp_stab.planning import plan
from captum_lrp_stab.rules import (
    AlphaBetaRule,
    EpsilonRule,
    GammaRule,
    PassRule,
    ZeroRule,
    ZPlusRule,
)

__all__ = [
    "LRP",
    "AlphaBetaRule",
    "EpsilonRule",
    "FlatRule",
    "GammaRule",
    "LayerFilter",
    "LayerLRP",
    "PassRule",
    "WSquareRule",
    "ZBoxRule",
    "ZPlusRule",
    "ZeroRule",
    "__version__",
    "attach_rules",
    "compare",
    "diagnose",
    "plan",
    "presets",
    "stabilizers",
    "types",
    "visualize",
]
