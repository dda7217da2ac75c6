"""The leaf modules of a model, in the order that indices count them."""

from collections.abc import Iterator

from torch import nn

import captum_lrp_stab.types as types


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every leaf, in order of ``children()``, depth first.

    A rule-bearing module counts as a leaf even when it has children, such as a padding. A module
    that stands in several places counts once, under its first name.
    """
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
