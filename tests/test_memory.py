"""Nothing of a pass stays in memory: after three calls as many bytes of tensors live as after one.

Of models that write in place above all: a tensor that is written over belongs to the nodes that
have read it, and where one of these keeps it, the two keep each other, out of reach of Python's
garbage collector.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model

from captum_lrp_stab import LRP, LayerLRP, compare, diagnose, plan, presets
from captum_lrp_stab.diagnosis import advise, sweep
from captum_lrp_stab.errors import LRPError, ModelError
from tests.helpers.every_kind import NAMES, REFUSED, network
from tests.helpers.live_tensors import Live

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::captum_lrp_stab.errors.LRPWarning"),
]
Way = Callable[[nn.Module, Any, Any], object]


@pytest.fixture(autouse=True)
def _quick_collector() -> Iterator[None]:
    """Let the garbage collector look at what a test makes, and not at all of PyTorch each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def lrp(rules: object = None, **options: Any) -> Way:
    return lambda m, x, t: LRP(m, rules, **options).attribute(x, target=t)


def layers(m: nn.Module, x: Any, t: Any) -> object:
    names = [n for n, module in m.named_modules() if isinstance(module, (nn.Linear, nn.ReLU6))]
    return LayerLRP(m, names).attribute(x, target=t)


QUICK: dict[str, Way] = {
    "attribute": lrp(),
    "plan": lambda m, x, t: plan(m, x),
    "flat": lrp(presets.epsilon_plus_flat()),
    "layers": layers,
    "diagnose": diagnose,
    "relevance form": lambda m, x, t: diagnose(m, x, t, form="relevance"),
    "modified forward": lambda m, x, t: diagnose(m, x, t, form="modified-forward"),
}
MORE: dict[str, Way] = {
    "box": lrp(presets.epsilon_gamma_box(-3.0, 3.0)),
    "by formula": lrp(presets.epsilon_alpha2_beta1(), optimize=False),
    "cp": lrp(attention="cp", merge_batch_norm=False),
    "many": lambda m, x, t: LRP(m).attribute_many(x, [t, t], stabilizers=[1e-6, 1e-3]),
    "many rules": lambda m, x, t: LRP(m).attribute_many(
        x, [t], rules=[presets.epsilon_plus_flat(), presets.epsilon()]
    ),
    "delta": lambda m, x, t: LRP(m).attribute(x, target=t, return_convergence_delta=True),
    "layers' inputs": lambda m, x, t: LayerLRP(m, None).attribute(
        x, target=t, attribute_to_layer_input=True
    ),
    "stock": lambda m, x, t: diagnose(m, x, t, form="stock"),
    "float64": lambda m, x, t: compare(m, x, t, reference="float64"),
    "zennit": lambda m, x, t: compare(m, x, t, reference="zennit"),
    "captum": lambda m, x, t: compare(m, x, t, reference="captum"),
    "rewritten": lambda m, x, t: compare(m, x, t, reference="modified_forward"),
    "sweep": lambda m, x, t: sweep(m, x, t, values=[1e-6, 1e-3]),
    "advise": advise,
}
WITH_ALL = ("in place: activations", "ReLU6 in place", "residual in place", "transformer")


def growth(way: Way, model: nn.Module, inputs: Any, target: Any) -> tuple[int, int]:
    """The bytes of live tensors after one call, and after three."""

    def call() -> None:
        try:
            way(model, inputs, target)
        except LRPError:  # refused, as a form without a rule is; that must leave nothing either
            pass

    with Live() as live:
        call()
        after_one = live.bytes
        call()
        call()
        return after_one, live.bytes


def assert_nothing_stays(way: Way, *arguments: Any) -> None:
    after_one, after_three = growth(way, *arguments)
    assert after_three == after_one


@pytest.mark.parametrize("name", [*NAMES, *(f"refused: {name}" for name in REFUSED)])
def test_nothing_stays(name) -> None:
    for way in QUICK.values():
        assert_nothing_stays(way, *network(name, torch.float32))


@pytest.mark.parametrize("name", WITH_ALL)
@pytest.mark.parametrize("way", [pytest.param(w, marks=pytest.mark.slow) for w in MORE])
def test_nothing_stays_of_other_ways(way, name) -> None:
    assert_nothing_stays(MORE[way], *network(name, torch.float32))


@pytest.mark.parametrize("name", ["plain", "in place: activations", "residual in place"])
def test_nothing_stays_in_half_precision(name) -> None:
    for way in ("attribute", "flat", "layers", "relevance form"):
        assert_nothing_stays(QUICK[way], *network(name, torch.float16))


LARGE = ["mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet18", "convnext_tiny"]
SOME = {**QUICK, "float64": MORE["float64"], "zennit": MORE["zennit"]}


@pytest.mark.parametrize(
    "way", [w if w == "attribute" else pytest.param(w, marks=pytest.mark.slow) for w in SOME]
)
@pytest.mark.parametrize("name", LARGE)
def test_nothing_stays_of_torchvision_models(name, way) -> None:
    model, x = get_model(name, weights=None).eval(), torch.randn(1, 3, 64, 64)
    assert_nothing_stays(SOME[way], model, x, 7)


class Breaks(nn.Module):
    """An exception of the model's own, when all has been computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        F.silu(self.norm(self.conv(x)), inplace=True)
        raise ModelError("of the model's own")


@pytest.mark.parametrize("way", QUICK)
def test_nothing_stays_after_an_exception(way) -> None:
    assert_nothing_stays(QUICK[way], Breaks().eval(), torch.randn(2, 3, 8, 8), 1)


@pytest.mark.parametrize("way", ["attribute", "flat"])
def test_nothing_stays_where_a_segment_runs_again(way) -> None:
    model, x, target = network("residual in place", torch.float32)

    def call(m: nn.Module, x: Any, t: Any) -> None:
        LRP(m, presets.epsilon_plus(), checkpoint=["shared"]).attribute(x, target=t)

    assert_nothing_stays(call, model, x, target)


def test_what_does_stay_is_seen() -> None:
    """The control: functions that refer to their own outputs, as in-place activations did."""

    class Holds(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, held: list[Tensor]) -> Tensor:
            ctx.held = held
            ctx.mark_dirty(x)
            return x.tanh_()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
            return gradient, None

    def leak(model: nn.Module, x: Tensor, target: int) -> None:
        for _ in range(2):
            x = model(x)
            Holds.apply(x, [x])

    after_one, after_three = growth(leak, nn.Linear(3, 3), torch.randn(2, 3), 0)
    assert after_three > after_one
