"""Parts of an output or an input that get no relevance, as of a chunk that nothing reads.

The oracle is gradient x value at the part itself, exact for LRP-0 on ReLU networks without
biases; a part that nothing reads, or that is a gate, has 0 in its own shape and dtype.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, LayerLRP, ZeroRule, compare, diagnose, presets
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.propagation import forms
from tests.helpers.agreement import drawn
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

EXACT = 1e-12
Z = presets.zero()


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


class Parts(nn.Module):
    """Divides its input with a function, and returns what that gives."""

    def __init__(self, divide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.divide = divide

    def forward(self, x: Tensor) -> Any:
        return self.divide(x)


class Reader(nn.Module):
    """A network that reads some of the parts."""

    def __init__(
        self, divide: Callable[[Tensor], Any], read: Callable[[Any], Tensor], width: int
    ) -> None:
        super().__init__()
        self.body, self.parts, self.head = linear(4, 6), Parts(divide), linear(width, 2)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(self.parts(self.body(x))))


def halves(x: Tensor) -> Any:
    return x.chunk(2, -1)


def named(x: Tensor) -> Any:
    return {"signal": x.relu(), "unread": x.tanh(), "none": None, "ids": x.argmax(-1)}


def nested(x: Tensor) -> Any:
    return x.relu(), (x.tanh(), None), [x.detach()]


def first(parts: Any) -> Tensor:
    return parts[0]


def gated(parts: Any) -> Tensor:
    return parts[0] * torch.sigmoid(parts[1])


# (how the input is divided, what is read, its width, operation or None, dtypes of the parts)
FLOAT, LONG = torch.float64, torch.int64
CASES = {
    "chunk": (halves, first, 3, "chunk_0", [FLOAT, FLOAT]),
    "gate": (halves, gated, 3, "chunk_0", [FLOAT, FLOAT]),
    "last of a split": (
        lambda x: x.split([1, 2, 3], -1),
        lambda p: p[2],
        3,
        "split_0",
        [FLOAT] * 3,
    ),
    "one of unbind": (lambda x: x.unbind(-1), lambda p: p[4][:, None], 1, "unbind_0", [FLOAT] * 6),
    "topk": (lambda x: x.topk(3, -1), first, 3, "topk_0", [FLOAT, LONG]),
    "sort": (lambda x: x.sort(-1), first, 6, "sort_0", [FLOAT, LONG]),
    "max": (lambda x: x.max(-1, keepdim=True), first, 1, "max_0", [FLOAT, LONG]),
    "dict": (named, lambda p: p["signal"], 6, None, [FLOAT, FLOAT, LONG]),
    "nested": (nested, first, 6, None, [FLOAT, FLOAT, FLOAT]),
}


@pytest.fixture(params=CASES)
def case(request: Any) -> Any:
    divide, read, width, operation, dtypes = CASES[request.param]
    model = build(lambda: Reader(divide, read, width))
    names = ["parts"] if operation is None else ["parts", f"parts.{operation}"]
    return model, names, dtypes


def by_gradient(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradient x value at each part, with what passes a sigmoid held constant."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.extend(t for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, Tensor))

    handle = model.parts.register_forward_hook(keep)
    sigmoid, torch.sigmoid = torch.sigmoid, lambda t: sigmoid(t).detach()
    try:
        score = model(x.clone().requires_grad_())[:, 0].sum()
    finally:
        torch.sigmoid = sigmoid
        handle.remove()
    points = [t for t in kept if t.requires_grad]
    found = torch.autograd.grad(score, points, allow_unused=True)
    gradients = dict(zip(map(id, points), found, strict=True))
    return [
        torch.zeros_like(t) if gradients.get(id(t)) is None else (gradients[id(t)] * t).detach()
        for t in kept
    ]


def test_layer_lrp_gives_every_part(case) -> None:
    model, names, dtypes = case
    x = drawn(3, 4)
    expected = by_gradient(model, x)
    assert any(bool(R.any()) for R in expected) and not all(bool(R.any()) for R in expected)
    for name in names:
        relevances = LayerLRP(model, name, Z).attribute(x, target=0)
        assert [R.dtype for R in relevances] == dtypes
        for actual, wanted in zip(relevances, expected, strict=True):
            assert actual.shape == wanted.shape
            assert relative_error(actual, wanted) <= EXACT if wanted.any() else not actual.any()


def test_the_delta_leaves_parts_without_relevance_out(case) -> None:
    model, names, _ = case
    layers = LayerLRP(model, names, Z)
    relevances, deltas = layers.attribute(drawn(3, 4), target=0, return_convergence_delta=True)
    assert len(relevances) == len(deltas) == len(names)
    for delta in deltas:
        torch.testing.assert_close(delta, torch.zeros(3, dtype=FLOAT))


@pytest.mark.parametrize("form", forms.NAMES)
def test_diagnose_and_its_ledger(case, form) -> None:
    model, _, _ = case
    found = diagnose(model, drawn(3, 4), 0, presets.epsilon(1e-12), form=form)
    assert found.verdict == "stable"
    assert found.ledger.closing <= 1e-9


@pytest.mark.parametrize("reference", ["float64", "modified_forward"])
def test_compare(case, reference) -> None:
    model, names, _ = case
    found = compare(model, drawn(3, 4), 0, Z, reference)
    assert found.verdict == "equal"
    rows = {row.name: row for row in found.layers if row.output is not None}
    assert rows.keys() & set(names) or len(names) == 1
    assert all(row.output.relative_l2 <= EXACT for row in rows.values())


def test_compare_sees_relevance_that_only_the_reference_hands_to_a_part() -> None:
    """zennit hands a gate its gradient, where it is held constant here."""

    class Model(nn.Module):
        def __init__(self, is_gated: bool) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 3, batch_first=True), linear(3, 2)
            self.is_gated = is_gated

        def forward(self, x: Tensor) -> Tensor:
            y, (h, _) = self.lstm(x)
            y = y[:, 1]
            return self.head(y * torch.sigmoid(h[-1]) if self.is_gated else y)

    for is_gated in (True, False):
        model = build(lambda is_gated=is_gated: Model(is_gated))
        found = compare(model, drawn(3, 5, 4), 0, Z, "zennit")
        (row,) = (row for row in found.layers if row.name == "lstm")
        assert row.output is not None and (row.output.relative_l2 > EXACT) == is_gated


def test_an_input_that_gets_none() -> None:
    class Second(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return b.relu()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.second, self.head = linear(4, 6), Second(), linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.head(self.second(y.reshape(-1, 2, 3), y.tanh()))

    model, x = build(Model), drawn(3, 4)
    unread, read = LayerLRP(model, "second", Z).attribute(
        x, target=0, attribute_to_layer_input=True
    )
    assert unread.shape == (3, 2, 3) and not unread.any()
    torch.testing.assert_close(read.sum(1), model(x)[:, 0].detach())


def test_state_of_an_lstm() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True)
            self.head = linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    model, x = build(Model), drawn(5, 3, 4)
    layers = LayerLRP(model, "lstm", Z, fallbacks="ignore")
    whole = layers.attribute(x, target=0)
    assert [tuple(R.shape) for R in whole] == [(5, 3, 3), (2, 5, 3), (2, 5, 3)]
    torch.testing.assert_close(whole[0].sum((1, 2)), model(x)[:, 0].detach())
    assert not whole[1].any() and not whole[2].any()
    _, delta = layers.attribute(x, target=0, return_convergence_delta=True)
    torch.testing.assert_close(delta, torch.zeros(5, dtype=FLOAT))
    for a, b in zip(layers.attribute(x, target=0, internal_batch_size=3), whole, strict=True):
        torch.testing.assert_close(a, b)
    assert diagnose(model, x, 0, Z).ledger.closing <= EXACT


def test_parts_below_a_rule_that_is_not_proportional() -> None:
    """The stretch below such a rule carries relevance, and a part of it may carry none."""
    model = build(lambda: nn.Sequential(Reader(halves, first, 3), linear(2, 3), linear(3, 2)))
    rules = [(["1"], FlatRule, {}), (["0.body", "0.head", "2"], ZeroRule, {})]
    x = drawn(3, 4)
    R, unread = LayerLRP(model, "0.parts.chunk_0", rules).attribute(x, target=0)
    assert not unread.any() and unread.shape == R.shape
    torch.testing.assert_close(R.sum(1), model(x)[:, 0].detach())
    assert diagnose(model, x, 0, rules).ledger.closing <= EXACT


def test_a_segment_with_parts() -> None:
    model = build(lambda: Reader(lambda x: (*halves(x), *x.topk(2), None), gated, 3))
    x = drawn(3, 4)
    expected = LRP(model, Z).attribute(x, target=0)
    actual = LRP(model, Z, checkpoint=["parts"]).attribute(x, target=0)
    torch.testing.assert_close(actual, expected)


def test_a_layer_of_which_no_part_gets_any_takes_no_part() -> None:
    def unread(x: Tensor) -> Tensor:
        halves(x)
        return x

    model = build(lambda: Reader(unread, lambda x: x, 6))
    with pytest.raises(ModelError, match=r"'parts\.chunk_0' takes no part in the score"):
        LayerLRP(model, "parts.chunk_0", Z).attribute(drawn(3, 4), target=0)
    assert diagnose(model, drawn(3, 4), 0, Z).verdict == "stable"


class FromEmbeddings(nn.Module):
    """A transformer on embeddings."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer, self.head = transformer, linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(inputs_embeds=x).last_hidden_state[:, -1])


def transformer(kind: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=7, **tokens, **options)
    return FromEmbeddings(getattr(transformers, f"{kind}Model")(config))


def deit() -> nn.Module:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    return timm.create_model("deit_tiny_patch16_224", num_classes=2, **sizes)  # type: ignore[no-any-return]


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {**SIZES, "intermediate_size": 16}
ENDS = {"cls_token_id": 0, "sep_token_id": 0}
TRANSFORMERS: dict[str, Any] = {
    "GPT-2": (
        lambda: transformer("GPT2", n_embd=8, n_layer=1, n_head=2, use_cache=False),
        "transformer.h.0.attn.split_0",
    ),
    "GPT-NeoX": (
        lambda: transformer("GPTNeoX", **WIDE, use_cache=False),
        "transformer.layers.0.attention.chunk_0",
    ),
    "ModernBERT": (
        lambda: transformer("ModernBert", **WIDE, **ENDS),
        "transformer.layers.0.attn.unbind_0",
    ),
    "DeiT": (deit, "blocks.0.attn.unbind_0"),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_under_cp_lrp(name, one_thread) -> None:
    """Query and key get nothing where attention weights are held constant."""
    make, layer = TRANSFORMERS[name]
    model = build(make)
    x = drawn(2, 3, 8, 8) if name == "DeiT" else drawn(2, 5, 8)
    query, key, value = LayerLRP(model, layer, Z, attention="cp").attribute(x, target=0)
    assert query.shape == key.shape == value.shape
    assert not query.any() and not key.any() and value.any()
    others = LayerLRP(model, layer, Z).attribute(x, target=0)
    assert all(R.any() for R in others)  # under AttnLRP they do
    assert diagnose(model, x, 0, Z, attention="cp").ledger.closing <= EXACT
    assert compare(model, x, 0, Z, "float64", attention="cp").verdict == "equal"
