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
from networks import build
from short_ways import IMAGES, PLENTY, ROWS, Normed, ScaledBox, distance
from torch import Tensor, nn
from torch.profiler import profile

from captum_lrp_stab import LRP, GammaRule, ZBoxRule, ZPlusRule, presets
from captum_lrp_stab.derived import Derived

LOW, HIGH = torch.full((1, 3, 1, 1), -5.0).double(), torch.full((1, 3, 1, 1), 5.0).double()
GAMMA = [(["conv", "second", "head"], GammaRule, {"gamma": 0.5})]
MAPS = {
    "gamma": GAMMA,
    "box": [(["conv"], ZBoxRule, {"low": LOW, "high": HIGH}), (["second"], ZPlusRule, {})],
}


def changed(
    change: Callable[[Any], Any],
    rules: Any = GAMMA,
    make: Callable[[], nn.Module] = Normed,
    x: Tensor = IMAGES,
    then: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> float:
    """How far an explainer that has been used before a change is from a fresh one."""
    model = build(make, dtype=dtype)
    explainer = LRP(model, rules, cache_bytes=PLENTY)
    before = explainer.attribute(x.to(dtype), 1)
    assert len(explainer._store) > 0
    change(model)
    then = x if then is None else then
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
}


def _without_grad(call: Callable[..., Any], *arguments: Any) -> None:
    with torch.no_grad():
        call(*arguments)


@pytest.mark.parametrize("rules", MAPS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_parameter_is_noticed(name, rules) -> None:
    if rules == "box" and name in ("bias", "single"):
        pytest.skip("nothing that is kept depends on it, or the box is double")
    assert distance_is_0(changed(CHANGES[name], MAPS[rules]))


def distance_is_0(found: float) -> bool:
    return found <= 1e-15


UNNOTICED: dict[str, Callable[[Any], Any]] = {
    "eps of the norm": lambda m: setattr(m.norm, "eps", 3.0),
    "permuted by data": lambda m: m.conv.weight.data.copy_(m.conv.weight.data.flip(-1)),
}


@pytest.mark.xfail(strict=True, reason="neither in the key nor in the sources; the sum is the same")
@pytest.mark.parametrize("name", UNNOTICED)
def test_a_change_that_no_parameter_shows(name) -> None:
    assert distance_is_0(changed(UNNOTICED[name]))


@pytest.mark.xfail(strict=True, reason="the sum of the weights is 0 before and after")
def test_weights_that_sum_to_0_scaled_by_data() -> None:
    def make() -> nn.Module:
        model, kernel = Normed(), torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        model.conv.weight.data.copy_(kernel.expand(4, 3, 3, 3))
        return model

    assert distance_is_0(changed(lambda m: m.conv.weight.data.mul_(2), make=make))


class Pooled(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 4, 3), pool, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.conv(x).relu()).mean((2, 3)))


@pytest.mark.xfail(strict=True, reason="weights of a pool depend on its input, and have no sources")
@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)], ids=repr)
def test_a_pool_of_images_of_another_size(pool) -> None:
    larger = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(2)).double()
    rules = [(["pool"], ZPlusRule, {"stabilizer": 0.25})]
    found = changed(lambda m: None, rules, lambda: Pooled(pool), then=larger)
    assert distance_is_0(found)


@pytest.mark.xfail(strict=True, raises=ValueError, reason="zip(strict=True) over the sources")
def test_a_bias_removed() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    changed(lambda m: setattr(m[0], "bias", None), [(["0"], GammaRule, {})], make, ROWS)


class Twice(nn.Module):
    """One layer with two uses of its weights, one without the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight, self.bias).relu(), self.weight)


@pytest.mark.xfail(strict=True, raises=ValueError, reason="zip(strict=True) over the sources")
def test_a_module_that_uses_its_weights_with_and_without_bias() -> None:
    model = build(lambda: nn.Sequential(Twice(), nn.Linear(6, 3)))
    LRP(model, [(["0"], GammaRule, {})], cache_bytes=PLENTY).attribute(ROWS, 1)


@pytest.mark.xfail(
    strict=True, reason="the key has the name of the rule's type, not its parameters"
)
def test_a_users_rule_with_a_parameter() -> None:
    model = build(Normed)
    maps = [[(["conv"], ScaledBox, {"k": k})] for k in (1.0, 2.0)]
    (found,) = LRP(model, cache_bytes=PLENTY).attribute_many(IMAGES, [1], rules=maps)
    for relevance, rules in zip(found, maps, strict=True):
        assert distance(relevance, LRP(model, rules, optimize=False).attribute(IMAGES, 1)) <= 1e-13


@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="inference tensors have no version")
def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = build(Normed)
    LRP(model, GAMMA).attribute(IMAGES, 1)


@pytest.mark.xfail(strict=True, reason="shift of the box: the key has no stride, nor its kin")
def test_a_changed_dilation() -> None:
    def change(model: Any) -> None:
        model.conv.dilation, model.conv.padding = (2, 2), (1, 1)

    assert distance_is_0(changed(change, MAPS["box"]))


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


@pytest.mark.parametrize("limit", [0, 100, 700, 2000, PLENTY])
def test_the_limit_is_kept(limit) -> None:
    model = build(Normed)
    explainer = LRP(model, GAMMA, cache_bytes=limit)
    for _ in range(2):
        explainer.attribute(IMAGES, 1)
        assert explainer._store.size <= limit
    assert (len(explainer._store) > 0) == (limit >= 700)


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
    assert len(made) == 1 and store.size == 12
    parameter.add_(1)
    assert torch.equal(store.get("key", [parameter], make), parameter * 2)
    store.clear()
    assert (len(made), len(store), store.size) == (2, 0, 0)


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
    explainer = LRP(build(Normed), GAMMA, cache_bytes=PLENTY)
    first = explainer.attribute(IMAGES, 1)
    other = way(explainer)
    assert torch.equal(other.attribute(IMAGES, 1), first)
    other.model.conv.weight.data.mul_(2)
    assert not torch.equal(other.attribute(IMAGES, 1), first)
    assert torch.equal(explainer.attribute(IMAGES, 1), first)


def test_several_threads_at_once() -> None:
    model = build(lambda: nn.Sequential(*[nn.Linear(6, 6) for _ in range(20)]))
    rules = [([str(i) for i in range(20)], GammaRule, {})]
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
    assert not failed


# memory, and the same result every time ---------------------------------------------------------


def test_nothing_of_a_pass_is_kept() -> None:
    model, kept = build(Normed), []
    for module in model.children():
        module.register_forward_hook(lambda m, i, o: kept.append(weakref.ref(o)))
    explainer = LRP(model, GAMMA, cache_bytes=PLENTY)
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


@pytest.mark.parametrize("inplace", [False, True])
def test_short_ways_need_no_more_memory(inplace) -> None:
    model = build(lambda: Normed(inplace), dtype=torch.float32)
    x = torch.randn(4, 3, 48, 48)
    needed = []
    for optimize in (True, False):
        explainer = LRP(model, GAMMA, optimize=optimize)
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
