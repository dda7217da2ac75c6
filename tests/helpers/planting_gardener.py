"""How an instability of a kind is planted at a layer, channel and position of a network."""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    EpsilonRule,
    FlatRule,
    GammaRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    stabilizers,
)
from captum_lrp_stab.comparison.recording import Uses
from captum_lrp_stab.propagation import forms
from tests.helpers.planted_networks import PAIRS, build, image, linear_layers, norm_of, predicted
from tests.helpers.planting_harm import ALONE, HARM, Planting, harm, watched

KINDS = (
    "exact zero",
    "near zero, positive",
    "near zero, negative",
    "cancellation",
    "overflow",
    "underflow",
    "sign flip",
)


class Underflowing:
    """What users write: an epsilon that is 0 in float16."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def __call__(self, z: Tensor) -> Tensor:
        return z + self.epsilon * torch.where(z < 0, -1.0, 1.0).to(z.dtype)

    def __repr__(self) -> str:
        return f"z + {self.epsilon} * sign(z)"


Rule = tuple[type, dict[str, Any]]


def mapped(model: nn.Module, rules: dict[str, Rule], other: Rule) -> list[Any]:
    """A name_map of every linear layer."""
    names = linear_layers(model)
    entries = [([name], *rule) for name, rule in rules.items()]
    return [*entries, ([name for name in names if name not in rules], *other)]


class Misfit(Exception):
    """The place that was drawn cannot be used."""


class Gardener:
    """Makes one attempt at a planting; ``plant`` returns it, or raises Misfit."""

    def __init__(self, kind: str, architecture: str, seed: int, chance: random.Random) -> None:
        self.kind, self.chance = kind, chance
        act: Any = nn.ReLU
        if kind == "sign flip":  # negative neurons must be alive
            act = chance.choice([partial(nn.LeakyReLU, 0.1), nn.ELU])
        elif architecture == "mobile":
            act = nn.Hardswish
        self.dtype = self._dtype()
        model = build(architecture, seed, act).to(self.dtype)
        x = image(torch.Generator().manual_seed(seed)).to(self.dtype)
        form = chance.choice(FORMS_OF.get(kind, forms.NAMES))
        half = self.dtype == torch.float16
        stabilizer = stabilizers.Signed(1e-3 if half else 1e-6) if form == "relevance" else None
        self.p = Planting(kind, architecture, model, x, predicted(model, x), None, form, stabilizer)
        epsilon = 1e-3 if half else chance.choice([1e-6, 1e-3])
        others: list[Rule] = [(EpsilonRule, {"epsilon": epsilon})]
        others += [(GammaRule, {"stabilizer": epsilon}), (ZPlusRule, {"stabilizer": epsilon})]
        self.other = chance.choice(others)
        self.layers = linear_layers(model)

    def _dtype(self) -> torch.dtype:
        if self.kind in ("overflow", "underflow"):
            return torch.float16
        return self.chance.choice([torch.float32, torch.float64])

    def plant(self) -> Planting:
        plots: dict[str, Callable[[], tuple[int, ...]]] = {
            "exact zero": self.exact_zero,
            "near zero, positive": self.near_zero,
            "near zero, negative": self.near_zero,
            "cancellation": self.cancellation,
            "overflow": self.chance.choice([self.overflow, self.overflow_below]),
            "underflow": self.underflow,
            "sign flip": self.sign_flip,
        }
        index = plots[self.kind]()
        self.p = replace(self.p, index=index)
        if not all(bool(t.isfinite().all()) for t in self.p.model.state_dict().values()):
            raise Misfit
        assert self.p.clean is not None
        found, before = harm(self.p, self.p.model), harm(self.p, self.p.clean)
        if found.place != index or found.second > ALONE or not found.growth > HARM:
            raise Misfit
        if not before.finite or before.growth > 1e-2 * found.growth or before.growth > 1e3:
            raise Misfit
        if found.finite and not math.isfinite(found.growth):  # lost on the way
            raise Misfit
        return self.p

    # what the kinds have in common

    def at(self, layer: str, rules: dict[str, Rule]) -> None:
        """Choose the layer, keeping the model as it is as the clean one."""
        clean = copy.deepcopy(self.p.model)
        self.p = replace(self.p, layer=layer, rules=mapped(clean, rules, self.other), clean=clean)

    def seen(self) -> tuple[Tensor, Tensor]:
        """The layer's input and pre-activation, as the form computes them."""
        p = self.p
        with watched(p, p.model) as seen:
            if p.form == "modified-forward":  # without a stabilizer the output is as it was
                bare = [
                    (names, ZeroRule, {}) if p.layer in names else (names, rule, parameters)
                    for names, rule, parameters in p.rules
                ]
                p.run(p.model, rules=bare)
            else:
                with torch.no_grad():
                    p.model(p.x)
        return seen[-2], seen[-1].nan_to_num(0.0)  # 0/0, where it is 0

    def reached(self) -> tuple[Tensor, Tensor]:
        """The output of the layer and its relevance."""
        probe = Uses(self.p.layer, False)
        self.p.run(self.p.model, (probe,))
        use = probe.reached[-1]
        assert use.values[0] is not None and use.relevance is not None
        return use.values[0], use.relevance[0]

    def pick(self, suits: Tensor) -> tuple[int, ...]:
        """A neuron at random of those that are marked."""
        places = suits.nonzero()
        if not len(places):
            raise Misfit
        return tuple(places[self.chance.randrange(len(places))].tolist())

    def aim(self, index: tuple[int, ...], value: float, s: Callable[[Tensor], Tensor]) -> None:
        """Shift the channel's bias until ``s(z)`` is a value at one place."""
        owner = self.p.norm(self.p.model) or self.p.module(self.p.model)
        bias = owner.bias.detach()
        k = index[self.p.channel]
        for _ in range(12):
            miss = value - float(s(self.seen()[1])[index])
            if abs(miss) <= abs(value) / 2:
                return
            bias[k] += miss
        if value == 0:
            raise Misfit  # else the nearest will do

    def one_hot(self) -> tuple[int, ...]:
        """Let a channel read one input alone, and subtract that input's value at one place.

        In any dtype and in any order of summation that is exactly 0 there.
        """
        p = self.p
        x, z = self.seen()
        where = self.pick(x != 0)
        found = list(readers(p.module(p.model), where, z))
        if not found:
            raise Misfit
        weight, place = self.chance.choice(found)
        k = self.reader(where)
        module, norm = p.module(p.model), p.norm(p.model)
        with torch.no_grad():
            module.weight[k] = 0
            module.weight[(k, *weight)] = 1
            if norm is not None:
                norm.running_mean[k], norm.running_var[k], norm.weight[k] = 0, 1, 1
            (norm or module).bias[k] = -x[where]
        return self.placed(place, k)

    def reader(self, where: tuple[int, ...]) -> int:
        """A channel of the layer that reads this input."""
        module = self.p.module(self.p.model)
        if getattr(module, "groups", 1) > 1:
            return where[1]
        if self.p.layer == self.layers[-1]:
            return self.p.target
        return self.chance.randrange(len(module.weight))

    def placed(self, place: tuple[int, ...], k: int) -> tuple[int, ...]:
        return (0, k, *place) if self.p.channel == 1 else (0, *place, k)

    # the kinds

    def exact_zero(self) -> tuple[int, ...]:
        rule = self.chance.choice([(ZeroRule, {}), (EpsilonRule, {"epsilon": 0.0})])
        if self.chance.random() < 0.3:
            self.other = rule
        self.at(self.chance.choice(self.layers), {})
        self.at(self.p.layer, {self.p.layer: rule})
        if self.chance.random() < 0.3:
            return self.one_hot()
        index = self.pick(torch.ones_like(self.seen()[1]))
        self.aim(index, 0.0, lambda z: z)
        return index

    def underflow(self) -> tuple[int, ...]:
        tiny = Underflowing(self.chance.choice([1e-8, 1e-9, 1e-12]))
        layer = self.chance.choice(self.layers)
        self.at(layer, {layer: (ZeroRule, {"stabilizer": tiny})})
        return self.one_hot()

    def near_zero(self) -> tuple[int, ...]:
        chain, above = self.chance.choice(PAIRS[self.p.architecture])
        layer, above = self.chance.choice(list(itertools.pairwise([*chain, above])))
        direct = self.chance.choice(
            [(FlatRule, {}), (WSquareRule, {}), (ZBoxRule, {"low": -100.0, "high": 100.0})]
        )
        bare = [(ZeroRule, {}), (EpsilonRule, {"epsilon": 1e-15})]
        bare.append((ZeroRule, {"stabilizer": stabilizers.Clip(1e-14)}))
        self.at(layer, {layer: self.chance.choice(bare), above: direct})
        R = self.reached()[1].abs()
        index = self.pick(R > R.mean() / 3)
        wide = self.dtype == torch.float64
        value = 10 ** self.chance.uniform(-12, -9) if wide else 10 ** self.chance.uniform(-9, -7)
        self.aim(index, value if self.kind.endswith("positive") else -value, lambda z: z)
        z = float(self.seen()[1][index])
        if z == 0 or (z > 0) != self.kind.endswith("positive"):
            raise Misfit
        return index

    def sign_flip(self) -> tuple[int, ...]:
        e = self.chance.choice([0.02, 0.1, 0.25])
        flips: list[Rule] = [(EpsilonRule, {"epsilon": e, "signed": False})]
        flips.append((ZeroRule, {"stabilizer": stabilizers.Additive(e)}))
        flips += [(ZeroRule, {"stabilizer": stabilizers.RootMeanSquare(e)})] * 2
        layer = self.chance.choice(self.layers)
        rule = self.chance.choice(flips)
        self.at(layer, {layer: rule})
        z, R = self.reached()
        c = (R / z).nan_to_num(0.0, 0.0, 0.0).abs()
        index = self.pick((z < 0) & (c > c.mean() / 2))
        made = rule[0](**rule[1])
        off = 10 ** (self.chance.uniform(-12, -8) if self.dtype == torch.float64 else -8)
        self.aim(index, self.chance.choice([-off, off]), lambda z: made.stabilize(z, lambda: z))
        return index

    def cancellation(self) -> tuple[int, ...]:
        chain, layer = self.chance.choice(PAIRS[self.p.architecture])
        model = self.p.model
        i, j = self.chance.sample(range(len(model.get_submodule(chain[0]).weight)), 2)
        for name in chain:
            _duplicate(model.get_submodule(name), norm_of(model, name), i, j)
        rule = self.chance.choice([(ZeroRule, {}), (EpsilonRule, {"epsilon": 1e-6})])
        self.at(layer, {layer: rule})
        self.sharpen(chain[-1], i, j)
        self.at(layer, {layer: rule})
        x, z = self.seen()
        only = x[:, i] if self.p.channel == 1 else x[..., i]
        place = torch.unravel_index(only.argmax(), only.shape)[1:]
        q = tuple(int(a) for a in place)
        pairs = [(0, c, *q) if self.p.channel == 1 else (0, *q, c) for c in (i, j)]
        options = [list(readers(self.p.module(model), where, z)) for where in pairs]
        (plus, at), (minus, _) = self.chance.choice(list(zip(*options, strict=True)))
        R = self.reached()[1].abs()
        alive = [c for c in range(len(self.p.module(model).weight)) if R[self.placed(at, c)] > 0]
        if not alive:
            raise Misfit
        k = self.chance.choice(alive)
        large = 10 ** (self.chance.uniform(6, 8) if self.dtype == torch.float64 else 5)
        with torch.no_grad():
            self.p.module(model).weight[(k, *plus)] += large
            self.p.module(model).weight[(k, *minus)] -= large
        return self.placed(at, k)

    def sharpen(self, layer: str, *channels: int) -> None:
        """Let channels be alive at one position only."""
        p = replace(self.p, layer=layer)
        with watched(p, p.model) as seen, torch.no_grad():
            p.model(p.x)
        owner = p.norm(p.model) or p.module(p.model)
        for k in channels:
            z = seen[1].select(p.channel, k).flatten()
            if len(z) == 1:
                continue
            first, second = z.topk(2).values.tolist()
            scale, middle = 12 / (first - second + 1e-12), (first + second) / 2
            with torch.no_grad():
                owner.weight[k] *= scale
                owner.bias[k] = (owner.bias[k] - middle) * scale

    def overflow(self) -> tuple[int, ...]:
        self.at(self.chance.choice(self.layers), {})
        self.at(self.p.layer, {self.p.layer: self.other})
        module, norm = (f(self.p.model) for f in (self.p.module, self.p.norm))
        k = self.reader((0, self.chance.randrange(len(module.weight))))
        z = self.seen()[1].select(self.p.channel, k).flatten().float()
        place = int(z.argmax())
        rest = torch.cat([z[:place], z[place + 1 :]]).abs()
        first, second = float(z[place]), float(rest.max()) if len(rest) else 0.0
        if not first > 1.1 * second:
            raise Misfit
        scale = 65504 / first * min(2.0, math.sqrt(first / max(second, 1e-3)))
        with torch.no_grad():
            if norm is None:
                module.weight[k] *= scale
                module.bias[k] *= scale
            else:  # in parts, for no parameter must overflow
                module.weight[k] *= 16
                norm.running_mean[k] *= 16
                norm.weight[k] *= scale / 16
                norm.bias[k] *= scale
        shape = list(self.seen()[1].shape)
        del shape[self.p.channel]
        at = torch.unravel_index(torch.tensor(place), shape)
        return self.placed(tuple(int(a) for a in at[1:]), k)

    def overflow_below(self) -> tuple[int, ...]:
        """A coefficient that is finite, times a weight."""
        # layers of one position, with a head that reads them
        dense = {"vgg": ("11", "13"), "mobile": ("hidden", "head"), "vit": ("hidden", "head")}
        if self.p.architecture not in dense:
            return self.overflow()
        layer, head = dense[self.p.architecture]
        self.at(layer, {layer: self.other})
        module, k = self.p.module(self.p.model), self.chance.randrange(16)
        j = self.pick(self.seen()[0] != 0)[-1]
        with torch.no_grad():
            self.p.model.get_submodule(head).weight[self.p.target, k] = 5e4
            module.weight[k, j] = self.chance.choice([-4.0, 4.0])
        self.aim((0, k), 0.01, lambda z: z)
        return 0, k


FORMS_OF = {
    "exact zero": ("relevance", "modified-forward"),  # in gradient form 0/0 is 0
    "underflow": ("relevance", "modified-forward"),
    "near zero, positive": ("gradient", "relevance"),  # a modified forward pass has no such rules
    "near zero, negative": ("gradient", "relevance"),
}


def readers(module: Any, where: tuple[int, ...], z: Tensor) -> Iterator[tuple[Any, Any]]:
    """The weights that read an input: their index in a channel, and the position read for."""
    if isinstance(module, nn.Linear):
        yield (where[-1],), where[1:-1]
        return
    channel = where[1] % (module.in_channels // module.groups)
    for tap in itertools.product(*map(range, module.kernel_size)):
        edges = [q + p - t for q, p, t in zip(where[2:], module.padding, tap, strict=True)]
        place = tuple(e // s for e, s in zip(edges, module.stride, strict=True))
        exact = all(e % s == 0 for e, s in zip(edges, module.stride, strict=True))
        if exact and all(0 <= a < n for a, n in zip(place, z.shape[2:], strict=True)):
            yield (channel, *tap), place


@torch.no_grad()
def _duplicate(module: Any, norm: Any, i: int, j: int) -> None:
    for tensor in (*module.parameters(), *(norm.parameters() if norm else ())):
        tensor[j] = tensor[i]
    if norm:
        norm.running_mean[j], norm.running_var[j] = norm.running_mean[i], norm.running_var[i]
