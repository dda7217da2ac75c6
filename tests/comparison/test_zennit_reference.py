"""Every preset against zennit's composite of the same name, on whole networks of torchvision.

Where the two differ, the difference is named, and gone once it is removed from zennit.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
import zennit.composites
import zennit.layer
import zennit.rules
from torch import Tensor, nn
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

from captum_lrp_stab import compare, presets
from captum_lrp_stab.comparison.zennit_reference import ZennitReference
from tests.helpers.networks import build, gradient_x_input, narrow, resnet10
from tests.helpers.zennit_version import LEAVES_EPS, leaving_eps

LOW, HIGH, TARGET = -2.2, 2.7, 3
BOX = {"low": LOW, "high": HIGH}
PRESETS: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "EpsilonPlus": (presets.epsilon_plus, {}),
    "EpsilonPlusFlat": (presets.epsilon_plus_flat, {}),
    "EpsilonAlpha2Beta1": (presets.epsilon_alpha2_beta1, {}),
    "EpsilonAlpha2Beta1Flat": (presets.epsilon_alpha2_beta1_flat, {}),
    "EpsilonGammaBox": (presets.epsilon_gamma_box, BOX),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "narrow alexnet": (partial(narrow, torchvision.models.alexnet, 16), []),
    "resnet10": (resnet10, [ResNetCanonizer]),
    "alexnet": (torchvision.models.alexnet, []),
    "resnet18": (torchvision.models.resnet18, [ResNetCanonizer]),
    "vgg16": (torchvision.models.vgg16, []),
    "vgg11_bn": (torchvision.models.vgg11_bn, [VGGCanonizer]),
}
MERGED, SUMS = "eps of merged batch norms", "stabilizer at additions"
IF_LEFT = (MERGED,) if LEAVES_EPS else ()
EXPECTED: dict[str, tuple[str, ...]] = {
    "resnet10": (*IF_LEFT, SUMS),
    "resnet18": (*IF_LEFT, SUMS),
    "vgg11_bn": IF_LEFT,
}
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}


def cases() -> Iterator[Any]:
    """All of them; only a few on the smallest networks are not slow."""
    fast = {"narrow alexnet": ["EpsilonAlpha2Beta1", "EpsilonGammaBox"]}
    fast["resnet10"] = ["EpsilonPlusFlat"]
    for model in MODELS:
        for name in PRESETS:
            is_fast = name in fast.get(model, ())
            marks = [] if is_fast else [pytest.mark.slow]
            yield pytest.param(model, name, marks=marks, id=f"{model}-{name}")


def picture(dtype: torch.dtype, model: str = "resnet10") -> Tensor:
    side = 32 if model == "resnet10" else 64
    uniform = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return (LOW + (HIGH - LOW) * uniform).to(dtype)


def composite(name: str, model: str, **options: Any) -> Any:
    canonizers = [canonizer() for canonizer in MODELS[model][1]]
    parameters = PRESETS[name][1] | options
    return getattr(zennit.composites, name)(canonizers=canonizers, **parameters)


def without_differences(name: str, model: str) -> ZennitReference:
    """zennit with its merged batch norms exact and no stabilizer at additions."""
    bare = [(zennit.layer.Sum, zennit.rules.Norm(stabilizer=lambda z: z))]
    return ZennitReference(composite(name, model, layer_map=bare), exact_merge=True)


@pytest.mark.parametrize(("model_name", "name"), list(cases()))
def test_preset_is_zennits_composite(model_name: str, name: str) -> None:
    make, parameters = PRESETS[name]
    preset = make(**parameters)
    for dtype, bound in BOUNDS.items():
        expected = EXPECTED.get(model_name, ())
        if dtype == torch.float32 and not LEAVES_EPS:
            expected = ()  # what is left is below rounding
        model, x = build(MODELS[model_name][0], dtype=dtype), picture(dtype, model_name)
        done = compare(model, x, TARGET, preset, composite(name, model_name))
        assert tuple(d.name for d in done.differences) == expected
        assert done.verdict == ("known difference" if expected else "equal")
        if expected:  # the control: there is something to remove
            assert done.overall.relative_l2 > bound
            done = compare(model, x, TARGET, preset, without_differences(name, model_name))
            assert done.verdict in ("equal", "rounding")
        if dtype == torch.float64 or model_name not in EXPECTED:
            assert done.overall.relative_l2 <= bound


@pytest.mark.parametrize(("model_name", "name"), list(cases()))
def test_preset_translated_to_zennit(model_name: str, name: str) -> None:
    """The composite made of our rules leaves the additions alone."""
    make, parameters = PRESETS[name]
    model, x = build(MODELS[model_name][0]), picture(torch.float64, model_name)
    done = compare(model, x, TARGET, make(**parameters), "zennit")
    merges = MERGED in EXPECTED.get(model_name, ())
    assert [d.name for d in done.differences] == [MERGED] * merges
    exact = compare(model, x, TARGET, make(**parameters), ZennitReference(exact_merge=True))
    assert exact.verdict == "equal"
    assert exact.overall.relative_l2 <= 1e-10


@leaving_eps
def test_who_is_right_on_a_residual_network() -> None:
    """LRP-0 of a ReLU network is gradient x input: ours is, zennit's only without eps."""
    model, x = build(resnet10), picture(torch.float64)
    names = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    tiny = presets.ZeroRule, {"stabilizer": lambda z: torch.where(z == 0, 1e-30, z)}
    rules = [(names, *tiny)]
    oracle = gradient_x_input(model, x, TARGET)
    done = compare(model, x, TARGET, rules, "zennit")
    exact = compare(model, x, TARGET, rules, ZennitReference(exact_merge=True))
    assert [d.name for d in done.differences] == [MERGED]
    assert (done.first.name, done.first.direction) == ("conv1", "forward")

    def error(relevance: Tensor) -> float:
        return float((relevance - oracle).norm() / oracle.norm())

    assert error(done.relevances[0]) < 1e-12
    assert error(done.reference_relevances[0]) > 1e-5
    assert error(exact.reference_relevances[0]) < 1e-12
