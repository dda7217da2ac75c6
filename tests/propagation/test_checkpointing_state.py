"""Segments with a state, which make something else when they run again, are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, presets
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.propagation import repeats
from tests.helpers.networks import build
from tests.helpers.segmented import Around, Part, X, assert_as_without, plain, relevance

pytestmark = pytest.mark.usefixtures("one_thread")


def attend(q: Tensor, keys: Tensor) -> Tensor:
    """Attention that looks back: of keys that stand there twice it sees the first."""
    visible = torch.ones(len(q), len(keys), dtype=torch.bool).tril()
    return (q @ keys.mT).masked_fill(~visible, -1e9).softmax(-1) @ keys


def caching(part: Part, x: Tensor) -> Tensor:
    k = part.layer(x)
    part.state = k if isinstance(part.state, int) else torch.cat([part.state, k])
    return attend(x, part.state)


def caching_values_alone(part: Part, x: Tensor) -> Tensor:
    k = part.layer(x)
    keys = k if isinstance(part.state, int) else torch.cat([part.state, k])
    part.state = keys.detach()
    return attend(x, keys)


def counting_in_the_last_bits(part: Part, x: Tensor) -> Tensor:
    part.state += 1
    return part.layer(x) * (1 + 1e-13 * part.state)


def turning(part: Part, x: Tensor) -> Tensor:
    part.state += 1  # the sum of all values is the same
    return part.layer(x).roll(part.state, 1)


def one_value_of_many(part: Part, x: Tensor) -> Tensor:
    part.state += 1
    y = part.layer(x)
    return torch.cat([y[:, :5], y[:, 5:] + 1e-9 * part.state], 1)


def noisy(part: Part, x: Tensor) -> Tensor:
    return part.layer(x) + 1e-8 * torch.randn(6, dtype=x.dtype)


def with_a_buffer(part: Part, x: Tensor) -> Tensor:
    if not hasattr(part, "mean"):
        part.register_buffer("mean", torch.zeros(6, dtype=x.dtype))
    part.mean.lerp_(x.detach().mean(0), 0.1)
    return part.layer(x - part.mean)


def by_turns(part: Part, x: Tensor) -> Tensor:
    """The same values by other operations, under which relevance is another."""
    part.state += 1
    y = part.layer(x)
    return y * torch.ones_like(y) if part.state % 2 else (y + y.detach()) / 2


def failing(part: Part, x: Tensor) -> Tensor:
    part.state += 1
    return part.layer(x[:, : 7 - part.state])


STATES: dict[str, tuple[Any, str]] = {
    "a cache": (caching, "read values of its earlier run"),
    "a cache without a graph": (caching_values_alone, "computed something else"),
    "a counter in the last bits": (counting_in_the_last_bits, "gave other values"),
    "an order": (turning, "gave other values"),
    "one value of many": (one_value_of_many, "gave other values"),
    "noise": (noisy, "gave other values"),
    "a buffer": (with_a_buffer, "gave other values"),
    "by turns": (by_turns, "computed something else"),
    "a failure": (failing, r"failed when it ran again \(RuntimeError: mat1 and mat2"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_refused(name) -> None:
    inside, how = STATES[name]
    model = build(lambda: Around(Part(inside), plain))
    assert relevance(model, X, ()).isfinite().all()
    model = build(lambda: Around(Part(inside), plain))
    with pytest.raises(ModelError, match=rf"^checkpoint: 'seg' {how}.*keeps a state.*leave it out"):
        relevance(model, X, ["seg"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    explainer = LRP(build(lambda: Around(Part(inside), plain)), checkpoint=["seg"])
    with pytest.raises(ModelError, match="'seg'"):
        explainer.attribute_many(X, [0, 1])


def counted(part: Part, x: Tensor) -> Tensor:
    part.state += 1
    return part.layer(x).relu()


def looked_at_once(part: Part, x: Tensor) -> Tensor:
    y = part.layer(x)
    if not part.state:
        part.state = float((y.exp().sum() / y.abs().mean()).detach())
    return y.relu()


@pytest.mark.parametrize("inside", [counted, looked_at_once])
def test_a_state_that_changes_nothing_of_it_is_none(inside) -> None:
    assert_as_without(build(lambda: Around(Part(inside), plain)), X)


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "a view": lambda y: y[:, ::2].repeat(1, 2),
    "transposed": lambda y: y.mT.contiguous().mT,
    "expanded": lambda y: y[:, :1].expand(-1, 6),
    "with infinity": lambda y: torch.cat([y[:, :5], torch.full_like(y[:, 5:], torch.inf)], 1),
    "complex": lambda y: torch.fft.fft(y).conj(),
}


DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("form", "dtype"),  # no Fourier transform has bfloat16
    [(f, d) for f in FORMS for d in DTYPES if (f, d) != ("complex", torch.bfloat16)],
)
def test_values_of_every_form_repeat_themselves(form, dtype) -> None:
    def read(model: Around, x: Tensor) -> Tensor:
        y = model.seg(model.pre(x))
        return model.head(y.real if y.is_complex() else y.clamp(-9, 9))

    model = build(
        lambda: Around(Part(lambda part, x: FORMS[form](part.layer(x))), read), dtype=dtype
    )
    assert_as_without(model, X.to(dtype), rules=presets.epsilon(0.1))


PROJECTED: dict[str, Callable[[Tensor], Tensor]] = {
    "one value": lambda t: t.index_put((torch.tensor(1), torch.tensor(2)), t[1, 2] * 1.5),
    "an order": lambda t: t.roll(1, 0),
    "another order": lambda t: t.mT.reshape(t.shape),
    "noise": lambda t: t + 1e-2 * torch.randn(t.shape, dtype=t.dtype),
}


@pytest.mark.parametrize("change", PROJECTED)
def test_values_off_the_cpu(change, monkeypatch) -> None:
    """As they are compared on a device that may round in another order each time."""
    monkeypatch.setattr(repeats._Values, "is_exact", staticmethod(lambda t: False))
    t = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    t[0, 0] = torch.inf
    values = repeats._Values(t)
    assert values == repeats._Values(t.clone())
    last_bits = torch.nextafter(t, torch.zeros(())).where(t.isfinite(), t)
    assert values == repeats._Values(last_bits)
    assert values != repeats._Values(PROJECTED[change](t))
    assert values != repeats._Values(t[:19])
    assert values != repeats._Values(t.double())
    assert repeats._Values(t[:0]) == repeats._Values(t[:0])


def test_a_sum_in_no_fixed_order() -> None:
    """Refused on several threads, and no state under deterministic algorithms."""
    index = torch.randint(0, 5, (200_000,), generator=torch.Generator().manual_seed(1))

    def gather(part: Part, x: Tensor) -> Tensor:
        return torch.zeros(5, 6).index_put((index,), part.layer(x), accumulate=True)

    model = build(lambda: Around(Part(gather), plain), dtype=torch.float32)
    x = torch.randn(200_000, 6)
    assert relevance(model, x, ["seg"]).isfinite().all()  # on one thread the order is fixed
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        assert relevance(model, x, ["seg"]).isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


# language models of transformers ------------------------------------------------------------------

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}
WIDTHS = {"hidden_size": 8, "intermediate_size": 12, "max_position_embeddings": 16}
GROUPS = {"num_key_value_heads": 2, "head_dim": 2}
LANGUAGE_MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "Llama": ({**SIZES, **WIDTHS, **GROUPS}, "model.layers"),
    "Mistral": ({**SIZES, **WIDTHS, **GROUPS, "sliding_window": 3}, "model.layers"),
    "Qwen3": ({**SIZES, **WIDTHS, **GROUPS}, "model.layers"),
    "GPTNeoX": ({**SIZES, **WIDTHS}, "gpt_neox.layers"),
    "GPT2": ({"n_embd": 8, "n_layer": 2, "n_head": 4, "n_positions": 16}, "transformer.h"),
}


class Logits(nn.Module):
    """The last token's logits, of embeddings."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.model(inputs_embeds=embeddings, **self.options).logits[:, -1]


def language_model(kind: str, attention: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        bos_token_id=0, eos_token_id=0, **LANGUAGE_MODELS[kind][0]
    )
    config._attn_implementation = attention
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return build(lambda: Logits(getattr(transformers, name)(config), **options))


TOKENS = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_key_value_cache(kind, attention) -> None:
    layers = [f"model.{LANGUAGE_MODELS[kind][1]}.{i}" for i in range(2)]
    model = language_model(kind, attention)
    whole = relevance(model, TOKENS, ())
    remedy = r"use_cache=True, a key-value cache.*: call the model with use_cache=False"
    own = {"GPT2": "attn", "GPTNeoX": "attention"}.get(kind, "self_attn")
    for checkpoint in (layers, layers[:1], [f"{layers[1]}.{own}"]):
        with pytest.raises(ModelError, match=rf"^checkpoint: '{checkpoint[-1]}' .*{remedy}"):
            relevance(model, TOKENS, checkpoint)
    without = language_model(kind, attention, use_cache=False)
    assert torch.equal(relevance(without, TOKENS, ()), whole)
    assert torch.equal(relevance(without, TOKENS, layers), whole)
    around = [layers[0].rsplit(".", 2)[0]]  # which makes a cache of its own in each run
    assert torch.equal(relevance(model, TOKENS, around), whole)
