"""The books of one attribution: where the score has gone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from captum_lrp_stab.diagnosis.records import Flow, LayerRecord, Shares


@dataclass(frozen=True)
class Ledger:
    """score = relevance of the inputs + what the layers absorb + what is unaccounted for.

    ``elsewhere`` is what rounding makes of sums where the network branches, and of the operations
    that hand down what they receive value by value; if it is more than rounding, relevance was lost
    at a place that has no record.
    """

    score: float
    inputs: Flow
    shares: Shares
    elsewhere: float

    @property
    def growth(self) -> float:
        """The absolute sum of the relevance of the inputs over that of the score."""
        if self.score:
            return self.inputs.l1 / abs(self.score)
        return math.inf if self.inputs.l1 else 1.0

    @property
    def closing(self) -> float | None:
        """What is unaccounted for over the score, or over the relevance if that is larger."""
        scale = max(abs(self.score), self.inputs.l1)
        return abs(self.elsewhere) / scale if scale else None


def ledger_of(score: float, inputs: Flow, records: Sequence[LayerRecord]) -> Ledger:
    """Return the ledger of a pass.

    Args:
        score: The sum over the batch.
        inputs: The relevance of all inputs.
        records: Of all layers.
    """
    shares = Shares()
    for record in records:
        shares += record.shares
    return Ledger(score, inputs, shares, score - inputs.total - shares.total)
