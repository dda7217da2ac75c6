"""Comparison with zennit, stock Captum, float64 and other forms, layer by layer."""

from captum_lrp_stab.comparison.comparing import compare
from captum_lrp_stab.comparison.result import Comparison

__all__ = ["Comparison", "compare"]
