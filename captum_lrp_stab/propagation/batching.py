"""A batch run in pieces, one after the other, and their results put together.

The result is the same only if the model treats each sample by itself, as a row of its output. A
network that pools over the batch (the slices of a scan, the nodes of a graph) gives other scores
for a piece of it, and other relevance, without any error: so some samples are run in other company
too, and a model for which that makes a difference is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab.errors import InputError
from captum_lrp_stab.propagation.checks import as_tuple
from captum_lrp_stab.propagation.targets import in_captums_form, score_of
from captum_lrp_stab.tensors.nested import mapped, tensors_in


class Piece(NamedTuple):
    """The results of a run of some samples."""

    result: Any  # tensors (n, ...), in tuples and lists
    score: Tensor  # of the first target
    layers: Sequence[str] = ()  # for each tensor the layer whose relevance it is, if it is one's


Run = Callable[[Any, Sequence[Any], Any], Piece]
"""From inputs, targets and further arguments to the results."""
Forward = Callable[[Any, Any], Any]
"""From inputs and further arguments to the model's output."""


class Batch:
    """Samples, with what belongs to each.

    Tensors and targets with one entry for each sample are divided, everything else is for all.

    Args:
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        targets: Each in one of Captum's target forms.
        extra: Further arguments of the model: one, or a tuple of them.

    Raises:
        InputError: The inputs have different numbers of samples, or a target has an entry for each
            sample, and there is another number of these.
    """

    def __init__(self, inputs: Any, targets: Sequence[Any], extra: Any) -> None:
        xs = as_tuple(inputs)
        counts = [len(x) if isinstance(x, Tensor) and x.dim() else 0 for x in xs]
        self.count = counts[0]
        if counts != [self.count] * len(xs):
            raise InputError(
                f"internal_batch_size divides the samples, but the inputs have {counts} of them; "
                "leave it out, or expand the inputs to one number"
            )
        targets = [in_captums_form(target) for target in targets]
        for target in targets:
            several = isinstance(target, list) or (
                isinstance(target, Tensor) and target.numel() > 1
            )
            if several and len(target) != self.count:
                raise InputError(
                    f"target does not fit: {len(target)} entries for {self.count} samples; give "
                    "one for each"
                )
        self._inputs, self._targets, self._extra = inputs, targets, extra

    def piece(self, start: int, stop: int) -> tuple[Any, list[Any], Any]:
        """Return inputs, targets and further arguments of some samples."""

        def part(value: Any) -> Any:
            for_each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.count
            return value[start:stop] if for_each else value

        def parts(values: Any) -> Any:
            return tuple(map(part, values)) if isinstance(values, tuple) else part(values)

        def target_part(target: Any) -> Any:
            for_each = isinstance(target, list) and len(target) == self.count
            return target[start:stop] if for_each else part(target)

        return parts(self._inputs), list(map(target_part, self._targets)), parts(self._extra)


def in_pieces(size: int, batch: Batch, run: Run, forward: Forward, tolerance: float) -> Any:
    """Return the results of all pieces of a batch as one.

    Args:
        size: Samples in each piece but the last.
        batch: What to divide.
        run: Called with each piece.
        forward: The model, without a graph.
        tolerance: How far scores of one sample may be apart, relative to the largest output.

    Raises:
        InputError: ``size`` is no positive number, or the model does not treat samples alone.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"internal_batch_size is {size!r}; give a number of samples >= 1")
    found: list[Piece] = []
    for start in range(0, max(batch.count, 1), size):  # an empty batch is one piece
        found.append(run(*batch.piece(start, start + size)))
        if size >= batch.count:
            return found[0].result
        _check_rows(len(found[-1].score), min(size, batch.count - start))
        if len(found) == 2:
            scores = torch.cat([piece.score for piece in found])
            _check_alone(batch, scores, size, forward, tolerance)
    few = size - 1 or 2
    dims = _dimensions(found[0], size, few, lambda: run(*batch.piece(0, few)), tolerance**0.5)
    return joined([piece.result for piece in found], dims)


def _check_rows(rows: int, samples: int) -> None:
    if rows != samples:
        raise InputError(
            f"internal_batch_size: of {samples} samples the model makes {rows} rows of output, so "
            "that a row is not a sample, and a piece of the batch would be another thing to "
            "explain than the whole; leave internal_batch_size out"
        )


def _check_alone(
    batch: Batch, scores: Tensor, size: int, forward: Forward, tolerance: float
) -> None:
    """Raise InputError if samples of the first two pieces have other scores when they are mixed."""
    start, stop = (1, size + 1) if size > 1 else (0, 2)
    inputs, targets, extra = batch.piece(start, stop)
    try:
        output = forward(inputs, extra)
    except Exception as error:
        raise InputError(
            f"internal_batch_size={size}: the model runs pieces of the batch, and fails on "
            f"samples {start} to {stop - 1} together ({type(error).__name__}: {error}), so that it "
            "does not treat samples alone; leave internal_batch_size out, or give arguments that "
            "are for all samples the shape (1, n)"
        ) from error
    if isinstance(output, Tensor):
        _check_rows(len(output) if output.dim() else 1, stop - start)
    mixed = score_of(output, targets[0])
    off = (mixed - scores[start:stop]).abs()
    largest = output.detach().abs().max()
    for index in (off > tolerance * largest).nonzero().flatten().tolist():
        raise InputError(
            f"internal_batch_size={size}: sample {start + index} has the score "
            f"{float(scores[start + index]):.6g} in its piece of the batch and "
            f"{float(mixed[index]):.6g} beside other samples: the model does not treat samples "
            "alone, so that a piece would be another thing to explain than the whole; leave "
            "internal_batch_size out"
        )


def _dimensions(
    piece: Piece, size: int, few: int, again: Callable[[], Piece], tolerance: float
) -> list[int]:
    """Return for each tensor of a piece the dimension of its samples.

    That is the first but for the values of layers, some of which have it elsewhere, as in
    ``(length, n, channels)``, or fold another into it, as windows of a picture.

    Args:
        piece: The first.
        size: How many samples it has.
        few: Another number.
        again: Runs the first so many samples.
        tolerance: How far values of the two runs may be apart, relative to the largest.

    Raises:
        InputError: A layer has none.
    """
    tensors = tensors_in((piece.result,), {})
    plain = (t.dim() and len(t) == size and size not in t.shape[1:] for t in tensors)
    if not piece.layers or all(plain):
        return [0] * len(tensors)
    dims = []
    others = tensors_in((again().result,), {})
    for name, t, other in zip(piece.layers, tensors, others, strict=True):
        pairs = enumerate(zip(t.shape, other.shape, strict=True))
        differing = [dim for dim, (a, b) in pairs if a != b] or [0]
        dims.append(differing[0])
        if t.dim() and not (len(differing) == 1 and _agree(t, other, differing[0], tolerance)):
            raise InputError(
                f"internal_batch_size: the relevance of layer '{name}' has shape "
                f"{tuple(t.shape)} for {size} samples and {tuple(other.shape)} for {few}: no "
                "dimension of it has the samples in their order, so that pieces cannot be put "
                "together; leave internal_batch_size out"
            )
    return dims


def _agree(t: Tensor, other: Tensor, dim: int, tolerance: float) -> bool:
    """Return whether two tensors are the same as far as the shorter one goes."""
    common = min(t.shape[dim], other.shape[dim])
    off = t.narrow(dim, 0, common) - other.narrow(dim, 0, common)
    return not bool((off.abs() > tolerance * t.abs().max()).any())


def joined(results: Sequence[Any], dims: Sequence[int]) -> Any:
    """Return results of several pieces - tensors, in tuples or lists - as one.

    Args:
        results: Of the pieces.
        dims: Of each tensor the dimension of its samples; single numbers are summed.
    """
    parts = zip(*(tensors_in((result,), {}) for result in results), strict=True)
    wholes = iter(
        torch.cat(some, dim) if some[0].dim() else torch.stack(some).sum(0)
        for some, dim in zip(parts, dims, strict=True)
    )
    return mapped(lambda t: next(wholes), results[0])
