"""The names that options take, and what they are if nothing is said.

Plain text, so that the command's help and completion need not import PyTorch. The modules that give
a name its meaning take it from here.
"""

from typing import Literal, get_args

OFFLINE = ("efficientnet_lite0", "squeezenet1_1_caffe")
"""Networks whose ImageNet weights come with a package."""

STABILIZERS = {
    "none": "Identity",
    "signed": "Signed",
    "relative": "Signed",
    "quadratic-mean": "RootMeanSquare",
    "additive": "Additive",
    "clip": "Clip",
    "rounding": "RoundingAware",
}
"""The class that stands behind each name."""

DEFAULT_STABILIZERS = ("none", "signed:0.1", "quadratic-mean:0.1", "additive:0.1", "clip:0.1")
"""At one epsilon, large enough that they differ to the eye."""

SWEPT_STABILIZERS = ("none", "signed", "quadratic-mean", "additive", "clip")
"""What a study runs over a grid of epsilons where no stabilizer is named."""

PRESETS = (
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "lrp_tutorial",
    "zero",
)

FORMS = ("gradient", "relevance", "modified-forward")
STOCK = "stock"
"""Captum's own driver, where a form is asked for."""

Attention = Literal["attnlrp", "cp"]
ATTENTION: tuple[Attention, ...] = get_args(Attention)

DTYPES = ("float16", "bfloat16", "float32", "float64")

REFERENCES = ("zennit", "captum", "captum_driver", "float64", "modified_forward")

SWEPT = ("epsilon", "gamma")
"""Parameters whose influence a diagnosis can show."""

THRESHOLD = 1000.0
"""How many times the relevance received a layer may pass on, before it counts as unstable."""
