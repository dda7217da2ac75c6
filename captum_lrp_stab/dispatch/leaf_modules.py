"""The leaf modules of a model, in the order that indices count them."""

from collections.abc import Iterator
from typing import Any

from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.errors import ModelTypeError


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
