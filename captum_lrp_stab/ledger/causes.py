"""Why a layer is unstable, and what to do about it, in words.

The cause follows from the numbers of the neuron that the origin names.
"""

import math
from dataclasses import dataclass

import torch

from captum_lrp_stab.ledger.locating import Origin, Trouble
from captum_lrp_stab.ledger.records import Neuron

_ORDINARY = 1000.0
"""How many times the median denominator contributions may sum up to, without being large."""
_SIGNED = "give the layer a stabilizer that moves denominators away from 0, such as Signed(1e-6)"


@dataclass(frozen=True)
class Cause:
    """What happens at a layer, and the remedy.

    ``kind`` is one of ``overflow``, ``undefined``, ``exact zero``, ``epsilon underflows``,
    ``pole``, ``cancellation``, ``near zero``, ``stabilizer``, ``inherited`` and
    ``unknown``.
    """

    kind: str
    what: str
    remedy: str


def cause_of(origin: Origin, dtype: torch.dtype) -> Cause:
    """Return why there is trouble at a layer.

    Args:
        origin: Where it starts.
        dtype: Of the pass.
    """
    neuron = origin.neuron
    name, largest = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
    overflow = Cause(
        "overflow",
        f"values leave the range of {name}, whose largest number is {largest:.3g}",
        "use a wider dtype (bfloat16 has the range of float32), or a smaller scale of the weights",
    )
    if neuron is None or neuron.denominator is None or neuron.stabilized is None:
        if origin.trouble is Trouble.OVERFLOW and origin.stabilizer:
            return overflow
        return _elsewhere(origin, largest)
    d, s = neuron.denominator, neuron.stabilized
    if not math.isfinite(d):
        return overflow
    if not math.isfinite(s):
        return Cause(
            "stabilizer",
            f"the stabilizer turns the denominator {d:.4g} into {s:g}",
            "repair it, or take one of this package's, such as Signed(1e-6)",
        )
    if s == 0:
        return _division_by_0(neuron, d, name)
    if not origin.is_finite:
        if math.isfinite(neuron.relevance):
            return overflow
        return Cause(
            "inherited",
            "the relevance it receives is not finite already",
            "look at the operations above this layer: exp, log, division, sums of large values",
        )
    if origin.trouble in (Trouble.GROWTH, Trouble.EXCESS) or abs(s) < abs(d):
        return Cause(
            "pole",
            f"the stabilizer moves the denominator from {d:.4g} to {s:.4g}, nearer to 0",
            "take one that moves denominators away from 0: Signed with the same epsilon",
        )
    return _small(neuron, d, s, origin.typical or 0.0, dtype)


def _division_by_0(neuron: Neuron, d: float, dtype: str) -> Cause:
    exact = neuron.stabilized_in_float64
    if exact and abs(exact) >= abs(d):  # else it is moved towards 0: a pole, hit by rounding
        return Cause(
            "epsilon underflows",
            f"the denominator {d:.4g} is stabilized to 0 in {dtype}, and to {exact:.3g} in "
            "float64: epsilon is lost in rounding",
            "take one of this package's stabilizers, which raise epsilon to what works in the "
            "dtype, or a larger epsilon, or a wider dtype",
        )
    if d == 0:
        return Cause(
            "exact zero",
            "the denominator is exactly 0, and nothing stabilizes it: 0/0",
            f"{_SIGNED}, or take the gradient form (captum_lrp_stab.LRP), where 0/0 is 0",
        )
    return Cause(
        "pole",
        f"the stabilizer moves the denominator from {d:.4g} to exactly 0",
        "take one that moves denominators away from 0: Signed with the same epsilon",
    )


def _small(neuron: Neuron, d: float, s: float, typical: float, dtype: torch.dtype) -> Cause:
    magnitude = neuron.magnitude or 0.0
    noise = torch.finfo(dtype).eps / 2 * magnitude
    ratio = magnitude / abs(d) if d else math.inf
    sums = f"contributions of {magnitude:.3g} in all add up to {d:.3g}"
    if magnitude <= _ORDINARY * typical and abs(neuron.relevance) > abs(d):
        return Cause(
            "near zero",
            f"relevance of {neuron.relevance:.3g} is divided by {s:.3g}: a rule above propagates "
            "relevance that is not proportional to this layer's output",
            "give the layer a larger epsilon, or the layers above a rule that is proportional to "
            "its input (epsilon, gamma, z-plus)",
        )
    if abs(d) <= noise:
        return Cause(
            "cancellation",
            f"{sums}, which is less than their rounding error: the denominator is noise",
            "give the layer RoundingAware(8), which moves only such denominators, or a larger "
            "epsilon; or use a wider dtype",
        )
    return Cause(
        "cancellation",
        f"{sums}: {ratio:.3g} times as much cancels as is left",
        "give the layer a larger epsilon, or the gamma or z-plus rule, under which less cancels",
    )


def _elsewhere(origin: Origin, largest: float) -> Cause:
    if origin.trouble is Trouble.OVERFLOW and origin.neuron is not None:
        undefined = math.isnan(origin.neuron.z)
        what = "it has no value there, as 0/0 and the root of a negative number have none"
        if not undefined:
            what = f"a division by 0, the logarithm of 0, or a value beyond {largest:.3g}"
        return Cause(
            "undefined" if undefined else "overflow",
            what,
            "add a small number to a divisor or under a root or logarithm, clamp what exp gets",
        )
    return Cause(
        "unknown",
        f"an operation without a denominator ({origin.rule})",
        "look at what the operation computes, and use a wider dtype",
    )
