"""What is checked of an operation before it runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.naming import Places
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import calls, table
from captum_lrp_stab.tensors import graph
from captum_lrp_stab.tensors.nested import tensors_in


def is_transformed() -> bool:
    """Return whether a transformation of torch.func is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def check_call(
    func: Callable[..., Any],
    args: Any,
    kwargs: Any,
    places: Places,
    is_data: Callable[[Tensor], bool],
) -> None:
    """Raise ModelError for an operation that relevance cannot be followed through.

    Args:
        func: A torch function that the model calls.
        args: Its arguments.
        kwargs: Its arguments by name.
        places: Where the pass is.
        is_data: Whether a tensor depends on the model's input.

    Raises:
        ModelError: The operation is random, runs under torch.func on what depends on the input, or
            writes without a graph.
    """
    check_randomness(func, kwargs, places)
    if is_transformed() and any(map(is_data, map(_unwrapped, tensors_in(args, kwargs)))):
        raise ModelError(
            "the model uses torch.func (vmap, grad, ...), whose operations cannot be followed; "
            "write them out for the batch"
        )
    target = None if torch.is_grad_enabled() else calls.written(func, args, kwargs)
    if target is not None and graph.made(target):
        name, _ = places.of(func)
        raise ModelError(
            f"operation '{name}' writes over a value of the model under torch.no_grad(), so "
            "that its backward pass is another function's; remove no_grad(), or write to a copy"
        )


def _unwrapped(t: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def check_randomness(func: Callable[..., Any], kwargs: Any, places: Places) -> None:
    """Raise ModelError for an operation whose result is drawn, in train mode."""
    drops = bool(kwargs.get("dropout_p"))
    if not drops and table.canonical_name(func) not in table.RANDOM:
        return
    module = places.module
    if drops or module.training:
        name, _ = places.of(func)
        raise ModelError(
            f"operation '{name}' of {type(module).__name__} is random, so that the relevance "
            "would be of a random network; call model.eval()"
        )
