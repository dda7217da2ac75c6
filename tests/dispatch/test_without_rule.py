"""What is linear or selects is LRP-0 exactly, in whatever function of torch it is written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import rnn
from torchvision import ops
from torchvision.models import get_model

from captum_lrp_stab import LRP, EpsilonRule, FlatRule, plan, presets
from captum_lrp_stab.errors import FallbackError, ModelError
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.rules.rule_set import RuleSet
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning"),
]
X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
W = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
PLACES = torch.tensor([[0, 1, 1, 3, 0, 2, 2, 1]] * 4)
LENGTHS = torch.tensor([3, 4, 1, 2])
Step = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A ReLU network with a step in it: LRP-0 is gradient x input where the step is linear."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        width = step(W[:4].relu()).numel() // 4
        self.first, self.last, self.step = nn.Linear(6, 8), nn.Linear(width, 3), step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.first(x).relu()).reshape(4, -1).relu())


def reduced(how: str, in_place: bool = False, **options) -> Step:
    def step(y: Tensor) -> Tensor:
        start = torch.full((4, 5), 0.3).double()
        if in_place:
            return start.clone().scatter_reduce_(1, PLACES, y, how, **options)
        return torch.scatter_reduce(start, 1, PLACES, y, how, **options)

    return step


def images(y: Tensor) -> Tensor:
    return y.reshape(4, 1, 2, 4).repeat(1, 4, 4, 2)


BOXES = torch.tensor([[0, 0.5, 0.5, 5, 5], [1, 1, 2, 7, 6], [2, 0, 0, 3, 3], [3, 2, 2, 6, 7]])
BOXES, OFFSETS = BOXES.double(), torch.full((4, 2, 8, 8), 0.3).double()
SQUARE = W @ W.mT + torch.eye(8).double()


def packed(y: Tensor) -> Tensor:
    sequence = rnn.pack_padded_sequence(y.reshape(4, 4, 2), LENGTHS, True, enforce_sorted=False)
    doubled = sequence._replace(data=2 * sequence.data)
    return rnn.pad_packed_sequence(doubled, batch_first=True, padding_value=0.1)[0]


def bagged(y: Tensor) -> Tensor:
    ids = torch.arange(32).reshape(4, 8) % 8
    return F.embedding_bag(ids, W, per_sample_weights=y, mode="sum")


def grouped(y: Tensor) -> Tensor:
    weights = W.reshape(2, 4, 8).mT.contiguous()
    return F.grouped_mm(
        y.float(), weights.float(), offs=torch.tensor([3, 4], dtype=torch.int32)
    ).double()


def filled(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :2].zero_()
    y[:, 2:3].fill_(0.5)
    y.fill_diagonal_(0.25)
    return y


STEPS: dict[str, Step] = {
    "scatter_reduce sum": reduced("sum"),
    "scatter_reduce mean": reduced("mean", include_self=False),
    "scatter_reduce amax": reduced("amax"),
    "scatter_reduce amin in place": reduced("amin", in_place=True),
    "index_reduce": lambda y: (
        torch.zeros(8, 4).double().index_reduce(1, PLACES[0, :4], y.mT, "mean").mT
    ),
    "pack_padded_sequence": packed,
    "pad_sequence": lambda y: rnn.pad_sequence([y[:, :3].mT, y.mT], True, -0.1),
    "embedding_bag": bagged,
    **({"grouped_mm": grouped} if hasattr(F, "grouped_mm") else {}),  # since PyTorch 2.10
    "embedding": lambda y: F.embedding(torch.tensor([3, 0, 0, 1]), y),
    "roi_align": lambda y: ops.roi_align(images(y), BOXES, 2, aligned=True),
    "ps_roi_align": lambda y: ops.ps_roi_align(images(y), BOXES, 2),
    "roi_pool": lambda y: ops.roi_pool(images(y), BOXES, 2),
    "ps_roi_pool": lambda y: ops.ps_roi_pool(images(y), BOXES, 2),
    "deform_conv2d": lambda y: ops.deform_conv2d(
        images(y), OFFSETS, W.repeat(2, 1)[:8, :4, None, None]
    ),
    "grid_sampler": lambda y: torch.grid_sampler(
        images(y), W.flatten()[:48].reshape(4, 3, 2, 2), 0, 0, False
    ),
    "affine_grid": lambda y: F.affine_grid(y[:, :6].reshape(4, 2, 3), (4, 1, 2, 3), True),
    "clamp above 0": lambda y: y.clamp(min=0.2),
    "clamp by data": lambda y: y.clamp(max=y.flip(1) + 0.1),
    "clip in place": lambda y: (y - 0.3).clip_(torch.tensor(-0.1).double()),
    "threshold": lambda y: F.threshold(y, 0.3, 0.1),
    "convolution": lambda y: torch.convolution(
        y[:, None], W[:2, None, :3], None, [1], [1], [1], False, [0], 1
    ),
    "conv_tbc": lambda y: torch.conv_tbc(y[:, :, None].mT, W[:6].reshape(2, 8, 3), W[0, :3], 1)[:4],
    "ger": lambda y: torch.stack([torch.ger(row, W[0]) for row in y]),
    "trapezoid": lambda y: torch.trapezoid(y, dx=0.5),
    "trapz": lambda y: torch.trapz(y, W[0].sort().values),
    "cumulative_trapezoid": lambda y: torch.cumulative_trapezoid(y, W[0]),
    "ldexp": lambda y: torch.ldexp(y, torch.tensor([1, 2] * 4)),
    "deg2rad": lambda y: torch.rad2deg(y) + torch.deg2rad(y),
    "quantile": lambda y: torch.quantile(y, torch.tensor([0.2, 0.7]).double(), dim=1).mT,
    "nanmean": lambda y: torch.nanmean(y, 1),
    "msort": lambda y: torch.msort(y).cumsum(0),
    "nanmedian": lambda y: torch.nanmedian(y, 1).values,
    "nan_to_num": lambda y: torch.nan_to_num(y),
    "sum_to_size": lambda y: (y[:, None] * W[:, :1].abs()).sum_to_size(4, 1, 8),
    "fill": filled,
    "put": lambda y: W[:4].put(torch.tensor([0, 5, 9]), y[0, :3]) + y,
    "diagonal_scatter": lambda y: torch.diagonal_scatter(W[:4].clone(), y.diagonal()) + y,
    "as_strided_scatter": lambda y: torch.as_strided_scatter(W[:4], y[:, 1], (4,), (8,)) + y,
    "copies": lambda y: torch.permute_copy(torch.view_copy(y, (4, 2, 4)), (0, 2, 1)),
    "combinations": lambda y: torch.stack([torch.combinations(row[:4]).mean(0) for row in y]),
    "cartesian_prod": lambda y: torch.stack(
        [torch.cartesian_prod(r[:2], r[2:4]).mean(0) for r in y]
    ),
    "solve": lambda y: torch.linalg.solve(SQUARE, y.mT).mT,
    "solve_triangular": lambda y: (
        torch.linalg.solve_triangular(SQUARE.tril(), y.mT, upper=False).mT
    ),
    "cholesky_solve": lambda y: torch.cholesky_solve(y.mT, torch.linalg.cholesky(SQUARE)).mT,
    "operators": lambda y: torch.ops.aten.add.Tensor(torch.ops.aten.view.default(y, [4, 8]), y),
}


@pytest.mark.parametrize("name", STEPS)
def test_it_is_gradient_x_input(name) -> None:
    model = build(lambda: Net(STEPS[name]))
    expected = gradient_x_input(model, X, 1)
    found = LRP(model, presets.zero(), strict=True).attribute(X, 1)
    assert relative_error(found, expected) <= (1e-5 if name == "grouped_mm" else 1e-12)
    assert plan(model, X).fallbacks == ()
    if name == "nan_to_num":  # nothing here is NaN
        return
    without = gradient_x_input(build(lambda: Net(lambda y: y)), X, 1)
    assert relative_error(found, without) > 1e-3  # the control


@pytest.mark.parametrize("name", STEPS)
def test_the_relevance_form_agrees(name) -> None:
    model, rules = build(lambda: Net(STEPS[name])), RuleSet({}, EpsilonRule(1e-9))
    found = [
        propagate(model, X, 1, rule_set=rules, form=form_of(form, *given)).relevances[0]
        for form, given in (("gradient", ()), ("relevance", (1e-12,)))
    ]
    assert relative_error(*found) <= 1e-6
    if name in ("fill", "clip in place"):  # not over what a layer below such a rule has read
        return
    assert LRP(model, [(["last"], FlatRule, {})], strict=True).attribute(X, 1).isfinite().all()


FALLBACKS: dict[str, Step] = {
    "scatter_reduce": reduced("prod"),
    "roi_align": lambda y: ops.roi_align(images(y), BOXES + y[:, :5] * 0.01, 2),
    "solve": lambda y: torch.linalg.solve(SQUARE + y[:, :, None] * y[:, None], W[0]),
    "grid_sample": lambda y: F.grid_sample(
        images(y), y.tanh().reshape(4, 2, 2, 2), align_corners=False
    ),
}


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_is_not_linear_is_listed(name) -> None:
    model = build(lambda: Net(FALLBACKS[name]))
    assert {row.type for row in plan(model, X).fallbacks} == {name}
    with pytest.raises(FallbackError, match=name):
        LRP(model, strict=True).attribute(X, 1)


# one by one --------------------------------------------------------------------------------------


def relevance(step: Step) -> Tensor:
    return LRP(build(lambda: Net(step)), presets.zero(), strict=True).attribute(X, 1)


def test_clamps_by_tensors_are_clamps_by_numbers() -> None:
    low, high = torch.linspace(-1, -0.1, 8).double(), torch.linspace(0.2, 0.5, 8).double()

    def by_numbers(y: Tensor) -> Tensor:
        columns = zip((2 * y - 1).unbind(1), low.tolist(), high.tolist(), strict=True)
        return torch.stack([c.clamp(a, b) for c, a, b in columns], 1)

    for clamp in (torch.clamp, torch.clip, lambda t, low, high: t.clamp_(min=low, max=high)):
        found = relevance(lambda y, clamp=clamp: clamp(2 * y - 1, low, high))
        assert relative_error(found, relevance(by_numbers)) <= 1e-12


def test_a_table_made_of_data_gives_its_padding_relevance_too() -> None:
    ids = torch.tensor([1, 0, 3, 1])
    found = relevance(lambda y: F.embedding(ids, y, padding_idx=1))  # whose gradient leaves it out
    assert relative_error(found, relevance(lambda y: y[ids])) <= 1e-12


def test_an_operator_of_another_library_may_have_any_name() -> None:
    @torch.library.custom_op("captum_lrp_stab_tests::relu", mutates_args=())
    def relu(z: Tensor) -> Tensor:
        return torch.exp(z)

    relu.register_autograd(
        lambda ctx, c: c * ctx.saved_tensors[0],
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
    )
    (row,) = plan(build(lambda: Net(relu)), X).fallbacks
    assert row.type == "captum_lrp_stab_tests.relu"


# recurrent networks ------------------------------------------------------------------------------


class Cells(nn.Module):
    """An LSTM or a GRU written out, over two steps, from a state of zeros or from none."""

    def __init__(self, kind: str, starts: bool) -> None:
        super().__init__()
        self.gates, self.state = nn.Linear(3, 16), nn.Linear(4, 16, bias=False)
        self.last, self.kind, self.starts = nn.Linear(4, 3), kind, starts

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 4, dtype=x.dtype)
        for step, part in enumerate(x.reshape(-1, 2, 3).unbind(1)):
            is_first = step == 0 and not self.starts
            i, f, g, o = (self.gates(part) + self.state(h)).chunk(4, 1)
            if self.kind == "LSTM":
                new = torch.sigmoid(i) * torch.tanh(g)
                c = new if is_first else torch.sigmoid(f) * c + new
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                z = torch.sigmoid(f)
                h = (1 - z) * g.tanh() if is_first else (1 - z) * g.tanh() + torch.mul(z, h)
        return self.last(h)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_gate_of_a_state_of_zeros_has_no_part(kind) -> None:
    begun, without = (build(lambda s=s: Cells(kind, s)) for s in (True, False))
    torch.testing.assert_close(begun(X), without(X))
    found, expected = (
        LRP(model, presets.epsilon(0.1), strict=True).attribute(X, 1) for model in (begun, without)
    )
    assert relative_error(found, expected) <= 1e-12
    assert plan(begun, X).fallbacks == ()


def test_a_signal_times_zeros_and_a_gate_beside_a_signal_are_as_before() -> None:
    zeros = torch.zeros(4, 8).double()
    assert relevance(lambda y: y * zeros + y).abs().max() > 0
    found = relevance(lambda y: torch.addcmul(y, y.sigmoid(), zeros))
    assert relative_error(found, relevance(lambda y: y)) <= 1e-12


# networks that may be quantized ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18", "shufflenet_v2_x0_5"])
def test_networks_that_may_be_quantized_are_not_yet(name) -> None:
    plain = build(lambda: get_model(name, num_classes=3), dtype=torch.float64)
    ready = build(lambda: get_model(f"quantized_{name}", num_classes=3, quantize=False))
    ready.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32).double()
    found, expected = (
        LRP(model, presets.epsilon_plus(), strict=True).attribute(x, 1) for model in (ready, plain)
    )
    assert relative_error(found, expected) <= 1e-12


def test_quantized_modules_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 3), torch.ao.nn.quantized.ReLU6())
    with pytest.raises(ModelError, match=r"'1'.* is quantized"):
        LRP(model)


# the lists ---------------------------------------------------------------------------------------
