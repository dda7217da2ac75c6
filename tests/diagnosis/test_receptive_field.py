"""Receptive fields, against perturbing each element of the input and looking at the neuron."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18

from captum_lrp_stab import GammaRule, WSquareRule
from captum_lrp_stab.diagnosis.receptive_field import Box, receptive_field
from captum_lrp_stab.task import Task
from tests.helpers.networks import Net, build, net

pytestmark = pytest.mark.usefixtures("one_thread")


def picture(*shape: int) -> Tensor:
    return torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def field(model, inputs, layer, index, use=0, extra=None, rules=None):
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    random = torch.get_rng_state()
    boxes = receptive_field(Task(model, inputs, None, extra, rules), layer, index, use)
    assert torch.equal(torch.get_rng_state(), random)
    return boxes


def values_of(model: nn.Module, inputs, layer: str, use: int) -> Tensor:
    """The output of one run of a module."""
    seen: list[Tensor] = []
    # a copy, because what follows may write over it
    hook = model.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.append(+out))
    with torch.no_grad():
        model(*(x.clone() for x in inputs))
    hook.remove()
    return seen[use]


def perturbed(model, inputs, layer: str, index, use=0):
    """The oracle: the bounding boxes of what changes the neuron when it alone is changed."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    before = values_of(model, inputs, layer, use)[index]
    boxes = []
    for position, x in enumerate(inputs):
        count, change = x.numel(), torch.zeros(x.shape[1:], dtype=torch.bool)
        for size in (50.0, -50.0, 0.3):
            rows = [y.expand(count, *y.shape[1:]) for y in inputs]
            rows[position] = x + size * torch.eye(count, dtype=x.dtype).reshape(-1, *x.shape[1:])
            after = values_of(model, rows, layer, use)[(slice(None), *index[1:])]
            different = (after - before).abs() > 1e-9 * (1 + before.abs())
            change |= different.reshape(x.shape[1:])
        at = change.nonzero()
        box = Box(tuple(at.amin(0).tolist()), tuple((at.amax(0) + 1).tolist())) if len(at) else None
        boxes.append(box)
    return tuple(boxes)


# geometry ----------------------------------------------------------------------------------------


@st.composite
def convolutions(draw):
    transposed, groups = draw(st.booleans()), draw(st.sampled_from([1, 2]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.integers(0, 2))
    if transposed:
        extra = draw(st.integers(0, max(stride, dilation) - 1))
        args = (kernel, stride, padding, extra, groups, True, dilation)
        return partial(nn.ConvTranspose2d, 4, 4, *args)
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    args = (kernel, stride, padding, dilation, groups)
    return partial(nn.Conv2d, 4, 4, *args, padding_mode=mode)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(convolutions(), convolutions(), st.data())
def test_two_convolutions(first, second, data) -> None:
    model, x = build(lambda: nn.Sequential(first(), second())), picture(4, 7, 6)
    try:
        shape = model(x).shape
    except RuntimeError:  # the kernel is larger than what is left, or the padding
        assume(False)
    index = (0, *(data.draw(st.integers(0, n - 1)) for n in shape[1:]))
    assert field(model, x, "1", index) == perturbed(model, x, "1", index)


class Padding(nn.Conv2d):
    """A convolution with a padding as its child."""

    def __init__(self) -> None:
        super().__init__(2, 3, 3, stride=2)
        self.pad = nn.ZeroPad2d((0, 1, 2, 0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.pad(x))


LAYERS = {
    "average": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, adaptive": lambda: nn.AdaptiveAvgPool2d((4, 2)),
    "max": lambda: nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1), nn.MaxPool2d(3, 2), nn.Conv2d(32, 2, 1)
    ),
    "activations": lambda: nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1)
    ),
    "batch norm": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)),
    "bilinear": lambda: nn.Upsample((5, 12), mode="bilinear"),
    "softmax": lambda: nn.Softmax(dim=3),
    "padding as a child": Padding,
    "depthwise": lambda: nn.Conv2d(2, 4, 3, dilation=2, groups=2),
    "linear": lambda: nn.Linear(9, 3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer(name) -> None:
    model = build(lambda: nn.Sequential(nn.Identity(), LAYERS[name]()))
    x = picture(2, 8, 9)
    layer = "1" if not isinstance(model[1], nn.Sequential) else f"1.{len(model[1]) - 1}"
    for index in ((0, 0, 0, 0), (0, 1, *(n // 2 for n in model(x).shape[2:]))):
        assert field(model, x, layer, index) == perturbed(model, x, layer, index) != (None,)


def test_resnet18_has_the_field_that_arithmetic_gives() -> None:
    model = build(lambda: resnet18(weights=None), dtype=torch.float32)
    steps = [(7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 1, 1)]  # kernel, stride, padding

    def bounds(i: int) -> tuple[int, int]:
        low = high = i
        for kernel, stride, padding in reversed(steps):
            low, high = low * stride - padding, high * stride - padding + kernel - 1
        return max(low, 0), min(high + 1, 64)

    x = picture(3, 64, 64).float()
    for i, j in ((0, 5), (8, 15), (7, 7)):
        rows, columns = bounds(i), bounds(j)
        expected = Box((0, rows[0], columns[0]), (3, rows[1], columns[1]))
        for layer in ("conv2", "bn2", "add_0"):  # an operation too, that is no module
            assert field(model, x, f"layer1.0.{layer}", (0, 9, i, j)) == (expected,)
    assert field(model, x, "layer4.1.conv1", (0, 0, 1, 1))[0] == Box((0, 0, 0), (3, 64, 64))


class Block(nn.Module):
    """A transformer block, and a convolution over the tokens before it."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(x).mT
        z = self.norm(y)
        return self.mlp(F.gelu(y + self.attention(z, z, z, need_weights=False)[0]))


@pytest.mark.parametrize("layer", ["c", "mlp"])
def test_attention(layer) -> None:
    model, x, index = build(Block), 0.1 * picture(4, 6), (0, 2, 1)
    (box,) = field(model, x, layer, index)
    assert (box == Box((0, 0), (4, 6))) == (layer == "mlp")
    assert (box,) == perturbed(model, x, layer, index)


# what is off, and what LRP holds constant --------------------------------------------------------


ACTIVATIONS = {
    "relu": nn.ReLU,
    "in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "prelu": nn.PReLU,
    "softplus": nn.Softplus,
}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_off_counts(act) -> None:
    """Units that are off, weights of 0, outputs of 0: all that can move the neuron counts."""

    def convolutional(act) -> nn.Module:
        first, last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 2)
        return build(lambda: nn.Sequential(first, act(), nn.MaxPool2d(2), act(), last, act()))

    model, x = convolutional(ACTIVATIONS[act]), torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    wanted = perturbed(convolutional(nn.Identity), picture(2, 8, 8), "4", (0, 2, 1, 2))
    with torch.no_grad():
        model[0].bias.fill_(-1e6)
        model[4].weight.zero_()
    for layer in ("4", "5"):
        assert field(model, x, layer, (0, 2, 1, 2)) == wanted


def test_what_is_not_finite_counts() -> None:
    model = net(lambda s, x: s.c(torch.log(x)), c=nn.Conv1d(1, 1, 3))
    x = torch.zeros(1, 1, 8, dtype=torch.float64)
    assert field(model, x, "log_0", (0, 0, 2)) == (Box((0, 2), (1, 3)),)
    assert field(model, x, "c", (0, 0, 2)) == (Box((0, 2), (1, 5)),)


def test_a_gate_does_not_count() -> None:
    def squeeze_excite(s, x: Tensor) -> Tensor:
        y = s.c(x)
        return s.last(y * torch.sigmoid(s.fc(y.mean((2, 3), keepdim=True))))

    modules = {"c": nn.Conv2d(2, 4, 3), "fc": nn.Conv2d(4, 4, 1), "last": nn.Conv2d(4, 2, 2)}
    model, x = net(squeeze_excite, **modules), 0.1 * picture(2, 6, 7)
    assert field(model, x, "last", (0, 1, 1, 1)) == (Box((0, 1, 1), (2, 5, 5)),)
    assert perturbed(model, x, "last", (0, 1, 1, 1))[0] == Box((0, 0, 0), (2, 6, 7))


def test_the_rules_do_not_matter() -> None:
    model, x = build(lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Conv1d(2, 1, 2))), picture(1, 8)
    rules = [(["0"], WSquareRule, {}), (["1"], GammaRule, {})]
    assert field(model, x, "1", (0, 0, 2), rules=rules) == (Box((0, 2), (1, 6)),)


# what a forward may be written in ----------------------------------------------------------------


def test_two_inputs_and_a_further_argument() -> None:
    def forward(s, x: Tensor, y: Tensor, scale: float) -> Tensor:
        z = s.a(x)
        return s.c(z + s.b(y) * scale)

    parts = {"a": nn.Conv1d(1, 2, 3, padding=1), "b": nn.Conv1d(2, 2, 1), "c": nn.Conv1d(2, 1, 3)}
    model, inputs = net(forward, **parts), (picture(1, 7), picture(2, 7))
    boxes = field(model, inputs, "c", (0, 0, 2), extra=2.0)
    assert boxes == (Box((0, 1), (1, 6)), Box((0, 2), (2, 5)))
    bound = Net(lambda s, x, y: model(x, y, 2.0), inner=model)
    assert boxes == perturbed(bound, inputs, "inner.c", (0, 0, 2))
    assert field(model, inputs, "a", (0, 1, 0), extra=2.0) == (Box((0, 0), (1, 2)), None)


@pytest.mark.parametrize("norm", [nn.Identity, nn.BatchNorm2d])
def test_a_layer_used_twice(norm) -> None:
    shared = {"c": nn.Conv2d(2, 2, 3, padding=1), "n": norm(2), "m": norm(2)}
    model = net(lambda s, x: s.m(s.c(F.relu(s.n(s.c(x)), inplace=True))), **shared)
    with torch.no_grad():
        model.c.bias.fill_(1e3)
    x, index = picture(2, 7, 7), (0, 1, 3, 3)
    fields = [field(model, x, "c", index, use=use) for use in (0, 1)]
    assert fields == [perturbed(model, x, "c", index, use=use) for use in (0, 1)]
    assert fields[0] != fields[1]
    assert field(model, x, "c", index, use=2) == ()


def test_each_sample_is_its_own() -> None:
    model = net(lambda s, x: s.c(torch.stack([x[0], x[1].flip(-1)])), c=nn.Conv1d(1, 1, 2))
    x = torch.randn(2, 1, 6, dtype=torch.float64)
    assert field(model, x, "c", (0, 0, 1)) == (Box((0, 1), (1, 3)),)
    assert field(model, x, "c", (1, 0, 1)) == (Box((0, 3), (1, 5)),)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_depth_and_width_overflow_nothing(dtype) -> None:
    def layers():
        for _ in range(20):
            yield from (nn.Conv1d(32, 32, 3, padding=1), nn.ReLU(inplace=True))

    model = build(lambda: nn.Sequential(*layers()), dtype=dtype)
    assert field(model, picture(32, 80).to(dtype), "38", (0, 1, 40)) == (Box((0, 20), (32, 61)),)


# the model stays as it is, and what cannot be told is left out -----------------------------------


def state_of(model: nn.Module):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, module.training, set(vars(module)), *(dict(vars(module)[kind]) for kind in hooks))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("layer", ["norm", "last", "nowhere"])
def test_the_model_stays_as_it_is(layer) -> None:
    parts = {"c": nn.Conv2d(2, 3, 3), "norm": nn.BatchNorm2d(3), "last": nn.Conv2d(3, 2, 1)}
    model, x = net(lambda s, x: s.last(F.relu_(s.norm(s.c(x)))), **parts), picture(2, 7, 7)
    model.last.train()
    model.c.weight.requires_grad_(False)
    before, parameters = state_of(model), copy.deepcopy(model.state_dict())
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    given = x.clone()
    assert (field(model, x, layer, (0, 0, 0, 0)) == ()) == (layer == "nowhere")
    assert state_of(model) == before
    assert all(torch.equal(v, parameters[k]) for k, v in model.state_dict().items())
    assert needs == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, given) and x.grad is None and not x.requires_grad


def test_what_cannot_be_told() -> None:
    model, x = net(lambda s, x: s.c(x).relu(), c=nn.Conv2d(2, 3, 3)), picture(2, 8, 8)
    for index in ((0, 0, 0, 0, 0), (0, 3, 0, 0), (0, 0, 0, 99)):
        assert field(model, x, "c", index) == ()
    assert field(model, x, "d", (0, 0, 0, 0)) == ()


def test_a_model_that_refuses_other_inputs() -> None:
    def only_this(s, x: Tensor) -> Tensor:
        if not torch.equal(x.detach(), picture(1, 8)):
            raise RuntimeError("no picture")
        return s.c(x)

    assert field(net(only_this, c=nn.Conv1d(1, 1, 3)), picture(1, 8), "c", (0, 0, 2)) == ()


def test_boxes_in_words() -> None:
    picture = Box((0, 12, 0), (3, 71, 67))
    assert picture.describe() == picture.describe((3, 90, 90)) == "rows 12 to 70, columns 0 to 66"
    assert Box((1, 2, 0), (2, 3, 9)).describe((3, 9, 9)) == "channel 1, row 2, columns 0 to 8"
    volume = Box((0, 1, 2, 3), (1, 3, 5, 7))
    assert volume.describe() == "slices 1 to 2, rows 2 to 4, columns 3 to 6"
    assert Box((3,), (5,)).describe() == "features 3 to 4"
    assert Box((3, 0), (4, 5)).describe() == "dimension 1: 3, dimension 2: 0 to 4"
    assert Box((), ()).describe() == "the only value"
