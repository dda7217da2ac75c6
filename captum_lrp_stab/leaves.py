"""The leaf modules of a model, in the order that indices count them."""

from collections.abc import Iterator

from torch import nn

from captum_lrp_stab import types


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every leaf, in order of ``children()``, depth first.

    A rule-bearing module counts as a leaf even when it has children, such as a padding. A module
    that stands in several places counts once, under its first name.
    """
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        children = list(module.named_children())
        if not children or isinstance(module, types.RuleBearing):
            yield name, module
            return
        for child_name, child in children:
            yield from walk(f"{name}.{child_name}" if name else child_name, child)

    return walk("", model)
