"""Where instability starts: the first layer at which values are not finite, or grow too much.

The forward pass comes before the backward pass, in which the first layer is the one nearest to the
output. What counts as trouble:

- outputs that are not finite, of inputs that are;
- relevance that is not finite, of relevance that is;
- a form that rewrites the forward pass: outputs more than ``GROWTH`` times as large as they are;
- a layer, or one neuron alone, that propagates more than ``threshold`` times the relevance that the
  whole layer received, in absolute value;
- a stabilizer that moves denominators towards 0 and thereby adds more than ``EXCESS`` times the
  relevance that the layer received. Signed stabilizers, clipping and LRP-0 never do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from captum_lrp_stab.errors import InputError
from captum_lrp_stab.ledger.records import Input, LayerRecord, Neuron
from captum_lrp_stab.names import THRESHOLD

EXPLOSION = 1e6
"""How many times the score the relevance of the inputs may be, in all, whatever each layer does."""
GROWTH = 2.0
EXCESS = 1.0


class Trouble(str, Enum):
    """What is wrong at a layer."""

    OVERFLOW = "output not finite"
    NONFINITE = "relevance not finite"
    GROWTH = "output multiplied"
    AMPLIFICATION = "relevance amplified"
    EXCESS = "relevance added by the stabilizer"


@dataclass(frozen=True)
class Origin:
    """The first layer at which there is trouble, and the neuron that makes most of it.

    ``direction`` is ``"forward"`` or ``"backward"``; ``count`` how many values are not finite;
    ``factor`` how many times the relevance received is propagated, by the layer or by the neuron
    alone if that is more.
    """

    name: str
    kind: str
    rule: str
    stabilizer: str
    trouble: Trouble
    direction: str
    count: int
    factor: float | None
    neuron: Neuron | None
    input: Input | None
    typical: float | None  # the median of the layer's |denominators|
    layer: str  # the name without the number of the use
    use: int

    @property
    def is_finite(self) -> bool:
        """Whether all values are finite."""
        return self.trouble not in (Trouble.OVERFLOW, Trouble.NONFINITE)


Verdict = Literal["stable", "unstable", "not finite"]


def verdict_of(is_finite: bool, growth: float, origin: Origin | None) -> Verdict:
    """Return what is to be said of an attribution.

    Args:
        is_finite: Whether the score and the relevance of the inputs are.
        growth: The absolute sum of the relevance of the inputs over that of the score.
        origin: Where trouble starts.
    """
    if not is_finite or (origin is not None and not origin.is_finite):
        return "not finite"
    exploded = EXPLOSION < growth < math.inf  # infinite where the score is 0
    return "unstable" if origin is not None or exploded else "stable"


def check_threshold(threshold: float) -> None:
    """Raise InputError unless ``threshold`` is a number above 1."""
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not 1 < threshold < math.inf:
        raise InputError(f"threshold is {threshold!r}; give a number above 1, such as 1000")


def locate(
    records: Sequence[LayerRecord], threshold: float = THRESHOLD, nonfinite_only: bool = False
) -> Origin | None:
    """Return where instability starts, None if nowhere.

    Args:
        records: Of all layers, in order of execution.
        threshold: See the module's docstring.
        nonfinite_only: Look for values that are not finite, and for nothing else.
    """
    for record in records:
        if record.overflow:
            return _origin(record, Trouble.OVERFLOW)
        if record.growth > GROWTH and not nonfinite_only:
            return _origin(record, Trouble.GROWTH)
    for record in reversed(records):
        if record.propagated.nonfinite or record.received.nonfinite:
            return _origin(record, Trouble.NONFINITE)
        if nonfinite_only:
            continue
        if max(record.amplification or 0.0, record.peak or 0.0) > threshold:
            return _origin(record, Trouble.AMPLIFICATION)
        if record.excess > EXCESS:
            return _origin(record, Trouble.EXCESS)
    return None


def _origin(record: LayerRecord, trouble: Trouble) -> Origin:
    not_finite = trouble in (Trouble.OVERFLOW, Trouble.NONFINITE)
    neuron = record.first_nonfinite if not_finite else None
    if trouble is Trouble.GROWTH:
        factor: float | None = record.growth
    else:
        factor = max(record.amplification or 0.0, record.peak or 0.0) or None
    return Origin(
        record.name,
        record.kind,
        record.rule,
        record.stabilizer,
        trouble,
        "forward" if trouble in (Trouble.OVERFLOW, Trouble.GROWTH) else "backward",
        record.overflow if trouble is Trouble.OVERFLOW else record.propagated.nonfinite,
        factor,
        neuron if neuron is not None or record.nonfinite_input is not None else record.strongest,
        record.nonfinite_input if not_finite else None,
        None if record.denominators is None else record.denominators.sizes.quantile(0.5),
        record.layer,
        record.use,
    )
