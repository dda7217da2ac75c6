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

from captum_lrp_stab import LRP, plan
from captum_lrp_stab.diagnosis.receptive_field import Box, receptive_field
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.networks import build
from tests.helpers.receptive_fields import Net, bounding, field, is_inside, net, perturbed, picture

pytestmark = pytest.mark.usefixtures("one_thread")


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
    if stride == 1 and draw(st.booleans()):
        padding = "same"
    args = (kernel, stride, padding, dilation, groups)
    return partial(nn.Conv2d, 4, 4, *args, padding_mode=mode)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=80, deadline=None, derandomize=True)
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


POOLS = {
    "max": nn.MaxPool2d(3, 2, padding=1),
    "max, dilated": nn.MaxPool2d((2, 3), stride=(3, 1), dilation=(3, 2)),
    "max, ceil": nn.MaxPool2d(2, ceil_mode=True),
    "max, ceil and padded": nn.MaxPool2d(3, 3, padding=1, ceil_mode=True),
    "max, adaptive": nn.AdaptiveMaxPool2d((3, None)),
    "average": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, ceil": nn.AvgPool2d(2, ceil_mode=True),
    "average, adaptive": nn.AdaptiveAvgPool2d((4, 2)),
    "power average": nn.LPPool2d(2, 3, stride=2),
}
LAYERS = POOLS | {
    "norm of rows": nn.LayerNorm(9),
    "norm of groups": nn.GroupNorm(2, 2),
    "norm of channels": nn.InstanceNorm2d(2),
    "batch norm": nn.BatchNorm2d(2),
    "bilinear": nn.Upsample((5, 12), mode="bilinear"),
    "bicubic": nn.Upsample((5, 12), mode="bicubic"),
    "shuffled": nn.PixelUnshuffle(1),
    "softmax": nn.Softmax(dim=3),
    "local response": nn.LocalResponseNorm(3),
}


LAYERS |= {
    "padding as a child": build(Padding),
    "depthwise": build(lambda: nn.Conv2d(2, 4, 3, dilation=2, groups=2)),
    "linear": build(lambda: nn.Linear(9, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_layer(name) -> None:
    model, x = build(lambda: nn.Sequential(nn.Identity(), LAYERS[name])), picture(2, 8, 9)
    shape = model(x).shape
    names = [row.name for row in plan(model, x).rows]
    use = names.count(names[-1]) - 1  # a layer of several operations
    for index in ((0, *(0 for _ in shape[1:])), (0, *(n // 2 for n in shape[1:])), (0, 1, -1, -1)):
        index = tuple(i % n for i, n in zip(index, shape, strict=True))
        assert field(model, x, names[-1], index, use) == perturbed(model, x, None, index)


@pytest.mark.parametrize("dims", [1, 3])
def test_pools_of_other_dimensions(dims) -> None:
    kinds = (nn.MaxPool1d, nn.MaxPool3d), (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool3d)
    kinds += ((nn.Conv1d, nn.Conv3d), (nn.AvgPool1d, nn.AvgPool3d))
    for kind, args in zip(kinds, [(2,), (3,), (1, 2, 3), (2,)], strict=True):
        model = build(lambda k=kind[dims // 3], a=args: nn.Sequential(k(*a)))
        x, index = picture(1, *[5] * dims), (0, 0, *[1] * dims)
        assert field(model, x, "0", index) == perturbed(model, x, "0", index)


def test_resnet18_has_the_field_that_arithmetic_gives() -> None:
    model = resnet18(weights=None).eval()
    steps = [(7, 2, 3), (3, 2, 1), (3, 1, 1), (3, 1, 1)]  # kernel, stride, padding

    def bounds(i: int) -> tuple[int, int]:
        low = high = i
        for kernel, stride, padding in reversed(steps):
            low, high = low * stride - padding, high * stride - padding + kernel - 1
        return max(low, 0), min(high + 1, 64)

    for i, j in ((0, 5), (8, 15), (7, 7)):
        (rows, columns), x = (bounds(i), bounds(j)), torch.randn(1, 3, 64, 64)
        expected = Box((0, rows[0], columns[0]), (3, rows[1], columns[1]))
        assert field(model, x, "layer1.0.conv2", (0, 9, i, j)) == (expected,)
        assert field(model, x, "layer1.0.bn2", (0, 9, i, j)) == (expected,)
    assert field(model, x, "layer4.1.conv1", (0, 0, 1, 1))[0].is_whole((3, 64, 64))


# what the data stops, and LRP holds constant -----------------------------------------------------


def convolutional(act) -> nn.Module:
    """A padded convolution, activation, pool, activation, convolution."""
    return build(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), act(), nn.MaxPool2d(2), act(), nn.Conv2d(4, 3, 2), act()
        )
    )


@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        nn.ReLU6,
        lambda: nn.Hardtanh(0.4, 0.5, inplace=True),
        nn.GELU,
        nn.Sigmoid,
        lambda: nn.Threshold(100, 0),
        nn.PReLU,
        nn.Softplus,
        nn.LogSigmoid,
        lambda: nn.Hardshrink(100),
    ],
)
def test_activations_stop_nothing(act) -> None:
    model, twin, x = convolutional(act), convolutional(nn.Identity), picture(2, 8, 8)
    for index in ((0, 0, 0, 0), (0, 2, 1, 2)):
        linear = perturbed(twin, x, "4", index)
        assert field(model, x, "4", index) == field(twin, x, "4", index) == linear
        assert field(model, x, "5", index) == linear  # what it writes over included
        assert is_inside(perturbed(model, x, "4", index)[0], linear[0])


def test_weights_of_zero_and_dead_units_count() -> None:
    model, x = convolutional(nn.ReLU), picture(2, 8, 8)
    alive = field(model, x, "4", (0, 1, 1, 1))
    with torch.no_grad():
        model[0].bias.fill_(-1e6)
        model[4].weight.zero_()
    assert perturbed(model, x, "4", (0, 1, 1, 1)) == (None,)
    assert field(model, x, "4", (0, 1, 1, 1)) == alive != (None,)
    nothing = torch.zeros(8, 2, dtype=x.dtype)
    product = net(lambda s, x: (x * 1) @ nothing)
    assert field(product, x, "matmul_0", (0, 1, 4, 1)) == (Box((1, 4, 0), (2, 5, 8)),)


def residual(inplace):
    def forward(s, x: Tensor) -> Tensor:
        y = F.relu(s.n1(s.c1(x)), inplace=inplace)
        z = s.n2(s.c2(y))
        if inplace:
            z += s.short(y)
            return s.last(F.relu_(z))
        return s.last(F.relu(z + s.short(y)))

    return net(
        forward,
        c1=nn.Conv2d(2, 3, 3, padding=1),
        n1=nn.BatchNorm2d(3),
        c2=nn.Conv2d(3, 3, (1, 3), padding=(0, 1)),
        n2=nn.BatchNorm2d(3),
        short=nn.Conv2d(3, 3, (3, 1), padding=(1, 0)),
        last=nn.Conv2d(3, 2, 1),
    )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", ["c1", "n1", "c2", "n2", "short", "last"])
def test_residual_with_batch_norm(inplace, layer) -> None:
    model, x = residual(inplace), picture(2, 7, 7)
    with torch.no_grad():
        model.n1.bias.fill_(1e3)  # every unit alive, so that the oracle sees all
        model.n2.bias.fill_(1e6)
    index = (0, 1, 3, 4)
    assert field(model, x, layer, index) == perturbed(model, x, layer, index)
    total = {"c1": 3, "n1": 3, "c2": (3, 5), "n2": (3, 5), "short": (5, 3), "last": (5, 5)}[layer]
    box = field(model, x, layer, index)[0]
    assert (box.stop[1] - box.start[1], box.stop[2] - box.start[2]) in (total, (total, total))


def squeeze_excite(s, x: Tensor) -> Tensor:
    y = s.c(x)
    return s.last(y * torch.sigmoid(s.fc(y.mean((2, 3), keepdim=True))))


def detached(s, x: Tensor) -> Tensor:
    y = s.c(x)
    with torch.no_grad():
        gate = s.fc(y.amax((2, 3), keepdim=True)).sigmoid()
    return s.last(y * gate.detach())


@pytest.mark.parametrize("forward", [squeeze_excite, detached])
def test_gates_count(forward) -> None:
    modules = {"c": nn.Conv2d(2, 4, 3), "fc": nn.Conv2d(4, 4, 1), "last": nn.Conv2d(4, 2, 2)}
    model, x = net(forward, **modules), 0.1 * picture(2, 6, 7)
    (box,) = field(model, x, "last", (0, 1, 1, 1))
    assert box.is_whole((2, 6, 7))
    assert (box,) == perturbed(model, x, "last", (0, 1, 1, 1))
    # and relevance, which the gate gets none of, does not reach so far
    assert field(model, x, "c", (0, 1, 1, 1)) == (Box((0, 1, 1), (2, 4, 4)),)


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


@pytest.mark.parametrize("layer", ["c", "norm", "mlp"])
def test_attention(layer) -> None:
    model, x, index = build(Block), 0.1 * picture(4, 6), (0, 2, 1)
    (box,) = field(model, x, layer, index)
    assert box.is_whole((4, 6)) == (layer == "mlp")
    assert (box,) == perturbed(model, x, layer, index)
    # a layer whose forward nobody calls; it runs on tokens of all samples together
    assert field(model, x, "attention.out_proj", (2, 1))[0].is_whole((4, 6))


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
    assert field(model, inputs, "b", (0, 1, 0), extra=2.0) == (None, Box((0, 0), (2, 1)))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_used_twice(inplace) -> None:
    shared = {"c": nn.Conv2d(2, 2, 3, padding=1)}
    model = net(lambda s, x: s.c(F.relu(s.c(x), inplace=inplace)).relu(), **shared)
    with torch.no_grad():
        model.c.bias.fill_(1e3)
    x, index = picture(2, 7, 7), (0, 1, 3, 3)
    fields = [field(model, x, "c", index, use=use) for use in (0, 1)]
    assert fields == [perturbed(model, x, "c", index, use=use) for use in (0, 1)]
    assert fields[0] != fields[1]
    with pytest.raises(InputError, match="use 2 of operation 'c': the pass ran it 2 times"):
        field(model, x, "c", index, use=2)


def test_each_sample_is_its_own() -> None:
    model = net(lambda s, x: s.c(torch.stack([x[0], x[1].flip(-1)])), c=nn.Conv1d(1, 1, 2))
    x = torch.randn(2, 1, 6, dtype=torch.float64)
    assert field(model, x, "c", (0, 0, 1)) == (Box((0, 1), (1, 3)),)
    assert field(model, x, "c", (1, 0, 1)) == (Box((0, 3), (1, 5)),)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_depth_and_width_overflow_nothing(dtype) -> None:
    def layers(norm):
        for _ in range(20):
            yield from (nn.Conv1d(64, 64, 3, padding=1), nn.ReLU(inplace=True), norm())

    x = picture(64, 200).to(dtype)
    model = build(lambda: nn.Sequential(*layers(lambda: nn.LayerNorm(200))), dtype=dtype)
    assert field(model, x, "59", (0, 1, 20))[0].is_whole((64, 200))
    model = build(lambda: nn.Sequential(*layers(nn.GELU)), dtype=dtype)
    assert field(model, x, "59", (0, 1, 100)) == (Box((0, 80), (64, 121)),)


# the model stays as it is ------------------------------------------------------------------------


def state_of(model: nn.Module):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        (name, module.training, set(vars(module)), *(dict(vars(module)[kind]) for kind in hooks))
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("failure", [None, "index", "layer", "forward"])
def test_the_model_stays_as_it_is(failure) -> None:
    model, x = residual(True), picture(2, 7, 7)
    model.last.train()
    calls: list[str] = []
    model.c2.register_forward_hook(lambda module, args, out: calls.append("hook"))
    model.c1.weight.requires_grad_(False)
    before, parameters = state_of(model), copy.deepcopy(model.state_dict())
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    random, given = torch.get_rng_state(), x.clone()
    if failure == "forward":
        forward = model.short.forward
        model.short.forward = lambda x: 1 / 0
        with pytest.raises(ZeroDivisionError):
            field(model, x, "last", (0, 0, 0, 0))
        model.short.forward = forward
        del model.short.forward
    elif failure is not None:
        layer = "nowhere" if failure == "layer" else "c1"
        with pytest.raises(InputError):
            field(model, x, layer, (0, 0, 0, 99))
    else:
        field(model, x, "c1", (0, 0, 0, 0))
    assert calls == ([] if failure == "index" else ["hook"]) and state_of(model) == before
    assert all(torch.equal(v, parameters[k]) for k, v in model.state_dict().items())
    assert needs == {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given)
    assert x.grad is None and not x.requires_grad


def test_it_agrees_with_where_relevance_goes() -> None:
    model = convolutional(nn.ReLU)
    wrapped, x = nn.Sequential(model, nn.Flatten()), picture(2, 8, 8)
    target = int(model(x).argmax())  # where a ReLU is on
    relevant = bounding(LRP(wrapped).attribute(x, target=target)[0] != 0)
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(target), (1, 3, 3, 3)))
    assert relevant is not None and is_inside(relevant, field(model, x, "5", index)[0])


# refusals ----------------------------------------------------------------------------------------


def test_errors() -> None:
    model, x = convolutional(nn.ReLU), picture(2, 8, 8)
    with pytest.raises(InputError, match=r"'7': the pass ran it 0 times; .* are 0, 1, 2, 3, 4, 5"):
        field(model, x, "7", (0,))
    for index in ((0, 0, 0), (0, 3, 0, 0), (0, 0, 0, -1)):
        with pytest.raises(InputError, match=r"no element of the output of '4', .* \(1, 3, 3, 3\)"):
            field(model, x, "4", index)
    with pytest.raises(InputError, match="input 0 has dtype"):
        receptive_field(model, x.long(), None, RuleSet({}), "4", (0, 0, 0, 0))

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx, c: Tensor) -> Tensor:
            return c

    custom = net(lambda s, x: s.c(Doubled.apply(x)), c=nn.Conv2d(2, 2, 1))
    with pytest.raises(ModelError, match="custom autograd function Doubled"):
        field(custom, x, "c", (0, 0, 0, 0))
    statistics = net(
        lambda s, x: F.batch_norm(s.c(x), None, None, training=True), c=nn.Conv2d(2, 2, 1)
    )
    with pytest.raises(ModelError, match="'batch_norm_0' normalises by the statistics"):
        field(statistics, x, "batch_norm_0", (0, 0, 0, 0))


def test_boxes_in_words() -> None:
    picture = Box((0, 12, 0), (3, 71, 67))
    assert picture.describe() == picture.describe((3, 90, 90)) == "rows 12 to 70, columns 0 to 66"
    assert Box((1, 2, 0), (2, 3, 9)).describe((3, 9, 9)) == "channel 1, row 2, columns 0 to 8"
    volume = Box((0, 1, 2, 3), (1, 3, 5, 7))
    assert volume.describe() == "slices 1 to 2, rows 2 to 4, columns 3 to 6"
    assert Box((3,), (5,)).describe() == "features 3 to 4"
    assert Box((3, 0), (4, 5)).describe() == "dimension 1: 3, dimension 2: 0 to 4"
    assert Box((), ()).describe() == "the only value"
    assert Box((0, 0), (2, 3)).is_whole((2, 3)) and not Box((0, 1), (2, 3)).is_whole((2, 3))
