"""The harm that one layer does in a run, from sums over what comes out of it and its neurons."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.comparison.recording import Uses
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.propagation.attribution import propagate
from tests.helpers.planted_networks import norm_of

HARM = 3e4  # growth of the sum of |relevance| at the layer, at least
ALONE = 0.05  # what the second most harmful neuron has of the first one's harm, at most


@dataclass(frozen=True)
class Planting:
    """A run with an instability: where it is, and the same model without it.

    ``index`` is into the output of ``layer``, merged with its batch norm if it has one.
    """

    kind: str
    architecture: str
    model: nn.Module
    x: Tensor
    target: int
    rules: Any
    form: str
    stabilizer: Any  # of operations without a rule, see ``forms.form_of``
    layer: str = ""
    index: tuple[int, ...] = ()
    clean: nn.Module | None = None

    def run(self, model: nn.Module, probes: tuple[Uses, ...] = (), rules: Any = None) -> Any:
        rule_set = rule_set_of(model, self.rules if rules is None else rules)
        form = forms.form_of(self.form, self.stabilizer)
        options: Any = {"rule_set": rule_set, "probes": probes, "form": form}
        return propagate(model, self.x, self.target, **options)

    def module(self, model: nn.Module) -> Any:
        return model.get_submodule(self.layer)

    def norm(self, model: nn.Module) -> Any:
        return norm_of(model, self.layer)

    @property
    def channel(self) -> int:
        """The dimension of channels of the layer's output."""
        return 1 if isinstance(self.module(self.model), nn.Conv2d) else -1


@contextmanager
def watched(planting: Planting, model: nn.Module) -> Iterator[list[Tensor]]:
    """The layer's input and output in a run, in a list that is filled by it."""
    seen: list[Tensor] = []

    @torch.no_grad()  # where an interception leaves operations alone
    def keep(t: Tensor) -> None:
        seen.append(t.detach().clone())

    module, norm = planting.module(model), planting.norm(model)
    handles = [
        module.register_forward_pre_hook(lambda m, args: keep(args[0])),
        (norm or module).register_forward_hook(lambda m, args, out: keep(out)),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Exact(NamedTuple):
    """A layer in float64: its pre-activations, and their sums of absolute contributions."""

    z: Tensor
    magnitude: Tensor
    weights: Tensor  # the magnitudes of an input of ones


@torch.no_grad()
def exact(planting: Planting, model: nn.Module, x: Tensor) -> Exact:
    module, norm = (copy.deepcopy(f(model)) for f in (planting.module, planting.norm))
    norm = nn.Identity() if norm is None else norm.double()
    z = norm(module.double()(x.double()))
    module.weight.abs_()
    module.bias = None
    scale: Any = 1.0
    if not isinstance(norm, nn.Identity):
        scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs().reshape(1, -1, 1, 1)
    inputs = x.double().abs(), torch.ones_like(x, dtype=torch.float64)
    return Exact(z, *(module(t) * scale for t in inputs))


class Harm(NamedTuple):
    """What the layer made of what it was given, in sums of absolute values.

    ``growth`` is of relevance on the way down; if ``forward``, of the layer's output against its
    pre-activations. ``place`` is the neuron that has the largest part in it, ``second`` the next
    one's part as a share of that.
    """

    forward: bool
    given: float
    growth: float
    place: tuple[int, ...]
    second: float
    finite: bool  # whether the outcome of the run was


def harm(planting: Planting, model: nn.Module) -> Harm:
    """What the layer does in a run, by sums over what comes out of it and over each neuron."""
    probes = Uses(planting.layer, False), Uses(planting.layer, True)
    with watched(planting, model) as seen:
        done = planting.run(model, probes)
    x, out = seen[-2:]  # there may be a first pass that looks for a stretch
    layer = exact(planting, model, x)
    # with a nonfinite output nothing can be told from the way down
    part = out.double().abs().nan_to_num(math.inf, math.inf) / layer.z.abs().sum()
    if not bool(part.isfinite().all()) or float(part.sum()) > HARM:
        return Harm(True, float(layer.z.abs().sum()), *_largest(part, part.sum()), done.is_finite)
    above, below = (p.reached[-1].relevance[0].double().abs() for p in probes)
    given, handed = float(above.sum()), float(below.sum())
    if not given:
        return Harm(False, 0.0, 0.0, (), 0.0, done.is_finite)
    rule = rule_set_of(model, planting.rules).named[planting.layer]
    s = rule.stabilize(out, lambda: layer.magnitude.to(out.dtype)).double().abs()
    part = (above * layer.magnitude / s).nan_to_num(math.inf, math.inf) / given
    if not math.isfinite(handed) and bool(part.isfinite().all()):  # the message itself overflows
        part = (above * layer.weights / s).nan_to_num(math.inf, math.inf) / given
    growth = torch.tensor(handed / given).nan_to_num(math.inf, math.inf)
    return Harm(False, given, *_largest(part, growth), done.is_finite)


def _largest(part: Tensor, growth: Tensor) -> tuple[float, tuple[int, ...], float]:
    values, places = part.flatten().topk(2)
    place = tuple(int(i) for i in torch.unravel_index(places[0], part.shape))
    share = 1.0 if values[1].isinf() else float(values[1] / values[0])
    return float(growth), place, share
