"""Chains of layers, inputs and presets that the tests of ``compare`` share."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerLRP as StockLayerLRP
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from zennit import composites as zennit_composites

from captum_lrp_stab import LRP, LayerLRP, presets
from captum_lrp_stab.comparison import Comparison
from tests.helpers.layers import relative_error
from tests.helpers.random_maps import assert_numbers, drawn, expected_numbers

TARGET = 1


EXACT = 1e-12  # the usual tolerance in float64 is 2.3e-11


DIFFERENT = 1e-3


LOW, HIGH = -4.0, 4.0


IMAGES = drawn(2, 3, 8, 8, seed=3).clamp(LOW, HIGH)


VECTORS = drawn(3, 6).clamp(LOW, HIGH)


NAMED = ("zennit", "captum", "captum_driver", "float64", "modified_forward")


def pictured(inplace: bool = False) -> nn.Module:
    """A chain of modules that zennit and stock Captum serve."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(inplace),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4))


LINEAR = ["0", "2", "4"]  # of the dense chain


CHAINS = {"pictured": (pictured, IMAGES), "dense": (dense, VECTORS)}


PRESETS = {
    "zero": presets.zero(),
    "epsilon": presets.epsilon(0.01),
    "epsilon_plus": presets.epsilon_plus(),
    "epsilon_plus_flat": presets.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": presets.epsilon_alpha2_beta1_flat(),
    "epsilon_gamma_box": presets.epsilon_gamma_box(LOW, HIGH),
    "lrp_tutorial": presets.lrp_tutorial(LOW, HIGH),
}


OTHER = presets.epsilon(0.5)  # what no other preset agrees with


def assert_equal(comparison: Comparison, within: float = EXACT) -> None:
    assert comparison.verdict == "equal", comparison.explanation
    assert comparison.overall.relative_l2 <= within
    assert comparison.first is None and comparison.differences == ()


def assert_different(comparison: Comparison) -> None:
    assert comparison.verdict == "different", comparison.explanation
    assert comparison.overall.relative_l2 > DIFFERENT


def by_gradient(model: nn.Module, inputs: Any, target: Any, more: tuple = ()) -> Any:
    """Gradient x input: what LRP-0 is on ReLU networks."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    leaves = tuple(x.clone().requires_grad_() for x in several)
    output = model(*leaves, *(more if isinstance(more, tuple) else (more,)))
    gradients = torch.autograd.grad(selected(output, target).sum(), leaves)
    relevances = tuple((g * x).detach() for g, x in zip(gradients, leaves, strict=True))
    return relevances if isinstance(inputs, tuple) else relevances[0]


def selected(output: Tensor, target: Any) -> Tensor:
    """The score of each sample, for any form of a target."""
    forms = {int: lambda: [target] * len(output), tuple: lambda: [target] * len(output)}
    each = forms.get(type(target), lambda: target)()
    each = [int(t) if isinstance(t, Tensor) else t for t in each]
    return torch.stack([sample[index] for sample, index in zip(output, each, strict=True)])


@dataclass
class Side:
    """What one implementation gives: relevance of the input, of each output, and handed down."""

    relevance: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)
    handed: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)


def by_us(model: nn.Module, x: Tensor, rules: Any, names: Sequence[str], **options: Any) -> Side:
    outputs, handed = (
        LayerLRP(model, [*names], rules, **options).attribute(
            x, target=TARGET, attribute_to_layer_input=at_input
        )
        for at_input in (False, True)
    )
    relevance = LRP(model, rules, **options).attribute(x, target=TARGET)
    values = dict(zip(names, values_of(model, x, names), strict=True))
    named = (dict(zip(names, found, strict=True)) for found in (outputs, handed))
    return Side(relevance, *named, values)


@torch.no_grad()
def values_of(model: nn.Module, x: Tensor, names: Sequence[str]) -> list[Tensor]:
    """The output of each layer of a chain."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: found.update({name: out.clone()})
        )
        for name in names
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def by_zennit(model: nn.Sequential, x: Tensor, composite: Any) -> Side:
    """Step through a chain; the gradients of what lies between the modules are relevance."""
    between = [x.clone().requires_grad_()]
    with composite.context(model):
        for module in model:
            between.append(module(between[-1]))
        score = between[-1][:, TARGET]
        relevances = torch.autograd.grad(score, between, score.detach())
    names = [name for name, _ in model.named_children()]
    return Side(
        relevances[0],
        dict(zip(names, relevances[1:], strict=True)),
        dict(zip(names, relevances[:-1], strict=True)),
        dict(zip(names, [v.detach() for v in between[1:]], strict=True)),
    )


def zennit_map(**rules: Any) -> Any:
    """A composite of zennit, by name of layer; a digit is written as ``_0``."""
    chosen = [([name.removeprefix("_")], rule) for name, rule in rules.items()]
    return zennit_composites.NameMapComposite(chosen)


def assert_row(found: Any, ours: Tensor | None, theirs: Tensor | None, exact: float) -> None:
    """An agreement, or None where a side is not seen."""
    if ours is None or theirs is None:
        assert found is None
        return
    expected = expected_numbers([ours], [theirs])
    if relative_error(ours, theirs) <= EXACT:  # rounding: there is nothing more to be told
        assert found.relative_l2 <= 2 * EXACT
        expected = {name: expected[name] for name in ("total", "reference_total", "cosine")}
    assert_numbers(found, expected, exact)


def assert_rows(
    comparison: Comparison,
    ours: Side,
    theirs: Side,
    names: dict[str, str],
    handed: Collection[str] | None = None,
    exact: float = 1e-9,
) -> None:
    """Every row named, and the input, have the numbers of two runs by hand.

    ``names`` maps the name of a row to that of the layer by hand; ``handed`` are those of whose
    inputs something is known, all by default.
    """
    rows = {layer.name: layer for layer in comparison.layers}
    for row, name in names.items():
        assert_row(rows[row].output, ours.outputs[name], theirs.outputs.get(name), exact)
        if handed is None or name in handed:
            assert_row(rows[row].input, ours.handed[name], theirs.handed.get(name), exact)
        if name in theirs.values:
            pairs = zip(ours.values[name], theirs.values[name], strict=True)
            value = max(float((a - b).norm() / b.norm()) for a, b in pairs)
            assert rows[row].value == pytest.approx(value, rel=exact, abs=EXACT)
        else:
            assert rows[row].value is None
    assert_row(comparison.overall, ours.relevance, theirs.relevance, exact)


def same(names: Sequence[str]) -> dict[str, str]:
    return {name: name for name in names}


def by_captum(model: nn.Sequential, x: Tensor, rules: Callable[[], dict[str, Any]]) -> Side:
    """Stock ``LayerLRP``, with rules of its own."""

    def relevance(name: str, at_input: bool = False) -> Tensor:
        fresh = copy.deepcopy(model)
        for layer, module in fresh.named_children():
            if isinstance(module, nn.Flatten):
                module.rule = Moves()
            if layer in rules():
                module.rule = rules()[layer]
        explainer = StockLayerLRP(fresh, fresh.get_submodule(name))
        return explainer.attribute(x, TARGET, attribute_to_layer_input=at_input)

    outputs = {name: relevance(name) for name in rules()}
    # modules without a rule tell nothing: what is handed to the next one is their relevance
    outputs |= {
        before: relevance(after, at_input=True)
        for before, after in pairwise(name for name, _ in model.named_children())
        if before not in rules() and after in rules()
    }
    return Side(relevance("0", at_input=True), outputs)


class Moves(captum_rules.PropagationRule):
    """Plain autograd, for a module that only moves values, which stock Captum refuses."""

    def forward_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def forward_hook_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def forward_pre_hook_activations(self, module: nn.Module, inputs: Any) -> None: ...

    def _manipulate_weights(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...


class Functional(nn.Module):
    """The dense chain without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = dense()

    def forward(self, x: Tensor) -> Tensor:
        for index in LINEAR:
            layer = self.chain.get_submodule(index)
            x = F.linear(x, layer.weight, layer.bias)
            x = x if index == "4" else F.relu(x)
        return x


class Joined(nn.Module):
    """Two inputs, an argument without relevance, and an output of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.relu, self.head = nn.ReLU(), nn.Linear(12, 8)

    def forward(self, a: Tensor, b: Tensor, keep: Any = 1.0) -> Tensor:
        hidden = torch.cat([self.left(a), self.right(b) * keep], dim=1)
        return self.head(self.relu(hidden)).unflatten(1, (2, 4))


PAIR = drawn(3, 4, seed=1), drawn(3, 3, seed=2)
