"""Flex attention, and what else torch.func maps inside a model, against the same without."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, plan, presets
from captum_lrp_stab.errors import ModelError
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

flex = pytest.importorskip("torch.nn.attention.flex_attention")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning"),
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="needs PyTorch 2.6"),
]
TOKENS, HEADS = 5, 2
X = torch.randn(2, TOKENS, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BIAS = torch.randn(HEADS, TOKENS, TOKENS, generator=torch.Generator().manual_seed(2)).double()
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
AWAY = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
DOCUMENT = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
SAME = (DOCUMENT[:, None, :, None] == DOCUMENT[:, None, None, :]) & CAUSAL
SLOPES = torch.tensor([0.5, 0.25]).double()
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Attends(nn.Module):
    """Projections, attention of two heads, and a mean over the tokens."""

    def __init__(self, attention: Attention, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.q = nn.Linear(8, 4 * HEADS)
        self.k, self.v = nn.Linear(8, 4 * kv_heads), nn.Linear(8, 4 * kv_heads)
        self.out = nn.Linear(4 * HEADS, 3)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(self.attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def mask(function: Callable[..., Tensor], batch: int | None = None) -> object:
    return flex.create_block_mask(function, batch, None, TOKENS, TOKENS, device="cpu")


def with_scores(change: Callable[[Tensor], Tensor]) -> Attention:
    return lambda q, k, v: torch.softmax(change(q @ k.mT / 2), -1) @ v


def sdpa(**options) -> Attention:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def by_flex(**options) -> Attention:
    return lambda q, k, v: flex.flex_attention(q, k, v, **options)


PAIRS: dict[str, tuple[Attention, Attention]] = {
    "plain": (by_flex(), sdpa()),
    "scale": (by_flex(scale=0.3), sdpa(scale=0.3)),
    "causal": (by_flex(block_mask=mask(lambda b, h, i, j: i >= j)), sdpa(is_causal=True)),
    "mask made inside": (
        lambda q, k, v: flex.flex_attention(q, k, v, block_mask=mask(lambda b, h, i, j: i >= j)),
        sdpa(is_causal=True),
    ),
    "documents": (
        by_flex(
            block_mask=mask(
                lambda b, h, i, j: (DOCUMENT[b][i] == DOCUMENT[b, j]) & (i >= j), len(DOCUMENT)
            )
        ),
        sdpa(attn_mask=SAME),
    ),
    "bias": (by_flex(score_mod=lambda s, b, h, i, j: s + BIAS[h, i, j]), sdpa(attn_mask=BIAS)),
    "slopes": (
        by_flex(score_mod=lambda s, b, h, i, j: s - SLOPES[h] * (i - j)),
        sdpa(attn_mask=-SLOPES[:, None, None] * AWAY),
    ),
    "minus infinity": (
        by_flex(score_mod=lambda s, b, h, i, j: torch.where(i >= j, s, -math.inf)),
        sdpa(is_causal=True),
    ),
    "capped": (
        by_flex(score_mod=lambda s, b, h, i, j: 2 * torch.tanh(s / 2)),
        with_scores(lambda s: 2 * torch.tanh(s / 2)),
    ),
    "compiled": (
        lambda q, k, v: torch.compile(flex.flex_attention)(q, k, v),
        sdpa(),
    ),
    "a query without keys": (
        by_flex(block_mask=mask(lambda b, h, i, j: i > j)),
        sdpa(attn_mask=AWAY > 0),
    ),
}


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
@pytest.mark.parametrize("name", PAIRS)
def test_it_is_attention_written_otherwise(name, attention) -> None:
    models = [build(lambda f=f: Attends(f)) for f in PAIRS[name]]
    if name != "compiled":  # which is for float32
        with torch.no_grad():  # torch's own, by vmap
            torch.testing.assert_close(models[0](X), models[1](X))
    options = {"attention": attention, "strict": True}
    found, expected = (
        LRP(m, presets.epsilon(0.1), **options).attribute(X, target=1) for m in models
    )
    assert relative_error(found, expected) <= 1e-12
    assert plan(models[0], X).fallbacks == ()
    flat = [LRP(m, [(["out"], FlatRule, {})]).attribute(X, target=1) for m in models]
    assert relative_error(*flat) <= 1e-9


def test_grouped_queries() -> None:
    def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa()(q, k.repeat_interleave(HEADS, 1), v.repeat_interleave(HEADS, 1))

    found, expected = (
        LRP(build(lambda f=f: Attends(f, 1)), strict=True).attribute(X, target=1)
        for f in (by_flex(enable_gqa=True), repeated)
    )
    assert relative_error(found, expected) <= 1e-12


def test_scores_may_change_by_data() -> None:
    class Biased(Attends):
        def forward(self, x: Tensor) -> Tensor:
            bias = x.sum(-1)
            self.attention = (
                by_flex(score_mod=lambda s, b, h, i, j: s + bias[b, j])
                if self.flexible
                else with_scores(lambda s: s + bias[:, None, None])
            )
            return super().forward(x)

    found = []
    for flexible in (True, False):
        model = build(lambda: Biased(sdpa()))
        model.flexible = flexible
        found.append(LRP(model, strict=True).attribute(X, target=1))
    assert relative_error(*found) <= 1e-12


def test_what_cannot_be_given_all_scores_is_refused() -> None:
    for change, reason in (
        (lambda s, b, h, i, j: s + BIAS[h][i, j], "IndexError"),
        (lambda s, b, h, i, j: s + (s * torch.ones(())).flatten()[0], "another value"),
    ):
        model = build(lambda change=change: Attends(by_flex(score_mod=change)))
        with pytest.raises(ModelError, match=rf"flex attention: .*{reason}.* broadcast"):
            LRP(model).attribute(X, target=1)


def test_torch_is_as_it_was() -> None:
    model = build(lambda: Attends(by_flex()))
    LRP(model).attribute(X, target=1)
    x = X.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        model(x)
    assert torch._dynamo.eval_frame._stance.stance == "default"


# torch.func --------------------------------------------------------------------------------------


class Mapped(nn.Module):
    """A scale that torch.func makes, of what the model is or of what it is given."""

    def __init__(self, scale: Callable[["Mapped", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(8, 4), nn.Linear(4, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.mean(1)) * self.scale(self, x))


def test_what_it_maps_may_be_constant() -> None:
    def square(weight: Tensor) -> Tensor:
        return (weight * weight).sum()

    for mapped, plain in (
        (
            lambda m, x: torch.vmap(square)(m.first.weight),
            lambda m, x: m.first.weight.square().sum(1),
        ),
        (lambda m, x: torch.func.grad(square)(m.first.bias), lambda m, x: 2 * m.first.bias),
        (
            lambda m, x: torch.vmap(lambda i: i * 2.0)(torch.arange(4)).double(),
            lambda m, x: 2.0 * torch.arange(4),
        ),
    ):
        found, expected = (
            LRP(build(lambda f=f: Mapped(f)), strict=True).attribute(X, target=1)
            for f in (mapped, plain)
        )
        assert relative_error(found, expected) <= 1e-12


def test_what_it_maps_may_not_be_data() -> None:
    for scale in (
        lambda m, x: torch.vmap(m.first)(x[:, 0]),
        lambda m, x: torch.func.grad(lambda y: (y * y).sum())(x)[:, 0, :4],
        lambda m, x: torch.vmap(lambda row: row * x[0, 0, 0])(m.first.weight).sum(1),
    ):
        with pytest.raises(ModelError, match=r"torch\.func"):
            LRP(build(lambda scale=scale: Mapped(scale))).attribute(X, target=1)
