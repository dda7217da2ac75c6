"""What is checked before and after a pass, with an error that says what to do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch import backward_hooks
from captum_lrp_stab.dispatch.leaf_modules import check_kind, place_of
from captum_lrp_stab.errors import InputError, InputTypeError, ModelError
from captum_lrp_stab.tensors.complex_values import real_dtype


def check_model(model: nn.Module) -> None:
    """Raise ModelError if the model cannot be explained as it is.

    Raises:
        ModelError: See :func:`check_kind`; or a parameter is sparse or nested; or dropout, random
            ReLU or batch norm is in train mode.
    """
    modules = check_kind(model)
    backward_hooks.check()
    training = []
    for name, module in modules:
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            if is_lazy(tensor):
                raise ModelError(
                    f"{place_of(name, module)} is a lazy module, which has no weights before it "
                    "has run; call the model once, with inputs of the shape that it is to have"
                )
            if tensor.layout != torch.strided or tensor.is_nested:
                kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
                place = f"{name}.{key}".removeprefix(".")
                raise ModelError(
                    f"parameter or buffer '{place}' is a {kind} tensor, whose weights no rule can "
                    "split; store it as a dense one, as from to_dense()"
                )
        if module.training and _is_random(module):
            training.append(place_of(name, module))
    if training:
        more = f" and {len(training) - 3} more" if len(training) > 3 else ""
        raise ModelError(
            f"{', '.join(training[:3])}{more} in train mode would make the relevance random or "
            "dependent on the batch; call model.eval()"
        )


def _is_random(module: nn.Module) -> bool:
    """Return whether a module in train mode draws numbers, or looks at the whole batch."""
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    random = isinstance(module, (*types.Dropout, *types.BatchNorm, nn.RReLU))
    return random and getattr(module, "p", 1.0) != 0


def check_inputs(inputs: Sequence[Tensor]) -> None:
    """Raise InputError if an input is no floating-point tensor or has NaN or Inf."""
    for index, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise InputTypeError(f"input {index} is a {type(x).__name__}; give a tensor")
        if x.is_nested or x.layout != torch.strided:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
            remedy = "torch.nested.to_padded_tensor(x, 0.0)" if x.is_nested else "x.to_dense()"
            raise InputError(
                f"input {index} is a {kind} tensor, for which relevance is not defined; give a "
                f"dense one, as from {remedy}"
            )
        if not torch.is_floating_point(x):
            raise InputTypeError(
                f"input {index} has dtype {x.dtype}; relevance needs a floating-point input: "
                + _instead_of(index, inputs)
            )
        finite = torch.isfinite(x)
        if not bool(finite.all()):
            first = tuple(int(i) for i in (~finite).nonzero()[0])
            raise InputError(
                f"input {index} has {int((~finite).sum())} non-finite values, the first "
                f"({x[first].item()}) at {first}; clean the input first"
            )


def _instead_of(index: int, inputs: Sequence[Any]) -> str:
    """Return the advice for an input that is not floating point."""
    dtype = inputs[index].dtype
    can_have = [isinstance(x, Tensor) and x.is_floating_point() for x in inputs]
    if any(can_have):
        wrapped = "; wrap the model so that it comes last" if any(can_have[index:]) else ""
        return (
            "give what the model reads beside that, such as ids and masks, as "
            f"additional_forward_args, which follow the inputs and get no relevance{wrapped}"
        )
    if dtype == torch.uint8:
        return "convert a picture as the model's preprocessing does, such as x.float() / 255"
    if dtype.is_complex:
        return "give torch.view_as_real(x) to a model that begins with torch.view_as_complex"
    if dtype == torch.bool:
        return "convert it with x.float()"
    return (
        "of token ids, give the embeddings (inputs_embeds, or the part of the model behind the "
        "embedding); convert numbers with x.float()"
    )


def check_parameters(model: nn.Module) -> None:
    """Raise ModelError naming the first parameter or buffer with NaN or Inf, if there is one."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        numbers = tensor.is_floating_point() or tensor.is_complex()
        if numbers and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"parameter or buffer '{name}' has {bad} non-finite values; repair or reload the "
                "weights"
            )


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """Return the inputs of a model as a tuple.

    Raises:
        InputTypeError: They are neither a tensor nor a tuple of some.
    """
    if isinstance(inputs, Tensor):
        return (inputs,)
    if not isinstance(inputs, tuple) or not inputs:
        raise InputTypeError(
            f"inputs is a {type(inputs).__name__}; give a tensor or a tuple of tensors"
        )
    return inputs


def coarsest_dtype(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.dtype:
    """Return the coarsest dtype of the inputs, the floating parameters and an active autocast."""
    parameters = (p for p in model.parameters() if p.is_floating_point() or p.is_complex())
    dtypes = {real_dtype(t) for t in (*inputs, *parameters)}
    device = inputs[0].device.type
    if torch.is_autocast_enabled(device) and dtypes != {torch.float64}:  # which it leaves alone
        dtypes.add(torch.get_autocast_dtype(device))
    return max(dtypes, key=lambda d: torch.finfo(d).eps)
