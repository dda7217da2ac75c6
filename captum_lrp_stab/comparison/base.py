"""The base class of references, which results are compared with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_lrp_stab.comparison.recording import Recording
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import InputError, LRPError, ReferenceFailedError
from captum_lrp_stab.task import Task

TINY = 1e-30
"""An epsilon that changes nothing but 0/0."""


class Reference(ABC):
    """Another implementation of LRP, or another way to run this one."""

    name: str
    #: Whether it runs in float64 whatever the task's dtype.
    is_exact = False
    #: Whether it can treat a layer and its batch norm as one layer.
    merges_batch_norm = True

    @abstractmethod
    def run(self, task: Task, operations: Sequence[Operation]) -> Recording:
        """Return the relevance of the inputs and, as far as it can be seen, of the layers.

        The task's model and tensors stay as they are.

        Args:
            task: What to attribute.
            operations: The operations of the model's forward pass, with their rules.
        """


def run_checked(reference: Reference, task: Task, operations: Sequence[Operation]) -> Recording:
    """Run a reference and check the shape and device of its relevance.

    Raises:
        ReferenceFailedError: It raised an error of its own.
        InputError: Its relevance has another shape or device than the inputs.
    """
    try:
        done = reference.run(task, operations)
    except LRPError:
        raise
    except Exception as error:
        raise ReferenceFailedError(
            f"the reference {reference.name} raised {type(error).__name__}: {error}"
        ) from error
    if len(done.relevances) != len(task.inputs):
        raise InputError(
            f"the reference {reference.name} gave {len(done.relevances)} tensors of relevance for "
            f"{len(task.inputs)} inputs"
        )
    for index, (r, x) in enumerate(zip(done.relevances, task.inputs, strict=True)):
        if r.shape != x.shape or r.device != x.device:
            raise InputError(
                f"the reference {reference.name} gave relevance of shape {tuple(r.shape)} on "
                f"{r.device} for input {index} of shape {tuple(x.shape)} on {x.device}"
            )
    return done


def where_not_0(z: Tensor) -> Tensor:
    """Return denominators z in which 0 is 1, so that LRP-0 takes 0/0 for 0."""
    return torch.where(z == 0, torch.ones_like(z), z)
