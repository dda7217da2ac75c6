"""Segments give the relevance that a pass without them gives, for another run of each."""

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, FlatRule, GammaRule, WSquareRule, presets
from captum_lrp_stab.errors import FallbackError, NonFiniteRelevanceError
from captum_lrp_stab.propagation import checkpoint_runs
from tests.helpers.networks import Doubled, TwoInputs, build
from tests.helpers.segmented import (
    Around,
    Part,
    X,
    assert_as_without,
    mlp,
    plain,
    relevance,
    runs_of,
)
from tests.helpers.several import Several, assert_as_one_by_one, forwards, state

IMAGE = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
BOX = {"low": 0.0, "high": 1.0}


def blocks() -> nn.Module:
    def block(inside: int, out: int) -> nn.Module:
        conv = nn.Conv2d(inside, out, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2))

    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    return nn.Sequential(block(3, 4), block(4, 4), block(4, 5), *ends)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(
    "rules",
    [
        presets.zero(),
        presets.epsilon(),
        presets.epsilon_plus(),
        presets.epsilon_alpha2_beta1(),
        presets.epsilon_gamma_box(**BOX),
    ],
    ids=["zero", "epsilon", "plus", "alpha-beta", "gamma-box"],
)
def test_presets(rules, optimize) -> None:
    assert_as_without(build(blocks), IMAGE, ("1", "2"), rules=rules, optimize=optimize)


def test_a_segment_that_reads_the_input() -> None:
    assert_as_without(build(blocks), IMAGE, ("0", "2"), rules=presets.epsilon_plus())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype) -> None:
    model = build(blocks, dtype=dtype)
    rules = presets.epsilon(epsilon=0.01)
    assert_as_without(model, IMAGE.to(dtype), ("0", "1", "2"), rules=rules)


def test_float16_runs_it_again_for_the_retry_at_a_smaller_scale() -> None:
    model = build(lambda: Around(mlp(), plain), dtype=torch.float16)
    with torch.no_grad():
        model.head.weight.fill_(100)  # times 2**10 that is infinite
    x, rules = X.half(), presets.epsilon(epsilon=0.01)
    expected, _ = runs_of(model.seg, lambda: relevance(model, x, (), rules))
    explainer = LRP(model, rules(model, x), checkpoint=["seg"])
    actual, ran = runs_of(model.seg, lambda: explainer.attribute(x, target=1))
    assert ran == 3
    assert expected.isfinite().all()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("segment", ["0", "1"])
def test_a_pool_chooses_between_equals_as_without(segment, monkeypatch) -> None:
    def make() -> nn.Module:
        first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        pooled = nn.Sequential(nn.MaxPool2d(3), nn.Conv2d(8, 4, 3))
        return nn.Sequential(first, pooled, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    model = build(make, dtype=torch.bfloat16)
    x = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    rules = presets.epsilon(epsilon=0.01)
    assert_as_without(model, x, (segment,), rules=rules)
    monkeypatch.setattr(
        checkpoint_runs, "_keep_order", lambda *_: None
    )  # the control: there are some
    same = torch.equal(relevance(model, x, (), rules), relevance(model, x, ("0",), rules))
    assert not same


@pytest.mark.parametrize("names", [("seg",), ("seg.0",), ("pre", "seg", "head"), ("seg.2",)])
def test_names(names) -> None:
    assert_as_without(build(lambda: Around(mlp(), plain)), checkpoint=names)


def test_one_inside_another_is_part_of_that() -> None:
    model = build(lambda: Around(nn.Sequential(mlp(), mlp()), plain))
    assert_as_without(model, checkpoint=("seg", "seg.1", "seg.0.0"))


def test_used_twice() -> None:
    def twice(model: Around, x: Tensor) -> Tensor:
        return model.head(model.seg(model.seg(model.pre(x)) + x))

    assert_as_without(build(lambda: Around(mlp(), twice)), runs=2)


def test_additional_arguments_and_several_inputs() -> None:
    a = X[:, :4]
    assert_as_without(build(TwoInputs), (a, X[:, 3:]), ("left", "head"), extra=2.0, target=(1, 2))
    model = build(
        lambda: Around(
            Part(lambda part, x, t: part.layer(x).relu() * t),
            lambda m, x, t: m.head(m.seg(m.pre(x), t)),
        )
    )
    assert_as_without(model, extra=torch.arange(6.0, dtype=X.dtype))


def test_weights_that_are_no_parameters_are_not_data() -> None:
    weight = torch.randn(6, 6, dtype=X.dtype, requires_grad=True)
    part = Part(lambda part, x, w: F.linear(part.layer(x).relu(), w))
    model = build(lambda: Around(part, lambda m, x: m.head(m.seg(m.pre(x), weight * 2))))
    assert_as_without(model, rules=presets.epsilon_plus())


@pytest.mark.parametrize("targets", [[1], [0, 1, 2]])
def test_attribute_many(targets) -> None:
    model = build(Several)
    x = IMAGE[:, :, :8, :8]
    options = {
        "own": presets.epsilon_plus(),
        "stabilizers": [1e-6, 0.1],
        "checkpoint": ["scale", "last"],
    }
    assert_as_one_by_one(model, x, targets, tolerance=1e-13, **options)
    name_map = presets.epsilon()(model, x)
    explainer = LRP(model, name_map, checkpoint=["scale", "last"], merge_batch_norm=False)
    single = [LRP(model, name_map, merge_batch_norm=False).attribute(x, t) for t in targets]
    found, ran = runs_of(model.scale, lambda: explainer.attribute_many(x, targets))
    assert ran == 1 + len(targets)
    for a, e in zip(found, single, strict=True):
        assert (a - e).abs().max() <= 1e-13 * e.abs().max()


def test_in_batches() -> None:
    model = build(lambda: Around(mlp(), plain))
    name_map = presets.epsilon()(model, X)
    expected = LRP(model, name_map).attribute(X, target=1)
    explainer = LRP(model, name_map, checkpoint=["seg"])
    call = lambda: explainer.attribute_many(X, [1], internal_batch_size=2)[0]  # noqa: E731
    assert forwards(model, call) == 2 + 1  # which looks whether samples are treated alone
    torch.testing.assert_close(call(), expected, rtol=1e-13, atol=0)


def test_strict_sees_inside() -> None:
    for inside in (lambda part, x: torch.erfc(part.layer(x)), lambda part, x: Doubled.apply(x) + x):
        model = build(lambda inside=inside: Around(Part(inside), plain))
        assert_as_without(model)
        for names in ((), ("seg",)):
            with pytest.raises(FallbackError, match=r"seg\.erfc_0|Doubled"):
                relevance(model, X, names, strict=True)


def test_strict_lets_pass_what_relevance_does_not_reach() -> None:
    part = Part(lambda part, x: torch.sigmoid(torch.erfc(part.layer(x))))
    model = build(lambda: Around(part, lambda m, x: m.head(m.seg(m.pre(x)) * m.pre(x))))
    assert_as_without(model, strict=True, runs=0)
    gated = Part(lambda part, x, gate: part.layer(x).tanh() * gate)
    model = build(
        lambda: Around(gated, lambda m, x: m.head(m.seg(m.pre(x), m.pre(x).exp().sigmoid())))
    )
    assert_as_without(model, strict=True, fallbacks="warn")


def test_nonfinite_names_a_layer_inside() -> None:
    model = build(lambda: Around(mlp(), plain))
    with torch.no_grad():
        model.seg[0].weight.zero_()
        model.seg[0].bias.fill_(1e200)
        model.seg[2].weight.fill_(1e200)
    for names in ((), ("seg",)):
        with pytest.raises(NonFiniteRelevanceError, match=r"seg\.2"):
            relevance(model, X, names, nonfinite="raise")


@pytest.mark.parametrize("with_kwargs", [True, False])
def test_hooks_of_the_user_that_change_values(with_kwargs) -> None:
    model = build(lambda: Around(mlp(), plain))
    before = relevance(model, X, ())

    def double(module: Any, args: Any, kwargs: Any = None) -> Any:
        args = (args[0].mul_(2),)
        return (args, kwargs) if with_kwargs else args

    def less(module: Any, args: Any, *rest: Any) -> Tensor:
        return rest[-1] - 0.5 * args[0]

    model.seg.register_forward_pre_hook(double, with_kwargs=with_kwargs)
    model.seg.register_forward_hook(less, with_kwargs=with_kwargs)
    model.seg[2].register_forward_hook(lambda *a: a[-1] * 3)
    assert_as_without(model)
    assert not torch.allclose(relevance(model, X, ("seg",)), before)


def test_rules_inside() -> None:
    model = build(lambda: Around(mlp(), plain))
    name_map = [(["seg.0", "seg.2"], GammaRule, {"gamma": 0.5}), (["head"], EpsilonRule, {})]
    assert_as_without(model, rules=name_map)
    model.seg[2].rule = GammaRule(0.5)
    found = [LRP(model, checkpoint=c).attribute(X, target=1) for c in ((), ["seg"])]
    assert torch.equal(*found)
    model.seg[2].rule = EpsilonRule(1.0)  # the control
    assert not torch.allclose(LRP(model, checkpoint=["seg"]).attribute(X, target=1), found[0])


@pytest.mark.parametrize("rule", [FlatRule, WSquareRule])
def test_a_rule_that_gives_relevance_in_front(rule) -> None:
    model = build(lambda: Around(mlp(), lambda m, x: m.head(m.pre(x) + m.seg(x))))
    assert_as_without(model, rules=[(["pre"], rule, {})])


def test_batch_norm_without_merging() -> None:
    model = build(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    )
    for name in "01":
        assert_as_without(model, X, (name,), merge_batch_norm=False)


def test_inner_values_are_let_go_of() -> None:
    alive = {}
    for names in ((), ("seg",)):
        kept: list[Any] = []
        model = build(lambda: Around(mlp(), plain))
        rules = presets.epsilon()(model, X)
        for module in model.seg[:3]:
            module.register_forward_hook(
                lambda *a, kept=kept: kept.append(weakref.ref(a[-1].untyped_storage()))
            )
        seen: list[int] = []
        model.head.register_forward_hook(
            lambda *_, kept=kept, seen=seen: seen.append(sum(r() is not None for r in kept))
        )
        LRP(model, rules, checkpoint=names).attribute(X, target=1)
        alive[names] = seen
    assert alive[("seg",)] == [0]
    assert alive[()] > [0]


def test_the_model_is_left_as_it_was() -> None:
    model = build(blocks)
    before = state(model)
    relevance(model, IMAGE, ("1", "2"))
    assert state(model) == before


def test_the_model_is_freed() -> None:
    gc.collect()
    gc.disable()
    try:
        model, x = build(blocks), IMAGE.clone()
        references = [weakref.ref(model), *map(weakref.ref, model.parameters()), weakref.ref(x)]
        relevance(model, x, ("1", "2"))
        assert all(r() is not None for r in references)
        del model, x
        assert all(r() is None for r in references)
    finally:
        gc.enable()


def test_two_threads_at_once() -> None:
    model = build(blocks)
    rules = presets.epsilon()(model, IMAGE)
    inputs = [IMAGE, IMAGE.flip(-1) + 0.1]
    expected = [LRP(model, rules).attribute(x, target=1) for x in inputs]
    found: list[list[Tensor]] = [[], []]
    together = threading.Barrier(2)

    def work(i: int) -> None:
        explainer = LRP(model, rules, checkpoint=["1", "2"])
        together.wait()
        found[i] += [explainer.attribute(inputs[i], target=1) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for several, e in zip(found, expected, strict=True):
        assert len(several) == 5
        assert all(torch.equal(a, e) for a in several)
