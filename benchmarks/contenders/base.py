"""What every contender is to the benchmark."""

from abc import ABC, abstractmethod

from torch import Tensor

from benchmarks.models import Subject


class NotInstalledError(ImportError):
    """The library of a contender is not installed."""


class Explainer(ABC):
    """An implementation, ready to explain inputs of one model.

    Only :meth:`attribute` is timed. Everything a user does once for many inputs belongs into the
    constructor, and what an implementation needs anew before each call, although a user could have
    it for free, into :meth:`prepare`: where there is a choice, it is made in favour of the other.
    """

    changes_model = False
    """Whether it writes to the model, and so gets one of its own."""

    def __init__(self, subject: Subject, rules: str = "") -> None:
        self.model = subject.model
        self.rules = rules

    def prepare(self) -> None:  # noqa: B027  # most have nothing to prepare
        """Get ready for one call."""

    @abstractmethod
    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        """Return the relevance of the inputs, which sums to the score where nothing is absorbed.

        Args:
            inputs: Shape ``(N, 3, H, W)``.
            target: One class for each of them, shape ``(N,)``.
        """

    def known_difference(self) -> str:
        """Return what it means to do otherwise than this package on this model, empty if nothing.

        Its relevance is then neither right nor wrong by this package's.
        """
        return ""

    def finish(self) -> None:  # noqa: B027
        """Leave the model as it was before :meth:`prepare`."""
