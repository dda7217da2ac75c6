"""Presets called without inputs: by the code of the forward, or by the order of definition."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from captum_lrp_stab import LRP, presets
from captum_lrp_stab.errors import RuleMapWarning
from captum_lrp_stab.presets import Preset
from tests.helpers.first_layers import Siamese, Stems, picture
from tests.helpers.networks import Residual, TwoInputs, build, cnn

FLAT = presets.epsilon_plus_flat()
TUTORIAL = presets.lrp_tutorial(-3.0, 3.0)


def firsts(preset: Preset, model: nn.Module, *inputs: Tensor) -> list[str]:
    """The layers that a name_map gives the rule for first layers."""
    rules = ("FlatRule", "ZBoxRule")
    found = preset(model, *inputs)
    return [name for names, rule, _ in found if rule.__name__ in rules for name in names]


class Chooses(nn.Module):
    """A forward that depends on the values, which nothing can tell without inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.stem = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.sum() > 1e9).any()):
            return self.stem(x)
        return self.out(self.stem(x).relu())


class Remembers(Stems):
    """A forward that sets an attribute and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        return super().forward(x)


class Wrapped(nn.Module):
    """A normalisation, a resize, and layers of torch's that hold others."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.patches = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = F.interpolate((x - 0.5) / 0.25, size=8)
        tokens = self.patches(x.view(x.shape[0], 3, 8, -1)).flatten(2).mT
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1) * scale)


class Own(nn.Linear):
    """A layer with a forward of its own, that could not be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[0] > 0 else x


TRACED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "in order": (cnn, ["0"]),
    "residual": (Residual, ["first"]),
    "two inputs": (TwoInputs, ["left", "right"]),
    "siamese": (Siamese, ["left.conv", "right.conv"]),
    "stems": (Stems, ["fine.conv", "coarse"]),
    "with a state": (Remembers, ["fine.conv", "coarse"]),
    "wrapped": (Wrapped, ["patches"]),
    "subclass": (lambda: nn.Sequential(Own(4, 4), nn.Linear(4, 2)), ["0"]),
}


@pytest.mark.parametrize("name", TRACED)
def test_the_code_of_the_forward_tells(name) -> None:
    make, expected = TRACED[name]
    assert firsts(FLAT, make()) == expected
    assert firsts(TUTORIAL, make()) == expected


@pytest.mark.parametrize(
    "name", ["vgg16", "vgg11_bn", "resnet18", "densenet121", "googlenet", "convnext_tiny"]
)
def test_networks_of_torchvision(name) -> None:
    with torch.device("meta"):
        model = (
            torchvision.models.get_model(name, weights=None, init_weights=False)
            if (name == "googlenet")
            else torchvision.models.get_model(name, weights=None)
        )
    (first,) = firsts(FLAT, model)
    assert first in ("features.0", "conv1", "features.conv0", "conv1.conv", "features.0.0")


def test_the_order_is_that_of_execution_where_it_is_known() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers[::-1]:
                x = layer(x)
            return x

    found = TUTORIAL(Backwards())
    assert [names for names, _, _ in found] == [
        ["layers.7"],
        ["layers.6", "layers.5", "layers.4"],
        ["layers.3", "layers.2", "layers.1"],
        ["layers.0", "unused"],
    ]
    by_pass = TUTORIAL(Backwards(), torch.rand(1, 2))
    assert [names for names, _, _ in by_pass] == [
        *(names for names, _, _ in found[:3]),
        ["layers.0"],
    ]


def test_the_model_is_left_alone() -> None:
    model = build(Remembers)
    before, attributes = copy.deepcopy(model.state_dict()), set(vars(model))
    FLAT(model)
    assert model.last is None and set(vars(model)) == attributes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), model.parameters(), strict=True))


class Refuses(Chooses):
    """One that cannot be traced at all."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.out(self.stem(row).relu()) for row in list(x)]
        return torch.stack(rows)


@pytest.mark.parametrize(("make", "guess"), [(Chooses, "stem"), (Refuses, "out")])
def test_a_guess_is_called_one(make, guess) -> None:
    """What the forward does where it asks for no value, or what is defined first."""
    model, x = build(make), picture(2, 4)
    with pytest.warns(RuleMapWarning, match=rf"takes '{guess}' for the first .*preset\(model, x\)"):
        assert firsts(FLAT, model) == [guess]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert firsts(FLAT, model, x) == ["stem"]
        presets.epsilon_plus()(model)  # which has no rule for first layers
        LRP(model, FLAT).attribute(x, target=0)
        alone = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), make())
        assert firsts(FLAT, alone) == ["0.0"]  # which runs first, whatever comes after
        assert firsts(presets.epsilon_gamma_box(0.0, 1.0), model) == []  # has no convolution


def test_a_question_about_the_input_is_no_reason_to_warn() -> None:
    """Where the order of definition says the same."""

    class Asks(nn.Module):
        def __init__(self, backwards: bool = False) -> None:
            super().__init__()
            layers = [("stem", nn.Conv1d(3, 3, 3)), ("top", nn.Conv1d(3, 3, 3))]
            for name, layer in layers[::-1] if backwards else layers:
                self.add_module(name, layer)

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == 3
            if x.shape[-1] % 2:
                x = F.pad(x, (0, 1))
            return self.top(self.stem(x))

    assert firsts(FLAT, Asks()) == ["stem"]
    with pytest.warns(RuleMapWarning, match=r"takes 'stem' for the first layer of Asks"):
        assert firsts(FLAT, Asks(backwards=True)) == ["stem"]


def test_the_warning_is_of_the_users_line() -> None:
    with pytest.warns(RuleMapWarning) as caught:
        FLAT(Chooses())
    assert caught[0].filename == __file__
