"""A batch in smaller ones, one after the other, and their results as one."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.errors import InputError
from captum_lrp_stab.propagation import as_tuple


def pieces(size: int, inputs: Any, targets: Sequence[Any], extra: Any) -> Iterator[Any]:
    """Yield inputs, targets and further arguments of ``size`` samples at a time.

    Tensors and targets with one entry for each sample are divided, everything else is for all.

    Args:
        size: Samples in each piece but the last.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        targets: Each in one of Captum's target forms.
        extra: Further arguments of the model: one, or a tuple of them.

    Raises:
        InputError: ``size`` is no positive number, the inputs have different numbers of samples,
            or a target has an entry for each sample, and there is another number of these.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"internal_batch_size is {size!r}; give a number of samples >= 1")
    xs = as_tuple(inputs)
    counts = [len(x) if isinstance(x, Tensor) and x.dim() else 0 for x in xs]
    count = counts[0]
    if counts != [count] * len(xs):
        raise InputError(
            f"internal_batch_size divides the samples, but the inputs have {counts} of them; "
            "leave it out, or expand the inputs to one number"
        )
    for target in targets:
        several = isinstance(target, list) or (isinstance(target, Tensor) and target.numel() > 1)
        if several and len(target) != count:
            raise InputError(
                f"target does not fit: {len(target)} entries for {count} samples; give one for each"
            )

    def part(value: Any, start: int) -> Any:
        for_each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
        return value[start : start + size] if for_each else value

    def target_part(target: Any, start: int) -> Any:
        for_each = isinstance(target, list) and len(target) == count
        return target[start : start + size] if for_each else part(target, start)

    def parts(values: Any, start: int) -> Any:
        if isinstance(values, tuple):
            return tuple(part(value, start) for value in values)
        return part(values, start)

    for start in range(0, max(count, 1), size):  # an empty batch is one piece
        chosen = [target_part(target, start) for target in targets]
        yield parts(inputs, start), chosen, parts(extra, start)


def joined(results: Sequence[Any]) -> Any:
    """Return results of several pieces - tensors ``(n, ...)``, or tuples or lists - as one.

    Tensors whose samples are in another dimension, such as the state of an LSTM, are put together
    along the one in which they differ, and single numbers are summed.
    """
    first = results[0]
    if isinstance(first, Tensor):
        if not first.dim():
            return torch.stack(list(results)).sum(0)
        sizes = zip(*(t.shape[1:] for t in results), strict=True)
        differing = (dim for dim, size in enumerate(sizes, 1) if len(set(size)) > 1)
        return torch.cat(list(results), next(differing, 0))
    return type(first)(joined(items) for items in zip(*results, strict=True))
