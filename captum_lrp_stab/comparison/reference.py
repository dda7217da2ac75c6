"""The base class of what a result can be compared with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lrp_stab.comparison.recording import Recording
from captum_lrp_stab.comparison.subject import Subject
from captum_lrp_stab.sites import Operation

TINY = 1e-30
"""An epsilon that changes nothing but 0/0."""


class Reference(ABC):
    """Another run of the same attribution."""

    name: str

    @abstractmethod
    def run(self, subject: Subject, operations: Sequence[Operation]) -> Recording:
        """Run it, leaving the subject's model and tensors as they are.

        Args:
            subject: What to attribute.
            operations: What this package's run gives each operation.
        """


def where_not_0(z: Tensor) -> Tensor:
    """Return denominators of LRP-0 under which 0/0 is 0: for layers to which no rule is given."""
    return torch.where(z == 0, torch.ones_like(z), z)
