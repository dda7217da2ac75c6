"""Tensors kept from call to call are those of the parameters as they are now."""

import copy
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile

from captum_lrp_stab import LRP, GammaRule, ZBoxRule, ZPlusRule, presets
from captum_lrp_stab.fast import coefficients, parameter_cache
from captum_lrp_stab.fast.parameter_cache import Derived
from captum_lrp_stab.rules.affine import Affine, Convolution
from tests.helpers.networks import build
from tests.helpers.short_ways import IMAGES, PLENTY, ROWS, Normed, ScaledBox, both, distance

LOW, HIGH = torch.full((1, 3, 1, 1), -5.0).double(), torch.full((1, 3, 1, 1), 5.0).double()
BOX = [(["conv"], ZBoxRule, {"low": LOW, "high": HIGH}), (["second"], ZPlusRule, {})]
GAMMA = [(["conv", "second", "head"], GammaRule, {"gamma": 0.5})]
SIZE = 8 * (4 * 3 * 9 + 4 + 2 * 3 * 1 * 1 + 4 * 6 * 6)  # with the sources


def changed(
    change: Callable[[Any], Any],
    rules: Any = BOX,
    make: Callable[[], nn.Module] = Normed,
    then: Tensor = IMAGES,
) -> float:
    """How far an explainer that has been used before a change is from a fresh one."""
    model = build(make)
    explainer = LRP(model, rules, cache_bytes=PLENTY)
    before = explainer.attribute(IMAGES, 1)
    assert (len(explainer._store) > 0) == (rules is BOX)
    change(model)
    then = then.to(next(model.parameters()).dtype)
    fresh = LRP(model, rules, cache_bytes=0).attribute(then, 1)
    if then.shape == before.shape:
        assert distance(fresh, before) > 1e-9  # the change is one
    return distance(explainer.attribute(then, 1), fresh)


def optimized(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(IMAGES).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def loaded(model: nn.Module, assign: bool = False) -> None:
    model.load_state_dict(build(Normed, seed=7).state_dict(), assign=assign)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "optimizer": optimized,
    "load": loaded,
    "assign": lambda m: loaded(m, assign=True),
    "copy_": lambda m: _without_grad(m.conv.weight.copy_, torch.rand_like(m.conv.weight)),
    "data mul": lambda m: m.conv.weight.data.mul_(2),
    "data element": lambda m: m.conv.weight.data[0, 0, 0].zero_(),
    "data assigned": lambda m: setattr(m.conv.weight, "data", m.conv.weight.data * 2),
    "parameter": lambda m: setattr(m.conv, "weight", nn.Parameter(m.conv.weight.detach() * 3)),
    "bias": lambda m: m.head.bias.data.add_(1),
    "norm weight": lambda m: m.norm.weight.data.mul_(-1),
    "running mean": lambda m: m.norm.running_mean.add_(1),
    "running variance": lambda m: m.norm.running_var.mul_(4),
    "statistics of a batch": lambda m: (m.train(), m(IMAGES), m.eval()),
    "another norm": lambda m: setattr(m, "norm", build(lambda: nn.BatchNorm2d(4), seed=5)),
    "single": lambda m: m.float(),
    "permuted, as a new tensor": lambda m: setattr(
        m.conv.weight, "data", m.conv.weight.data.flip(-1)
    ),
    "permuted by data": lambda m: m.conv.weight.data.copy_(m.conv.weight.data.flip(-1)),
    "the same sum": lambda m: m.conv.weight.data[:, 0].add_(1) is m.conv.weight.data[:, 1].sub_(1),
    "bias of the layer": lambda m: m.conv.bias.data.add_(0.1),
    "bias removed": lambda m: setattr(m.conv, "bias", None),
    "eps of the norm": lambda m: setattr(m.norm, "eps", 3.0),
    "dilation": lambda m: _set(m.conv, dilation=(2, 2), padding=(1, 1)),
    "padding": lambda m: _set(m.conv, padding=(1, 1)),
    "stride": lambda m: _set(m.conv, stride=(2, 2)),
}


def _without_grad(call: Callable[..., Any], *arguments: Any) -> None:
    with torch.no_grad():
        call(*arguments)


def _set(layer: nn.Module, **values: Any) -> None:
    for name, value in values.items():
        setattr(layer, name, value)


@pytest.mark.parametrize("rules", [BOX, GAMMA], ids=["box", "gamma"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name, rules) -> None:
    assert changed(CHANGES[name], rules) <= 1e-15


@pytest.mark.parametrize("name", ["data mul", "eps of the norm", "dilation"])
def test_finds_what_is_kept_too_long(name, monkeypatch) -> None:
    """The control: with nothing compared, or a key that says less."""
    if name in ("data mul", "eps of the norm"):
        monkeypatch.setattr(parameter_cache, "_are_equal", lambda some, others: True)
    else:
        monkeypatch.setattr(Affine, "geometry", ())
        monkeypatch.setattr(Affine, "offset", lambda *arguments: 0.0)
    assert changed(CHANGES[name]) > 1e-3


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3), pool, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)], ids=repr)
def test_images_of_another_size(pool) -> None:
    larger = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(2)).double()
    rules = [(["pool"], ZPlusRule, {"stabilizer": 0.25}), BOX[0]]
    model = build(lambda: Pooled(pool))
    explainer = LRP(model, rules, cache_bytes=PLENTY)
    for x in (IMAGES, larger, IMAGES):
        fresh = LRP(model, rules, cache_bytes=0).attribute(x, 1)
        assert torch.equal(explainer.attribute(x, 1), fresh)
        assert len(explainer._store) > 0


class Twice(nn.Module):
    """One layer with two uses of its weights, one without the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias).relu() + F.linear(x, self.weight)


def test_a_module_that_uses_its_weights_with_and_without_bias() -> None:
    model = build(lambda: nn.Sequential(Twice(), nn.Linear(6, 3)))
    rules = [(["0"], ZBoxRule, {"low": -5.0, "high": 5.0})]
    explainer = LRP(model, rules, cache_bytes=PLENTY)
    for _ in range(2):
        long = LRP(model, rules, optimize=False).attribute(ROWS, 1)
        assert distance(explainer.attribute(ROWS, 1), long) <= 1e-13


def test_a_users_rule_with_a_parameter() -> None:
    model = build(Normed)
    maps = [[(["conv"], ScaledBox, {"k": k})] for k in (1.0, 2.0)]
    (found,) = LRP(model, cache_bytes=PLENTY).attribute_many(IMAGES, [1], rules=maps)
    for relevance, rules in zip(found, maps, strict=True):
        assert distance(relevance, LRP(model, rules, optimize=False).attribute(IMAGES, 1)) <= 1e-13


def test_several_boxes() -> None:
    model = build(Normed)
    maps = [[(["conv"], ZBoxRule, {"low": -b, "high": b})] for b in (5.0, 6.0, 5.0)]
    explainer = LRP(model, cache_bytes=PLENTY)
    for _ in range(2):
        (found,) = explainer.attribute_many(IMAGES, [1], rules=maps)
        for relevance, rules in zip(found, maps, strict=True):
            long = LRP(model, rules, optimize=False).attribute(IMAGES, 1)
            assert distance(relevance, long) <= 1e-13


@pytest.mark.parametrize("rules", [BOX, GAMMA], ids=["box", "gamma"])
def test_a_model_made_in_inference_mode(rules) -> None:
    with torch.inference_mode():
        model = build(Normed)
    short, long = both(model, rules, IMAGES)
    assert distance(short, long) <= 1e-13


def test_box_bounds_changed_in_place() -> None:
    low = torch.full((1, 3, 1, 1), -5.0).double()
    model = build(Normed)
    rules = [(["conv"], ZBoxRule, {"low": low, "high": HIGH})]
    explainer = LRP(model, rules, cache_bytes=PLENTY)
    before = explainer.attribute(IMAGES, 1)
    low.sub_(2)
    after = explainer.attribute(IMAGES, 1)
    assert distance(after, before) > 1e-3
    assert torch.equal(after, LRP(model, rules, cache_bytes=0).attribute(IMAGES, 1))


def test_gamma_of_a_rule_changed() -> None:
    model = build(Normed)
    model.conv.rule = GammaRule(0.1)
    explainer = LRP(model, cache_bytes=PLENTY)
    before = explainer.attribute(IMAGES, 1)
    model.conv.rule.gamma = 5.0
    after = explainer.attribute(IMAGES, 1)
    assert distance(after, before) > 1e-3
    assert torch.equal(after, LRP(model, cache_bytes=0).attribute(IMAGES, 1))


# the store --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 100, SIZE - 1, SIZE, PLENTY])
def test_the_limit_is_kept(limit) -> None:
    model = build(Normed)
    explainer = LRP(model, BOX, cache_bytes=limit)
    for _ in range(2):
        explainer.attribute(IMAGES, 1)
        assert explainer._store.size <= limit
    assert explainer._store.size == (SIZE if limit >= SIZE else 0)


@pytest.mark.parametrize("given", [{"rules": GAMMA}, {"rules": BOX, "optimize": False}])
def test_nothing_is_kept(given) -> None:
    explainer = LRP(build(Normed), cache_bytes=PLENTY, **given)
    explainer.attribute(IMAGES, 1)
    assert len(explainer._store) == 0


def test_the_limit_is_a_quarter_of_the_parameters() -> None:
    model = build(Normed)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert LRP(model)._store.limit == size // 4


def test_it_is_made_once() -> None:
    made, parameter, store = [], torch.ones(3), Derived(100)

    def make() -> Tensor:
        made.append(1)
        return parameter * 2

    for _ in range(3):
        assert torch.equal(store.get("key", [parameter], make), parameter * 2)
    assert (len(made), len(store), store.size) == (1, 1, 24)  # and a copy of the parameter
    parameter.data.add_(1)
    assert torch.equal(store.get("key", [parameter], make), parameter * 2)
    assert (len(made), len(store), store.size) == (2, 1, 24)
    assert torch.equal(store.get("another", [parameter], make), parameter * 2)
    assert (len(made), len(store)) == (3, 2)


@pytest.mark.parametrize(
    "other",
    [
        [torch.ones(1, 3)],
        [torch.ones(3).double()],
        [torch.ones(3), torch.ones(3)],
        [torch.tensor([1.0, 1.0, torch.nan])],
        [],
    ],
    ids=["shape", "dtype", "more", "not a number", "none"],
)
def test_other_sources(other) -> None:
    made, store = [], Derived(1000)
    for sources in ([torch.ones(3)], other, other):
        assert store.get("key", sources, lambda: made.append(1) or torch.ones(2)).shape == (2,)
    assert len(made) == 2 + any(bool(t.isnan().any()) for t in other)


@pytest.mark.parametrize("more", [0, 1])
def test_what_is_made_of_many_elements_is_not_kept(more) -> None:
    store, many = Derived(PLENTY), torch.ones(parameter_cache._MANY + more)
    assert torch.equal(store.get("key", [many], lambda: many[:2] * 2), torch.full((2,), 2.0))
    assert len(store) == 1 - more


def test_what_is_kept_is_used(monkeypatch) -> None:
    made = []
    make = coefficients._without_repeats
    monkeypatch.setattr(coefficients, "_without_repeats", lambda t: made.append(1) or make(t))
    apply, applied = Convolution.apply, []
    monkeypatch.setattr(Convolution, "apply", lambda *a: applied.append(1) or apply(*a))
    explainer = LRP(build(Normed), BOX[:1], cache_bytes=PLENTY)
    for count in (2, 0, 0):  # a constant for each corner
        applied.clear()
        explainer.attribute(IMAGES, 1)
        assert len(applied) == count
    assert len(made) == 6


def test_model_and_parameters_stay_as_they_are() -> None:
    model = build(Normed)
    before = {k: (v.clone(), v._version, v.data_ptr()) for k, v in model.state_dict().items()}
    explainer = LRP(model, presets.epsilon_gamma_box(-5, 5), cache_bytes=PLENTY)
    for _ in range(2):
        explainer.attribute(IMAGES, 1)
    for key, value in model.state_dict().items():
        old, version, address = before[key]
        assert torch.equal(value, old) and value._version == version
        assert value.data_ptr() == address
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_of_an_explainer_is_one_of_its_own(way) -> None:
    explainer = LRP(build(Normed), BOX, cache_bytes=PLENTY)
    first = explainer.attribute(IMAGES, 1)
    other = way(explainer)
    assert torch.equal(other.attribute(IMAGES, 1), first)
    other.model.conv.weight.data.mul_(2)
    assert not torch.equal(other.attribute(IMAGES, 1), first)
    assert torch.equal(explainer.attribute(IMAGES, 1), first)


def test_several_threads_at_once() -> None:
    model = build(lambda: nn.Sequential(*[nn.Linear(6, 6) for _ in range(20)]))
    rules = [(["0"], ZBoxRule, {"low": -5.0, "high": 5.0})]
    rules += [([str(i) for i in range(1, 20)], GammaRule, {})]
    expected = LRP(model, rules).attribute(ROWS, 1)
    explainer, failed = LRP(model, rules, cache_bytes=PLENTY), []

    def run() -> None:
        try:
            for _ in range(3):
                assert torch.equal(explainer.attribute(ROWS, 1), expected)
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed and len(explainer._store) == 1


# memory, and the same result every time ---------------------------------------------------------


def test_nothing_of_a_pass_is_kept() -> None:
    model, kept = build(Normed), []
    for module in model.children():
        module.register_forward_hook(lambda m, i, o: kept.append(weakref.ref(o)))
    explainer = LRP(model, BOX, cache_bytes=PLENTY)
    relevance = explainer.attribute(IMAGES, 1)
    assert len(kept) == 8
    assert [ref() for ref in kept] == [None] * 8
    assert relevance.grad_fn is None and not vars(relevance)


def peak(run: Callable[[], Any]) -> int:
    """Most bytes that were held at once."""
    with profile(profile_memory=True) as found:
        run()
    held = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("rules", [BOX, GAMMA], ids=["box", "gamma"])
@pytest.mark.parametrize("inplace", [False, True])
def test_short_ways_need_no_more_memory(inplace, rules) -> None:
    model = build(lambda: Normed(inplace), dtype=torch.float32)
    x = torch.randn(4, 3, 48, 48)
    needed = []
    for optimize in (True, False):
        explainer = LRP(model, rules, optimize=optimize)
        explainer.attribute(x, 1)
        needed.append(peak(lambda e=explainer: e.attribute(x, 1)))
    assert 0 < needed[0] <= needed[1]


@pytest.mark.parametrize("preset", ["epsilon_gamma_box", "epsilon_alpha2_beta1", "epsilon"])
def test_the_same_bits_every_time(preset) -> None:
    model = build(Normed, dtype=torch.float32)
    rules = getattr(presets, preset)(*((-5, 5) if preset.endswith("box") else ()))
    explainer, x = LRP(model, rules), IMAGES.float()
    first = explainer.attribute(x, 1)
    assert torch.equal(explainer.attribute(x, 1), first)
    assert torch.equal(LRP(model, rules).attribute(x, 1), first)
    assert torch.equal(LRP(model, rules, cache_bytes=0).attribute(x, 1), first)
