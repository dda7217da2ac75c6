"""A batch in smaller ones: the same results, with less in memory at a time."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, LayerLRP, presets, stabilizers
from tests.helpers.networks import TwoInputs, build, cnn
from tests.helpers.several import Several, assert_same, forwards

pytestmark = pytest.mark.usefixtures("one_thread")

N = 5
IMAGES = torch.randn(N, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
BOX = (-6.0, 6.0)
SIZES = [1, 2, N, N + 3]
RULES = [presets.epsilon(), presets.epsilon_gamma_box(*BOX), presets.epsilon_plus_flat()]
TARGETS = [2, [0, 1, 2, 3, 4], torch.tensor([4, 3, 2, 1, 0]), torch.tensor([1]), (3,)]


# LRP ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", RULES, ids=lambda preset: preset.name)
def test_equals_the_whole_batch(preset, size) -> None:
    model = build(Several)
    explainer = LRP(model, preset)
    for target in TARGETS:
        whole = explainer.attribute(IMAGES, target, return_convergence_delta=True)
        parts = explainer.attribute(
            IMAGES, target, return_convergence_delta=True, internal_batch_size=size
        )
        assert_same(parts, whole)
        assert_same(explainer.attribute(IMAGES, target, internal_batch_size=size), whole[0])


def test_float32() -> None:
    model = build(Several, dtype=torch.float32)
    whole = LRP(model, RULES[1]).attribute(IMAGES.float(), TARGETS[1])
    parts = LRP(model, RULES[1]).attribute(IMAGES.float(), TARGETS[1], internal_batch_size=2)
    assert_same(parts, whole, tolerance=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_attribute_many(size) -> None:
    explainer = LRP(build(cnn))
    for given in ({}, {"rules": RULES}, {"stabilizers": [0.1, stabilizers.Clip(0.1)]}):
        whole = explainer.attribute_many(IMAGES, TARGETS, **given)
        assert_same(
            explainer.attribute_many(IMAGES, TARGETS, **given, internal_batch_size=size), whole
        )


def test_a_target_of_another_sample_would_be_seen() -> None:
    """Negative control: per-sample targets matter here."""
    explainer = LRP(build(cnn))
    one, other = (explainer.attribute(IMAGES, target) for target in TARGETS[1:3])
    with pytest.raises(AssertionError):
        assert_same(one, other)


class Scaled(TwoInputs):
    """Further arguments of each sample, of all, and none at all."""

    def forward(self, a: Tensor, b: Tensor, each: Any = 1.0, every: Any = 1.0, flag: Any = None):
        return super().forward(a, b, 1.0) * (each if flag is None else 2 * each) * every


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(1, 2), [(0, 1), (1, 3), (0, 0), (1, 1), (0, 3)]])
def test_tuples_of_inputs_and_further_arguments(size, target) -> None:
    model = build(Scaled)
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.rand(N, k, generator=draw, dtype=torch.float64) for k in (4, 3))
    each, every = torch.rand(N, 1, 1, generator=draw), torch.rand(2, 4, generator=draw)
    for extra in (2.0, each, (each,), (each, every), (each, every, "flag"), (3, torch.tensor(2))):
        explainer = LRP(model, presets.epsilon(0.1))
        whole = explainer.attribute((a, b), target, extra, True)
        assert_same(explainer.attribute((a, b), target, extra, True, False, size), whole)
        (many,) = explainer.attribute_many((a, b), [target], extra, internal_batch_size=size)
        assert_same(many, whole[0])


def test_target_none_and_an_empty_batch() -> None:
    model = nn.Sequential(build(cnn), nn.Linear(6, 1).double(), nn.Flatten(0))
    whole = LRP(model).attribute(IMAGES)
    assert_same(LRP(model).attribute(IMAGES, internal_batch_size=2), whole)
    assert LRP(model).attribute(IMAGES[:0], internal_batch_size=2).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(("size", "seen"), [(1, 1), (2, 2), (N, N), (N + 1, N), (None, N)])
@pytest.mark.parametrize("how", ["attribute", "attribute_many", "layer"])
def test_no_more_samples_than_that_are_in_memory(how, size, seen) -> None:
    model = build(cnn)
    most: list[int] = []
    look: list[int] = []  # without a graph, at samples beside others

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        (most if torch.is_grad_enabled() else look).append(len(output))

    handle = model[3].register_forward_hook(hook)
    if how == "attribute":
        LRP(model).attribute(IMAGES, 0, internal_batch_size=size)
    elif how == "attribute_many":
        LRP(model).attribute_many(IMAGES, [0, 1], rules=RULES, internal_batch_size=size)
    else:
        LayerLRP(model, "3").attribute(IMAGES, 0, internal_batch_size=size)
    handle.remove()
    assert max(most) == seen
    # of a layer's values (2, 5, 2, 2) another run says which dimension has the samples
    assert sum(most) == N + (how == "layer" and size == 2)
    assert look == ([max(size, 2)] if seen < N else [])


def test_pieces_follow_each_other() -> None:
    """What one piece needs is let go of before the next."""
    model, alive, most = build(cnn), [], []

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            most.append(sum(ref() is not None for ref in alive))
            alive.append(weakref.ref(output.grad_fn))

    handle = model[3].register_forward_hook(hook)
    LRP(model).attribute_many(IMAGES, [0, 1], internal_batch_size=1)
    handle.remove()
    assert most == [0] * N


def test_below_a_direct_rule() -> None:
    model = build(cnn)
    explainer = LRP(model, [(["3"], FlatRule, {})])
    whole = explainer.attribute(IMAGES, TARGETS[1])
    assert_same(explainer.attribute(IMAGES, TARGETS[1], internal_batch_size=2), whole)
    # two for each of three pieces, and one that looks whether samples are treated alone
    assert forwards(model, lambda: explainer.attribute(IMAGES, 0, internal_batch_size=2)) == 7


# LayerLRP ----------------------------------------------------------------------------------------


class Pairs(nn.Module):
    """A layer that takes two tensors and gives two."""

    class Swap(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return b.clone(), a.clone()

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 3), nn.Linear(4, 6), nn.Linear(9, 5)
        self.swap = self.Swap()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.swap(self.left(x).relu(), self.right(x).relu())
        return self.head(torch.cat([a, b], 1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("layer", ["swap", ["swap", "head"], ["left"], None], ids=str)
def test_layers(layer, at_input, size) -> None:
    model = build(Pairs)
    x = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    explainer = LayerLRP(model, layer, presets.epsilon(0.1))
    for target in (1, [0, 1, 2, 3, 4]):
        for with_delta in (False, True):
            options = {
                "return_convergence_delta": with_delta,
                "attribute_to_layer_input": at_input,
            }
            whole = explainer.attribute(x, target, **options)
            assert_same(explainer.attribute(x, target, **options, internal_batch_size=size), whole)


def test_every_layer_is_listed() -> None:
    model = build(cnn)
    explainer = LayerLRP(model, None)
    whole = explainer.attribute(IMAGES, TARGETS[2])
    layers = list(explainer.layers)
    assert_same(explainer.attribute(IMAGES, TARGETS[2], internal_batch_size=2), whole)
    assert explainer.layers == layers


# inside other parts of Captum --------------------------------------------------------------------


def test_inside_noise_tunnel() -> None:
    model = build(cnn)
    most: list[int] = []
    explainer, smooth = LRP(model, presets.epsilon(0.01)), []
    for given in ({}, {"internal_batch_size": 3}):
        torch.manual_seed(0)
        smooth.append(
            NoiseTunnel(explainer).attribute(
                IMAGES, nt_samples=4, stdevs=0.1, target=[0, 1, 2, 3, 4], **given
            )
        )
        handle = model.register_forward_hook(lambda m, args, output: most.append(len(output)))
    handle.remove()
    assert max(most) == 3
    assert_same(smooth[1], smooth[0])
    layered = []
    for given in ({}, {"internal_batch_size": 3}):
        torch.manual_seed(0)
        tunnel = NoiseTunnel(LayerLRP(model, model[3]))
        layered.append(tunnel.attribute(IMAGES, nt_samples=2, stdevs=0.1, target=1, **given))
    assert_same(layered[1], layered[0])


def test_inside_metrics() -> None:
    model = build(lambda: nn.Sequential(cnn(), nn.ReLU()))
    explainer = LRP(model, presets.epsilon(0.01))
    relevance = explainer.attribute(IMAGES, target=1, internal_batch_size=2)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.05 * F.hardtanh(torch.randn_like(inputs))
        return noise, inputs - noise

    given = {"target": 1, "n_perturb_samples": 4}
    torch.manual_seed(0)
    assert infidelity(model, perturb, IMAGES, relevance, **given).shape == (N,)
    found = []
    for options in ({}, {"internal_batch_size": 2}):
        torch.manual_seed(0)
        found.append(sensitivity_max(explainer.attribute, IMAGES, **given, **options))
    assert_same(found[1], found[0])
