"""Records of the layers of one pass, as plain numbers, and the ledger that sums them up.

A layer *receives* relevance at its output and *propagates* it to its inputs. The difference is
absorbed by biases, the stabilizer, the rule itself, an operation that is not linear, or rounding.
Sums run over the whole batch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

EDGES = (-46.0, 39.0)
"""Powers of ten that histograms run between: every float32 and its reciprocal."""


@dataclass(frozen=True)
class Flow:
    """Relevance at one end of a layer. Sum, L1 and largest are of what is finite."""

    total: float = 0.0
    l1: float = 0.0
    largest: float = 0.0  # absolute value
    nonfinite: int = 0

    def __add__(self, other: "Flow") -> "Flow":
        """Return the flow of both."""
        return Flow(
            self.total + other.total,
            self.l1 + other.l1,
            max(self.largest, other.largest),
            self.nonfinite + other.nonfinite,
        )


@dataclass(frozen=True)
class Shares:
    """Relevance that a layer absorbs, by what absorbs it."""

    bias: float = 0.0  # and other constants of the model: class tokens, position embeddings, ...
    stabilizer: float = 0.0
    rule: float = 0.0  # outputs without a contribution of the sign that the rule looks at
    operation: float = 0.0  # softmax by its gradient, clipping, detached values, fallbacks
    rounding: float = 0.0  # what is left

    @property
    def total(self) -> float:
        """All of it."""
        return self.bias + self.stabilizer + self.rule + self.operation + self.rounding

    def __add__(self, other: "Shares") -> "Shares":
        """Return the shares of both."""
        return Shares(*(getattr(self, n) + getattr(other, n) for n in SHARES))


SHARES = tuple(Shares.__dataclass_fields__)


@dataclass(frozen=True)
class Histogram:
    """How many positive numbers lie in each of equal bins of their power of ten."""

    counts: tuple[int, ...] = ()

    def __add__(self, other: "Histogram") -> "Histogram":
        """Return the histogram of both."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        return Histogram(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    def bins(self) -> Iterator[tuple[float, int]]:
        """Yield the power of ten in the middle of each bin that is not empty, and its count."""
        low, high = EDGES
        for i, count in enumerate(self.counts):
            if count:
                yield low + (i + 0.5) * (high - low) / len(self.counts), count

    def quantile(self, share: float) -> float | None:
        """Return the number below which a share of all lies, to half a bin; None if empty."""
        wanted, seen = share * sum(self.counts), 0
        for exponent, count in self.bins():
            seen += count
            if seen >= wanted:
                return float(10**exponent)
        return None


@dataclass(frozen=True)
class Denominators:
    """The denominators d of a layer, as far as it divides by them.

    Under a rule with several groups (gamma, alpha-beta) those of all groups. An output whose
    coefficient is 0, such as one that a ReLU switched off, takes no part in gradient form.
    """

    count: int
    smallest: float  # |d|
    zeros: int
    noise: int  # |d| below the unit roundoff times the sum of absolute contributions
    flipped: int  # s(d) has another sign than d
    shrunk: int  # |s(d)| is smaller than |d|
    sizes: Histogram = field(repr=False)  # of |d|
    cancellation: Histogram = field(repr=False)  # sums of absolute contributions over |d|

    def __add__(self, other: "Denominators") -> "Denominators":
        """Return the denominators of both."""
        return Denominators(
            self.count + other.count,
            min(self.smallest, other.smallest),
            self.zeros + other.zeros,
            self.noise + other.noise,
            self.flipped + other.flipped,
            self.shrunk + other.shrunk,
            self.sizes + other.sizes,
            self.cancellation + other.cancellation,
        )


@dataclass(frozen=True)
class Neuron:
    """One output of a layer: the values that make its relevance what it is.

    ``propagated`` is the L1 norm of what the neuron alone propagates: its relevance times the sum
    of its absolute contributions over the stabilized denominator. What is not known is None.
    """

    index: tuple[int, ...]
    z: float
    relevance: float
    denominator: float | None = None
    stabilized: float | None = None
    magnitude: float | None = None  # sum of absolute contributions
    propagated: float | None = None
    stabilized_in_float64: float | None = None  # of the same denominator


@dataclass(frozen=True)
class Input:
    """One input of a layer, with a relevance that is not finite."""

    index: tuple[int, ...]
    x: float
    relevance: float


@dataclass(frozen=True)
class LayerRecord:
    """One use of one layer, or of an operation without a rule."""

    name: str
    kind: str
    rule: str  # or in words what relevance does
    stabilizer: str
    batch_norm: str
    shape: tuple[int, ...]
    has_rule: bool
    received: Flow = Flow()
    propagated: Flow = Flow()
    shares: Shares = Shares()
    peak: float | None = (
        None  # the most that one neuron propagates, over all that the layer received
    )
    excess: float = 0.0  # what the stabilizer added, over all that the layer received
    growth: float = 1.0  # of the output itself, where the form rewrites it
    overflow: int = 0  # outputs that are not finite though the layer's input is
    denominators: Denominators | None = None
    strongest: Neuron | None = None  # propagates the most
    first_nonfinite: Neuron | None = None  # whose output or message is not finite
    nonfinite_input: Input | None = None  # the first input that gets NaN or Inf
    use: int = 0  # of several uses of the layer in one pass

    @property
    def layer(self) -> str:
        """The layer's name; ``name`` has the number of the use as well."""
        return self.name.removesuffix(f"[{self.use}]") if self.use else self.name

    @property
    def amplification(self) -> float | None:
        """The L1 norm propagated over that received; None where nothing was received."""
        return self.propagated.l1 / self.received.l1 if self.received.l1 else None


@dataclass(frozen=True)
class Ledger:
    """score = relevance of the inputs + what the layers absorb + what is unaccounted for.

    ``elsewhere`` is the rounding of sums where the network branches, and of operations without a
    record, which redistribute all they receive; if it is more, relevance was lost at one of these.
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
