"""What a preset does in a pass is what its name_map and the plan say, on networks of every kind."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer

from captum_lrp_stab import LRP, LayerLRP, plan, presets
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.errors import RuleMapWarning
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation.attribution import operations_of
from tests.helpers import planted_networks
from tests.helpers.first_layers import (
    FORMS,
    NORMALISATIONS,
    PRESETS,
    Called,
    Siamese,
    Stems,
    firsts,
    picture,
    relevance_in,
    small,
)
from tests.helpers.layers import relative_error
from tests.helpers.live_tensors import Live
from tests.helpers.networks import Functional, Residual, TwoInputs, build, cnn, padded
from tests.helpers.torchvision_models import REPRESENTATIVE, make

EVERY = [*PRESETS, presets.epsilon_plus(), presets.epsilon_alpha2_beta1(), presets.epsilon()]
Inputs = Tensor | tuple[Tensor, ...]

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "sequence": lambda: (build(cnn), picture(2, 3, 8, 8)),
    "residual": lambda: (build(Residual), picture(2, 3, 8, 8)),
    "residual in place": lambda: (build(partial(Residual, True)), picture(2, 3, 8, 8)),
    "two inputs": lambda: (build(TwoInputs), (picture(2, 4), picture(2, 3))),
    "siamese": lambda: (build(Siamese), (picture(2, 3, 8, 8), picture(2, 3, 8, 8, seed=1))),
    "stems": lambda: (build(Stems), picture(2, 3, 9, 9)),
    "functional": lambda: (build(Functional), picture(2, 3, 8, 8)),
    "padded": lambda: (build(lambda: padded("reflect")), picture(2, 3, 8, 8)),
    "attention": lambda: (
        build(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
        picture(2, 5, 8),
    ),
} | {
    name: lambda name=name: (planted_networks.build(name, 0).double(), picture(2, 3, 16, 16))
    for name in planted_networks.ARCHITECTURES
}


def target_of(model: nn.Module, x: Inputs) -> Any:
    output = model(*x) if isinstance(x, tuple) else model(x)
    return (0,) * (output.dim() - 1) if output.dim() > 2 else 1


def assert_one(model: nn.Module, x: Inputs, preset: Preset) -> list[str]:
    """The pass, the name_map and the plan are one; return the first layers."""
    name_map, target = preset(model, x), target_of(model, x)
    by_preset, by_map = LRP(model, preset), LRP(model, name_map)
    several = isinstance(x, tuple)
    found, expected = (
        lrp.attribute(x, target=target) if several else (lrp.attribute(x, target=target),)
        for lrp in (by_preset, by_map)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    named = {name: rule(**p) for names, rule, p in name_map for name in names}
    rule_set = rule_set_of(model, preset)
    ran = {o.name: o.rule for o in operations_of(model, x, None, rule_set) if o.rule is not None}
    layers = {name: repr(rule) for name, rule in ran.items()}
    assert layers == {name: repr(rule) for name, rule in named.items()}
    return firsts(model, x, preset)


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.usefixtures("one_thread")
def test_pass_name_map_and_plan_are_one(name, preset) -> None:
    model, x = NETWORKS[name]()
    convolutional = name not in ("two inputs", "attention")
    expected = convolutional or nn.Linear in preset.first_types
    assert bool(assert_one(model, x, preset)) == (expected and preset.first_types != ())


SMALL: dict[str, Callable[[], nn.Module]] = {
    "small swin": lambda: SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=10),
    "small vit": lambda: VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
}
FEW = ("googlenet", "mobilenet_v3_small", *SMALL)
SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in REPRESENTATIVE if n not in FEW]


@pytest.mark.filterwarnings("ignore:ZBoxRule.* outside the box")
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # of older torchvision
@pytest.mark.parametrize("name", [*FEW, *SLOW])
def test_networks_of_torchvision(name) -> None:
    """The stem is the only first layer; by the code of the forward it is, too."""
    model, x = (build(SMALL[name]), picture(1, 3, 32, 32)) if name in SMALL else make(name)
    for preset in (presets.epsilon_plus_flat(), presets.lrp_tutorial(-3.0, 3.0)):
        (stem,) = assert_one(model, x, preset)
        assert preset(model)[0][0] == preset(model, x)[0][0] == [stem]


# each use of a layer -----------------------------------------------------------------------------


class Again(nn.Module):
    """One layer on the input and on what it has made of it, and a loop over time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(x).relu()).relu())


class Apart(Again):
    """The same with two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.shared(x).relu()).relu())


@pytest.mark.parametrize("preset", PRESETS[:2], ids=lambda preset: preset.name)
def test_each_use_of_a_layer_is_decided_for_itself(preset) -> None:
    model, apart, x = build(Again, seed=3), build(Apart), picture(3, 4)
    apart.load_state_dict(model.state_dict(), strict=False)
    apart.second = model.shared
    apart.second = type(model.shared)(4, 4).double()
    apart.second.load_state_dict(model.shared.state_dict())
    found = LRP(model, preset).attribute(x, target=1)
    assert found.abs().sum() > 0
    assert torch.equal(found, LRP(apart, preset).attribute(x, target=1))
    rules = [row.rule for row in plan(model, x, preset).rows if row.name == "shared"]
    assert rules == ["FlatRule", "EpsilonRule"]
    for inputs in (x, None):
        with pytest.warns(RuleMapWarning, match="'shared' read an input of the model in one"):
            name_map = preset(model, inputs)
        assert name_map[0][0] == ["shared"]


# what a preset names by its type alone -----------------------------------------------------------


class Whitened(nn.Linear):
    """A subclass that computes something else, without a linear operation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.diagonal() + self.bias


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_a_subclass_with_a_forward_of_its_own_is_no_reason_to_refuse(preset) -> None:
    class Diagonal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * white.weight.diagonal() + white.bias

    model, x = (
        build(lambda: nn.Sequential(Whitened(4, 4), nn.ReLU(), nn.Linear(4, 2))),
        picture(2, 4),
    )
    white = model[0]
    expected = LRP(nn.Sequential(Diagonal(), *model[1:]), preset).attribute(x, target=1)
    assert torch.equal(LRP(model, preset).attribute(x, target=1), expected)


# the other ways to run one -----------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_inner_layers_see_the_same_pass(preset) -> None:
    """Probes stand in the way of marks."""
    model, x = build(Stems, seed=1), picture(2, 3, 9, 9)
    whole = LRP(model, preset).attribute(x, target=1)
    for layer in (model.fine.conv, model.coarse):
        given = LayerLRP(model, layer, preset).attribute(x, target=1, attribute_to_layer_input=True)
        whole = whole - (given if layer is model.fine.conv else given.flip(-1))
    assert float(whole.abs().max()) <= 1e-12


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_what_is_seen_of_a_normalisation(name) -> None:
    """Its input, its output and the input of the first layer have one relevance."""
    norm, preset = NORMALISATIONS[name](), presets.epsilon_plus_flat()
    model, x = nn.Sequential(norm, build(small, seed=2)).eval(), picture(2, 3, 8, 8)
    whole = LRP(model, preset).attribute(x, target=1)
    layers, at_input = [norm, model[1][0]], {"attribute_to_layer_input": True}
    for found in (
        *LayerLRP(model, layers, preset).attribute(x, target=1, **at_input),
        LayerLRP(model, norm, preset).attribute(x, target=1),
    ):
        assert relative_error(found, whole) <= 1e-12


@pytest.mark.parametrize("network", ["stems", "functional"])
def test_presets_share_a_forward_pass(network) -> None:
    """A second one follows where the tutorial's map needs to know how many layers there are."""
    model, x = NETWORKS[network]()
    ran: list[int] = []
    handle = model.register_forward_hook(lambda *_: ran.append(1))
    (found,) = LRP(model).attribute_many(x, targets=[1], rules=EVERY)
    handle.remove()
    assert len(ran) == (2 if network == "functional" else 1)
    for preset, relevance in zip(EVERY, found, strict=True):
        alone = LRP(model, preset).attribute(x, target=1)
        assert torch.allclose(relevance, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("preset", EVERY, ids=lambda preset: preset.name)
def test_segments_see_the_same_first_layers(preset) -> None:
    """A normalisation is a segment, and what lies above the stem another."""
    norm = Called(lambda x: (x - 0.5) / 0.2)
    layers = build(lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(7))), seed=2)
    body = nn.Sequential(layers[1:4], nn.ReLU(), layers[4:])
    model, x = nn.Sequential(norm, layers[0], nn.ReLU(), body), picture(2, 4)
    name_map = preset(model, x)
    for checkpoint in (["3"], ["3.0", "3.2"]):
        found = LRP(model, preset, checkpoint=checkpoint).attribute(x, target=1)
        assert torch.allclose(found, LRP(model, name_map).attribute(x, target=1), rtol=1e-12)
    if not preset.first_types:
        with_norm = LRP(model, preset, checkpoint=["0"]).attribute(x, target=1)
        assert torch.allclose(with_norm, found, rtol=1e-12)


@pytest.mark.parametrize("name", ["operators", "in place", "assignment", "batch norm"])
def test_what_stands_beside_the_input_is_let_go_of(name) -> None:
    model = nn.Sequential(NORMALISATIONS[name](), build(small, seed=2)).eval()
    x, several = picture(2, 3, 8, 8), [presets.epsilon_plus_flat(), presets.epsilon_plus()]

    def everything() -> None:
        for preset in PRESETS:
            LRP(model, preset).attribute(x, target=1)
            LayerLRP(model, model[0], preset).attribute(x, target=1)
            for form in FORMS[1:]:
                relevance_in(form, model, x, preset)
        LRP(model).attribute_many(x, targets=[0, 1], rules=several)

    with Live() as live:
        everything()
        once = live.bytes
        everything()
        assert live.bytes == once
