"""The layers of a model without a forward pass: by the code of its forward, or by definition."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.dispatch import first_layers, treatments, without_rule
from captum_lrp_stab.dispatch.leaf_modules import leaf_modules
from captum_lrp_stab.operations.table import canonical_name, kind_of
from captum_lrp_stab.rules.rule_set import Layer, Layers, Positions

_NORMS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_KEEPING = (
    types.AvgPool
    + types.BatchNorm
    + types.Activation
    + types.Dropout
    + types.MaxPool
    + types.Padding
    + types.Reshape
    + (nn.Unfold, nn.Upsample)
    + _NORMS
)
"""Modules whose output still counts as values of the inputs (``first_layers``)."""


_MANY = 1000
"""The most questions about values: a loop that asks more often does not end."""


def by_definition(model: nn.Module, first_types: tuple[type[nn.Module], ...] = ()) -> Layers:
    """Return the rule-bearing leaf modules in order of definition.

    Args:
        model: The model.
        first_types: The first layer of these types counts as a first layer.
    """
    positions, layers, is_open = Positions(), [], True
    for name, module in leaf_modules(model):
        if isinstance(module, types.RuleBearing):
            is_first = is_open and isinstance(module, first_types)
            is_open = is_open and not is_first
            position = positions.of(name, type(module))
            layers.append(Layer(name, type(module), is_first, position))
    return Layers(layers, positions.count)


def is_in_sequence(model: nn.Module, name: str) -> bool:
    """Return whether a module lies in ``nn.Sequential`` alone, which runs as it is defined."""
    path = [model.get_submodule(name.rsplit(".", n)[0]) for n in range(1, name.count(".") + 1)]
    outer = [model, *path] if name else path
    return all(type(module).forward is nn.Sequential.forward for module in outer)


def as_traced(model: nn.Module) -> tuple[Layers, bool] | None:
    """Return the layers that are modules in the order in which they run; others come last.

    Args:
        model: The model. A copy of it is traced, for its forward may set attributes.

    Returns:
        None if the model's forward cannot be traced. With the layers, whether they are certain:
        not so where the forward asks for a value.
    """
    for answer in (False, True):  # an assertion takes no for an answer
        tracer = _Tracer(answer)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parameters = {id(p): p for p in model.parameters()}  # are shared, not copied
                traced = copy.deepcopy(model, parameters)
                graph = tracer.trace(traced)
            break
        except Exception:  # of any kind: the model's own code has run, on what are no tensors
            continue
    else:
        return None
    positions = Positions()
    layers = list(_layers_in(graph, dict(traced.named_modules()), positions))
    ran, depth = {layer.name for layer in layers}, positions.count
    rest = [layer for layer in by_definition(model).uses if layer.name not in ran]
    layers += [layer._replace(position=depth) for layer in rest]
    return Layers(layers, depth), not tracer.questions


class _Tracer(fx.Tracer):
    """A tracer that answers every question about a value in the same way."""

    def __init__(self, answer: bool) -> None:
        super().__init__()
        self.answer = answer
        self.questions = 0

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the answer."""
        self.questions += 1
        if self.questions > _MANY:
            raise RecursionError("it asks for ever")
        return self.answer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module's forward is left out: also that of subclasses of layers."""
        is_layer = isinstance(m, types.RuleBearing)
        return is_layer or super().is_leaf_module(m, module_qualified_name)


def _layers_in(
    graph: fx.Graph, modules: dict[str, nn.Module], positions: Positions
) -> Iterator[Layer]:
    """Yield each use of a layer; see ``first_layers`` for which are first."""
    data: dict[fx.Node, bool | None] = {}  # what depends on an input; whether it holds values of it
    for node in graph.nodes:
        if node.op == "placeholder" and not node.args:  # one with a default is an option
            data[node] = True
        read = [data[other] for other in node.all_input_nodes if other in data]
        func = _function_of(node)
        if not read or (func is not None and kind_of(func).fact):
            continue
        holds = any(read) and None not in read
        if node.op == "call_module":
            module, name = modules[node.target], str(node.target)
            for inner, leaf in leaf_modules(module):
                if isinstance(leaf, types.RuleBearing):
                    full, kind = f"{name}.{inner}" if inner else name, type(leaf)
                    yield Layer(full, kind, holds and leaf is module, positions.of(full, kind))
            without_layer = keeps = all(isinstance(m, _KEEPING) for _, m in leaf_modules(module))
        else:
            without_layer = func is not None and _has_rule(func)
            keeps = func is not None and first_layers.keeps(kind_of(func))
        data[node] = holds and keeps if without_layer and None not in read else None


def _function_of(node: fx.Node) -> Callable[..., Any] | None:
    """Return the torch function that a node calls, None if it calls another or none."""
    found: Any = None
    if node.op == "call_method":
        found = getattr(Tensor, str(node.target), None)
    elif node.op == "call_function" and node.target is getattr:
        found = getattr(getattr(Tensor, str(node.args[1]), None), "__get__", None)
    elif node.op == "call_function":
        found = node.target
    return found  # type: ignore[no-any-return]


def _has_rule(func: Callable[..., Any]) -> bool:
    """Return whether a function has an LRP rule, and is no linear layer or convolution."""
    kind = types.of_function(canonical_name(func)) or nn.Module
    known = treatments.of(func) not in (None, without_rule.unknown, without_rule.gate)
    return known and not issubclass(kind, types.Linear)
