"""The score that a target selects from a model's output."""

from typing import Any

import numpy as np
import torch
from captum._utils.common import _select_targets
from torch import Tensor

from captum_lrp_stab.errors import ModelError, TargetError, TargetIndexError
from captum_lrp_stab.tensors.nested import mapped, without_graph


def in_captums_form(target: Any) -> Any:
    """Return a target with numpy's numbers and arrays as those of Python and PyTorch.

    Args:
        target: In one of Captum's forms: an int, a tuple of indices, a tensor, a list of ints or of
            tuples, None. In each of them an int may be one of numpy, and an array of one number,
            and in a list a tuple may be an array or a tensor; an array is what a tensor is.

    Raises:
        TargetError: An array has no whole numbers.
    """
    if isinstance(target, np.generic):
        return target.item()
    if isinstance(target, np.ndarray):
        if target.dtype.kind not in "iu":
            raise TargetError(f"target {target!r} has dtype {target.dtype}; give whole numbers")
        # a copy: it may be read only, or run backwards
        return torch.from_numpy(target.astype(np.int64))
    if isinstance(target, list):
        return [_of_a_sample(one) for one in target]
    if isinstance(target, tuple):
        return tuple(in_captums_form(one) for one in target)
    return target


def _of_a_sample(target: Any) -> Any:
    """Return the index, or the indices, that stand for one sample in a list."""
    if isinstance(target, (np.ndarray, Tensor)):
        target = target.tolist()
        return tuple(target) if isinstance(target, list) else target
    return in_captums_form(target)


def score_of(output: Any, target: Any) -> Tensor:
    """Return the target's output, shape ``(N,)``.

    Args:
        output: What the model returned.
        target: See :func:`in_captums_form`.

    Raises:
        ModelError: The output is no tensor of real numbers.
        TargetError: The target does not fit it.
    """
    if not isinstance(output, Tensor):
        raise ModelError(
            f"the model returns a {type(output).__name__}; LRP explains one output tensor: wrap "
            "the model so that it returns the tensor to explain"
        )
    shape = tuple(output.shape)
    if output.is_complex():
        raise ModelError(
            f"the model returns complex numbers ({output.dtype}), and a score is real; wrap the "
            "model so that it returns their abs(), real or imag"
        )
    plain = mapped(without_graph, in_captums_form(target))
    try:
        score: Tensor = _select_targets(output, plain)
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:
        kind = TargetIndexError if isinstance(error, (IndexError, RuntimeError)) else TargetError
        raise kind(
            f"target {target!r} does not fit the model's output of shape {shape}: {error}"
        ) from error
    if score.dim() == 0:
        return score.reshape(1)
    values = score.shape[1:].numel()
    if values != 1:
        raise TargetError(
            f"target {target!r} leaves {values} values per sample of the model's output of "
            f"shape {shape}; give a target that selects one"
        )
    return score.reshape(len(score))
