"""What is checked of an operation before it runs."""

from collections.abc import Callable

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.naming import Naming
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.tensors.graph import made


def check_call(
    call: TorchCall, naming: Naming, is_data: Callable[[Tensor], bool], transformed: bool
) -> None:
    """Raise ModelError for an operation that relevance cannot be followed through.

    Args:
        call: A call of the model's.
        naming: Which module is running.
        is_data: Whether a tensor depends on the model's input.
        transformed: Whether a transformation of torch.func is running.

    Raises:
        ModelError: The operation is random, runs under torch.func on what depends on the input, or
            writes without a graph.
    """
    if call.kind.random or call.kwargs.get("dropout_p"):
        check_randomness(call, naming)
    if transformed and any(map(is_data, map(_unwrapped, call.tensors))):
        raise ModelError(
            "the model uses torch.func (vmap, grad, ...), whose operations cannot be followed; "
            "write them out for the batch"
        )
    target = None if torch.is_grad_enabled() else call.target
    if target is not None and made(target):
        name, _ = naming.of(call)
        raise ModelError(
            f"operation '{name}' writes over a value of the model under torch.no_grad(), so "
            "that its backward pass is another function's; remove no_grad(), or write to a copy"
        )


def _unwrapped(t: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    return t


def check_randomness(call: TorchCall, naming: Naming) -> None:
    """Raise ModelError for an operation whose result is drawn, in train mode."""
    module = naming.module
    if call.kwargs.get("dropout_p") or module.training:
        name, _ = naming.of(call)
        raise ModelError(
            f"operation '{name}' of {type(module).__name__} is random, so that the relevance "
            "would be of a random network; call model.eval()"
        )
