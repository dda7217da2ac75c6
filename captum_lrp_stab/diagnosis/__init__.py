"""Diagnosis: where relevance is lost, amplified or destroyed, and what to do about it."""

from captum_lrp_stab.diagnosis.advice import Advice
from captum_lrp_stab.diagnosis.advising import advise
from captum_lrp_stab.diagnosis.diagnosing import diagnose
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.diagnosis.sweeping import Sweep, sweep

__all__ = ["Advice", "Diagnosis", "Sweep", "advise", "diagnose", "sweep"]
