"""Models whose output rows are not the samples: no delta for each of them, and no pieces."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, presets
from captum_lrp_stab.errors import InputError
from tests.helpers.networks import build

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
GRAPHS = torch.tensor([0, 0, 1, 1, 1, 1])
BY_SAMPLE = [0, 0, 1, 2, 1, 2]


class Net(nn.Module):
    """Two layers, and what is told between them and behind them."""

    def __init__(self, between: Callable[..., Tensor], behind: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.between, self.behind = between, behind

    def forward(self, x: Tensor, *extra: Any) -> Tensor:
        return self.behind(self.last(self.between(self.first(x).relu(), *extra)), *extra)


def net(
    between: Callable[..., Tensor] = lambda z, *extra: z,
    behind: Callable[..., Tensor] = lambda z, *extra: z,
) -> nn.Module:
    return build(lambda: Net(between, behind))


def pooled(z: Tensor, graph: Tensor) -> Tensor:
    """Return a row for each graph."""
    return torch.zeros(int(graph.max()) + 1, 5).double().index_add(0, graph, z).tanh()


OTHER_ROWS: dict[str, tuple[nn.Module, Any]] = {
    "the largest of all slices": (net(behind=lambda z: z.amax(0, keepdim=True)), None),
    "a mean over slices": (net(lambda z: z.mean(0, keepdim=True)), None),
    "graphs of nodes": (net(pooled), GRAPHS),
    "heads": (net(behind=lambda z: torch.stack([z, 2 * z], 1).flatten(0, 1)), None),
    "frames of a video": (net(lambda z: z.unflatten(0, (-1, 3)).mean(1)), None),
    "one number": (net(behind=lambda z: z.sum()), None),
}
"""The model's rows are not those of its input."""

SAME_ROWS: dict[str, tuple[nn.Module, Any, Any]] = {
    "less the mean of the batch": (net(lambda z: (z - z.mean(0)).relu()), None, 1),
    "the largest for each": (net(behind=lambda z: z + 0 * z + z.amax(0)), None, 1),
    "messages of others": (net(lambda z: (z + z.roll(1, 0)).tanh()), None, 1),
    "turned round": (net(behind=lambda z: z.flip(0)), None, BY_SAMPLE),
    "attention between samples": (net(lambda z: (z @ z.mT).softmax(-1) @ z), None, 1),
}
"""There are as many, and they depend on each other."""


def target_of(model: nn.Module, extra: Any) -> Any:
    return None if model(X, *([] if extra is None else [extra])).dim() == 0 else 1


# the delta ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_a_delta_for_each_sample_is_refused(name) -> None:
    model, extra = OTHER_ROWS[name]
    explainer, target = LRP(model, presets.epsilon()), target_of(model, extra)
    relevance = explainer.attribute(X, target, extra)
    assert relevance.abs().max() > 0
    with pytest.raises(InputError, match=r"convergence_delta: the relevance of an input has shape"):
        explainer.attribute(X, target, extra, return_convergence_delta=True)
    score = torch.ones(12 if name == "heads" else 1)
    with pytest.raises(InputError, match="a row is not a sample"):
        explainer.compute_convergence_delta(relevance, score)
    with pytest.raises(InputError, match="layer 'first' has shape"):
        layers = LayerLRP(model, "first")
        layers.attribute(X, target, extra, return_convergence_delta=True)


def test_an_input_for_all_samples() -> None:
    class Shifted(Net):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return super().forward(x + shift)

    model = build(lambda: Shifted(lambda z: z, lambda z: z))
    with pytest.raises(InputError, match=r"shape \(1, 4\), and the score 6 rows"):
        LRP(model).attribute((X, X[:1]), 1, return_convergence_delta=True)
    _, delta = LRP(model, presets.zero()).attribute((X, X), 1, return_convergence_delta=True)
    assert delta.shape == (6,)


def test_a_layer_with_other_rows() -> None:
    class Turned(Net):
        def forward(self, x: Tensor) -> Tensor:  # (n, 3, 4), and inside (3, n, 5)
            return self.last(self.first(x.transpose(0, 1)).relu().mean(0))

    model, x = build(lambda: Turned(torch.relu, torch.relu)), X.reshape(2, 3, 4)
    with pytest.raises(InputError, match=r"layer 'first' has shape \(3, 2, 5\), and the score 2"):
        LayerLRP(model, "first").attribute(x, 1, return_convergence_delta=True)
    delta = LayerLRP(model, "last").attribute(x, 1, return_convergence_delta=True)[1]
    torch.testing.assert_close(delta, torch.zeros(2).double(), rtol=0, atol=1e-12)


def test_a_delta_where_each_row_is_a_sample() -> None:
    """The control: as Captum works it out, for no sample too."""
    explainer, model = LRP(net(), presets.epsilon()), net()
    relevance, delta = explainer.attribute(X, BY_SAMPLE, return_convergence_delta=True)
    score = model(X)[torch.arange(6), BY_SAMPLE]
    torch.testing.assert_close(delta, score.detach() - relevance.sum(1))
    _, delta = explainer.attribute(X[:0], 1, return_convergence_delta=True)
    assert delta.shape == (0,)


# in pieces ----------------------------------------------------------------------------------------


def by_hand(model: nn.Module, target: Any, extra: Any, size: int) -> Tensor:
    """What pieces give, each explained by itself."""
    found = []
    for start in range(0, 6, size):
        here = slice(start, start + size)
        some = target[here] if isinstance(target, list) else target
        found.append(LRP(model).attribute(X[here], some, None if extra is None else extra[here]))
    return torch.cat(found)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [*OTHER_ROWS, *SAME_ROWS])
def test_pieces_are_refused(name, size) -> None:
    if name in OTHER_ROWS:
        model, extra = OTHER_ROWS[name]
        target = target_of(model, extra)
    else:
        model, extra, target = SAME_ROWS[name]
    options = {"internal_batch_size": size}
    message = "leave internal_batch_size out"
    if name == "frames of a video" and size in (1, 2, 4):
        with pytest.raises(RuntimeError, match="unflatten"):  # the model's own
            LRP(model).attribute(X, target, extra, **options)
        return
    with pytest.raises(InputError, match=message):
        LRP(model).attribute(X, target, extra, **options)
    with pytest.raises(InputError, match=message):
        LRP(model).attribute_many(X, [target], extra, **options)
    with pytest.raises(InputError, match=message):
        LayerLRP(model, "first").attribute(X, target, extra, **options)
    whole = LRP(model).attribute(X, target, extra)
    assert torch.equal(LRP(model).attribute(X, target, extra, internal_batch_size=6), whole)
    if name not in ("heads", "one number", "frames of a video"):  # the control: other numbers
        assert (by_hand(model, target, extra, size) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("size", [1, 2])
def test_pieces_without_an_output_activation(size) -> None:
    mixed = net(lambda z: z - z.mean(0), lambda z: z.softmax(1))
    with pytest.raises(InputError, match="does not treat samples alone"):
        explainer = LRP(mixed, skip_output_activation=True)
        explainer.attribute(X, 1, internal_batch_size=size)
    alone = LRP(net(behind=lambda z: z.softmax(1)), skip_output_activation=True)
    found = alone.attribute(X, 1, internal_batch_size=size)
    torch.testing.assert_close(found, LRP(net()).attribute(X, 1), rtol=1e-12, atol=0)


def test_an_argument_for_all_that_has_as_many_entries() -> None:
    """Where it has another shape it is for all."""
    model, weight = net(lambda z, w: z[:, :4] @ w.reshape(4, 1) * z), torch.rand(4).double()
    x = X[:4]
    whole = LRP(model).attribute(x, 1, weight)
    with pytest.raises(RuntimeError):
        LRP(model).attribute(x, 1, weight, internal_batch_size=2)
    parts = LRP(model).attribute(x, 1, weight[None], internal_batch_size=2)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
    scaled = net(lambda z, w: z * w.repeat(2)[: z.shape[1]] if len(w) > 1 else z * w)
    with pytest.raises(InputError, match="does not treat samples alone"):
        LRP(scaled).attribute(x, 1, weight, internal_batch_size=1)


def test_a_model_that_takes_one_sample_alone() -> None:
    def one(z: Tensor) -> Tensor:
        return z.reshape(5)[None]

    with pytest.raises(InputError, match=r"fails on samples 0 to 1 together \(RuntimeError: shape"):
        LRP(net(one)).attribute(X, 1, internal_batch_size=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_other_score(dtype) -> None:
    def normed(z: Tensor) -> Tensor:
        return (1e3 * (z - z.mean(1, keepdim=True))).softmax(1) @ torch.ones(5, 5, dtype=z.dtype)

    model, x = net(normed).to(dtype), torch.randn(64, 4).to(dtype)
    for size in (1, 7, 32):
        assert (
            LRP(model, presets.epsilon(0.1))
            .attribute(x, 1, internal_batch_size=size)
            .isfinite()
            .all()
        )


def test_the_callers_tensors_are_as_before() -> None:
    model = net()
    model.register_forward_pre_hook(lambda m, args: (args[0].mul_(2.0), *args[1:]))
    x = X.clone()
    LRP(model).attribute(x, 1, internal_batch_size=2)
    assert torch.equal(x, X)


# layers in pieces ---------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Layers whose values have their samples elsewhere than in the first dimension."""

    def __init__(self, time_first: bool = False) -> None:
        super().__init__()
        self.first, self.encoder = nn.Linear(4, 6), nn.TransformerEncoderLayer(6, 2, 8)
        self.windows, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
        self.time_first = time_first

    def forward(self, x: Tensor) -> Tensor:  # (n, 4, 4)
        z = self.encoder(self.first(x.transpose(0, 1)))  # (4, n, 6)
        if not self.time_first:
            z = z.transpose(0, 1)
        shape = z.shape[:2]
        z = self.windows(z.flatten(0, 1)).relu().unflatten(0, shape)
        return self.last(z.mean(0 if self.time_first else 1))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("layer", ["first", "encoder", "windows", "last", "encoder.linear1", None])
def test_layers_have_their_samples_where_they_are(layer, size) -> None:
    model = build(Tokens)
    x = torch.randn(6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    explainer = LayerLRP(model, layer, presets.epsilon())
    whole = explainer.attribute(x, BY_SAMPLE)
    parts = explainer.attribute(x, BY_SAMPLE, internal_batch_size=size)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_layers_without_their_samples_in_order_are_refused(size) -> None:
    model, x = build(lambda: Tokens(time_first=True)), torch.randn(6, 4, 4).double()
    assert LayerLRP(model, "windows").attribute(x, 1).shape == (24, 6)
    with pytest.raises(InputError, match=r"layer 'windows' has shape \(.*, 6\) for .* samples"):
        LayerLRP(model, "windows").attribute(x, 1, internal_batch_size=size)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_states_of_an_lstm(size) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 3, 2, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, (h, _) = self.lstm(x)
            return self.head(torch.cat([out[:, -1], h[0]], 1))

    model, x = build(Recurrent), torch.randn(6, 2, 4).double()
    explainer = LayerLRP(model, "lstm", fallbacks="ignore")
    whole = explainer.attribute(x, 1)
    assert [tuple(R.shape) for R in whole] == [(6, 2, 3), (2, 6, 3), (2, 6, 3)]
    torch.testing.assert_close(explainer.attribute(x, 1, internal_batch_size=size), whole)


# inside Captum ------------------------------------------------------------------------------------


def test_noise_tunnel() -> None:
    model, _ = OTHER_ROWS["the largest of all slices"]
    tunnel = NoiseTunnel(LRP(model))
    given = {"nt_samples": 2, "stdevs": 0.01, "target": 1}
    for options in ({"return_convergence_delta": True}, {"internal_batch_size": 3}):
        with pytest.raises(InputError):
            tunnel.attribute(X, **given, **options)
    found = NoiseTunnel(LRP(net())).attribute(X, **given, return_convergence_delta=True)
    assert [tuple(t.shape) for t in found] == [(6, 4), (12,)]
