"""The modules of a model: whether they can be followed, and which are its leaves."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.errors import ModelTypeError

_FLOATING = ("FXFloatFunctional", "FloatFunctional")
"""Modules for models that may be quantized, which compute with floats until they are."""


def check_is_module(model: Any) -> None:
    """Raise ModelTypeError if the model is no module."""
    if isinstance(model, nn.Module):
        return
    what, remedy = f"a {type(model).__name__}", "give a module"
    if isinstance(model, type):
        what, remedy = f"the class {model.__name__}", "give an instance of it"
    elif callable(model):
        remedy = "put it in a Module whose forward() calls it"
    raise ModelTypeError(f"LRP explains a torch.nn.Module; the model is {what}: {remedy}")


def check_kind(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return names and modules of a model whose operations can be followed.

    Raises:
        ModelTypeError: The model is no module, or is scripted, compiled or quantized.
    """
    check_is_module(model)
    modules = list(model.named_modules())  # once: it takes longer than the checks
    for name, module in modules:
        _check_module(name, module)
    return modules


def _check_module(name: str, module: nn.Module) -> None:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # heavy, and loaded by torch.compile only
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ModelTypeError(
            f"{place_of(name, module)} is a TorchScript module, whose operations cannot be seen; "
            "explain the model it was scripted or traced from"
        )
    if module._compiled_call_impl is not None or (
        dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    ):
        raise ModelTypeError(
            f"{place_of(name, module)} was made by torch.compile, which leaves no operations to "
            "see; explain the module it was made from (its _orig_mod)"
        )
    kind = type(module)
    if "quantized" in kind.__module__.split(".") and kind.__name__ not in _FLOATING:
        raise ModelTypeError(
            f"{place_of(name, module)} is quantized, and integer arithmetic has no relevance; "
            "explain the floating-point model"
        )


def place_of(name: str, module: object) -> str:
    """Return a module's name and type in words, of the model itself its type alone."""
    return f"'{name}' ({type(module).__name__})" if name else type(module).__name__


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every leaf, in order of ``children()``, depth first.

    A rule-bearing module counts as a leaf even when it has children, such as a padding. A module
    that stands in several places counts once, under its first name.

    Raises:
        ModelTypeError: The model is no module.
    """
    check_is_module(model)
    seen: set[nn.Module] = set()
    waiting = [("", model)]  # no recursion in a closure, a cycle that would keep the model alive
    while waiting:
        name, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        children = list(module.named_children())
        if not children or isinstance(module, types.RuleBearing):
            yield name, module
            continue
        inner = [(f"{name}.{child}" if name else child, m) for child, m in children]
        waiting.extend(reversed(inner))
