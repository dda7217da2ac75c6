"""Selecting layers by index and type."""

from collections.abc import Callable
from typing import Any

from torch import nn

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch.leaf_modules import check_is_module, leaf_modules
from captum_lrp_stab.errors import LayerFilterError
from captum_lrp_stab.propagation.attribution import operations_of
from captum_lrp_stab.rules.rule_set import RuleSet

TypeTuple = tuple[type[nn.Module], ...]


def layers_of(
    model: nn.Module, inputs: Any = None, additional_forward_args: Any = None
) -> list[tuple[str, type[nn.Module]]]:
    """Return the name and type of each layer, in the order that indices count.

    Args:
        model: The model.
        inputs: None for the leaf modules in order of ``children()``, depth first. With inputs, the
            rows of :func:`captum_lrp_stab.plan` in order of execution, functional calls among
            them; ``F.conv2d`` is a ``Conv2d``, an operation that no layer stands for a ``Module``.
        additional_forward_args: Further arguments of the model.
    """
    if inputs is None:
        return [(name, type(module)) for name, module in leaf_modules(model)]
    modules = dict(model.named_modules())
    return [
        (
            operation.name,
            type(modules[operation.name])
            if operation.name in modules
            else operation.layer or types.of_function(operation.kind) or nn.Module,
        )
        for operation in operations_of(model, inputs, additional_forward_args, RuleSet({}))
    ]


class LayerFilter:
    """Select names of layers by index and type.

    Args:
        model: The model whose leaf modules are counted, in order of ``children()``, depth first. A
            layer that takes a rule counts as a leaf even when it has children, such as a padding.
        target_types: Types to select; None selects the layers that take a rule: linear layers,
            convolutions, average pools and batch norm (``types.RuleBearing``).
        inputs: With inputs, the index is that of :func:`captum_lrp_stab.plan`, in order of
            execution, and functional layers are counted too: ``F.conv2d`` as a ``Conv2d``.
        additional_forward_args: Further arguments of the model.

    Raises:
        LayerFilterError: ``target_types`` is no tuple of module types.
        ModelTypeError: The model is no module.

    Example:
        >>> from torch import nn
        >>> from captum_lrp_stab import types
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> layers = LayerFilter(model)
        >>> layers(lambda n: n >= 1)
        ['3']
        >>> layers(lambda n: True, target_types=types.Convolution)
        ['0']
    """

    def __init__(
        self,
        model: nn.Module,
        target_types: TypeTuple | None = None,
        inputs: Any = None,
        additional_forward_args: Any = None,
    ) -> None:
        check_is_module(model)
        self.model = model
        self._ran = None if inputs is None else layers_of(model, inputs, additional_forward_args)
        self.set_target_types(target_types)

    def __repr__(self) -> str:
        """Return the model's class and the types that are selected."""
        names = ", ".join(kind.__name__ for kind in self.target_types)
        return f"LayerFilter({type(self.model).__name__}, target_types=({names},))"

    def set_target_types(self, types_: TypeTuple | None) -> None:
        """Select modules of these types from now on.

        Args:
            types_: A tuple of module types; None for all layers that take a rule.

        Raises:
            LayerFilterError: It is no tuple of module types.
        """
        self.target_types = _checked_types(types_)

    def filter(
        self, cond: Callable[[int], bool], target_types: TypeTuple | None = None
    ) -> list[str]:
        """Return the names of the layers whose index meets ``cond``, of the target types.

        Args:
            cond: Called with the index of each layer.
            target_types: Types for this call only.

        Returns:
            Names in order of the index, each once.

        Raises:
            LayerFilterError: Nothing is selected, or ``target_types`` is no tuple of types.
        """
        wanted = self.target_types if target_types is None else _checked_types(target_types)
        layers = layers_of(self.model) if self._ran is None else self._ran
        in_range = [layer for index, layer in enumerate(layers) if cond(index)]
        names = list(dict.fromkeys(name for name, kind in in_range if issubclass(kind, wanted)))
        if not names:
            found = sorted({kind.__name__ for _, kind in in_range})
            counted = "leaf" if self._ran is None else "plan"
            raise LayerFilterError(
                f"the filter selects no layer of {type(self.model).__name__}: of its {counted} "
                f"indices 0 to {len(layers) - 1} it meets {len(in_range)}"
                + (f", of types {', '.join(found)}" if found else "")
                + f"; the target types are {', '.join(t.__name__ for t in wanted)}"
            )
        return names

    def __call__(
        self, cond: Callable[[int], bool], target_types: TypeTuple | None = None
    ) -> list[str]:
        """Return ``filter(cond, target_types)``."""
        return self.filter(cond, target_types)


def _checked_types(types_: TypeTuple | type[nn.Module] | None) -> TypeTuple:
    if types_ is None:
        return types.RuleBearing
    as_tuple = tuple(types_) if isinstance(types_, (tuple, list)) else (types_,)
    if not as_tuple or not all(isinstance(t, type) for t in as_tuple):
        raise LayerFilterError(
            f"target_types is {types_!r}; give a tuple of module types, such as (nn.Conv2d,) or "
            "captum_lrp_stab.types.Linear"
        )
    return as_tuple
