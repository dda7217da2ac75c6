"""What a segment gets and gives, in every form, and where gates cross its boundary."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.networks import build
from tests.helpers.segmented import Around, Part, X, assert_as_without, plain


class Pair(NamedTuple):
    a: Tensor
    b: Any


class Record(OrderedDict):  # as the outputs of transformers
    def __getattr__(self, name: str) -> Any:
        return self[name]


def branching(part: Part, a: Tensor, b: Tensor, *, c: Tensor, scale: float) -> Any:
    return {"y": (part.layer(a).relu(), b * scale), "z": [c + a, None], "n": a.argmax(), "s": "s"}


def gathering(model: Around, x: Tensor) -> Tensor:
    y = model.pre(x).relu()
    out = model.seg(y, x, c=y, scale=2.0)
    assert out["s"] == "s"
    assert out["z"][1] is None
    assert not out["n"].is_floating_point()
    return model.head(out["y"][0] + out["y"][1] * 0.5 + out["z"][0])


def record(model: Around, x: Tensor) -> Tensor:
    out = model.seg(model.pre(x))
    assert isinstance(out, Record)
    return model.head(out.y)


FORMS: dict[str, tuple[Any, Any]] = {
    "several inputs, keywords and outputs": (branching, gathering),
    "a named tuple": (
        lambda part, pair: Pair(part.layer(pair.a).relu(), pair.b),
        lambda m, x: m.head(sum(m.seg(Pair(m.pre(x), x)))),
    ),
    "a kind of dict": (lambda part, x: Record(y=part.layer(x).relu()), record),
    "an output nobody reads": (
        lambda part, x: (part.layer(x), torch.exp(1e4 * x.abs())),  # 0 times infinity
        lambda m, x: m.head(m.seg(m.pre(x))[0]),
    ),
    "the same twice": (
        lambda part, a, b: part.layer(a).relu() + b,
        lambda m, x: (lambda y: m.head(m.seg(y, y) + y))(m.pre(x)),
    ),
    "the input": (lambda part, x: x, lambda m, x: m.head(m.seg(m.pre(x)) + m.pre(x))),
    "the output twice": (
        lambda part, x: [part.layer(x)] * 2,
        lambda m, x: (lambda y: m.head(y[0] + y[1].relu()))(m.seg(m.pre(x))),
    ),
    "views": (
        lambda part, x: part.layer(x).chunk(2, 1),
        lambda m, x: m.head(torch.cat(m.seg(m.pre(x).mT.mT[:, :6]), 1)),
    ),
    "functional": (
        lambda part, x: F.gelu(F.linear(x, part.layer.weight) + x).softmax(1),
        plain,
    ),
    "a gate made inside": (
        lambda part, x: torch.sigmoid(part.layer(x)),
        lambda m, x: (lambda y: m.head(m.seg(y) * y))(m.pre(x).relu()),
    ),
    "a gate made outside": (
        lambda part, x, gate: part.layer(x).tanh() * gate + (1 - gate) * x,
        lambda m, x: (lambda y: m.head(m.seg(y, torch.sigmoid(y))))(m.pre(x)),
    ),
    "a gate not yet": (
        lambda part, x: (part.layer(x) + 3, torch.tanh(x), part.layer(x)),
        lambda m, x: (lambda y: m.head(F.relu6(y[0]) / 6 * x + y[2] * (1 + y[1])))(m.seg(m.pre(x))),
    ),
    "written to outside": (
        lambda part, x: part.layer(x),
        lambda m, x: m.head(m.seg(m.pre(x)).add_(x).relu_()),
    ),
    "autocast": (lambda part, x: part.layer(x).relu(), None),
}


def in_autocast(model: Around, x: Tensor) -> Tensor:
    y = model.pre(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.seg(y)
    assert y.dtype == torch.bfloat16
    return model.head(y.float())


@pytest.mark.parametrize("form", FORMS)
def test_forms(form) -> None:
    inside, outside = FORMS[form]
    dtype = torch.float64 if outside else torch.float32
    model = build(lambda: Around(Part(inside), outside or in_autocast), dtype=dtype)
    runs = 0 if form == "a gate made inside" else 1  # no relevance goes there
    rounding = 1e-13 if form == "the same twice" else 0.0
    assert_as_without(model, X.to(dtype), runs=runs, rounding=rounding, nonfinite="raise")


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
@pytest.mark.parametrize("segment", ["seg", "seg.attention", "seg.norm"])
def test_attention(attention, segment) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return x + self.attention(y, y, y)[0]

    def tokens(model: Around, x: Tensor) -> Tensor:
        return model.head(model.seg(model.pre(x.unsqueeze(0) + x.unsqueeze(1))).mean(1))

    assert_as_without(build(lambda: Around(Block(), tokens)), X, (segment,), attention=attention)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent(kind) -> None:
    def last(model: Around, x: Tensor) -> Tensor:
        return model.head(model.seg(model.pre(torch.stack([x, x + 1], 1)))[0][:, -1])

    assert_as_without(build(lambda: Around(kind(6, 6, batch_first=True), last)))
