"""Attention and transformer layers, against dense formulas in relevance form.

Every spelling of one model has to give the relevance that `reference_attention` computes from the
papers' messages, without a fallback. That each comparison can fail is shown beside it: relevance
has to differ from gradient x input, or from that of the other attention rule.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import presets
from tests.helpers import dense_attention as ra
from tests.helpers.agreement import (
    DIFFERENT,
    EXACT,
    TARGET,
    assert_differs,
    drawn,
    explained,
    without_biases,
)
from tests.helpers.attention import (
    MASKS,
    TOKENS,
    Attention,
    E,
    Layer,
    Module,
    ModuleLayer,
    additive,
    batched,
    einsum,
    fused,
    in_place,
    respelled,
    written,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

RULES = ("attnlrp", "cp")
OTHER = {"attnlrp": "cp", "cp": "attnlrp"}


# attention ---------------------------------------------------------------------------------------


@torch.no_grad()
def expected(model: Attention, inputs: tuple[Tensor, ...], rule: str, epsilon: float = 0.0):
    """The dense formulas, one example at a time: the relevance of query, key and value."""
    rows = []
    inputs = inputs if len(inputs) == 3 else inputs * 3
    for y, *x in zip(model.tokens(*inputs), *inputs, strict=True):
        R = ra.mean_of_tokens(y, TARGET)
        mask = additive(model.mask)
        rows.append(ra.attention(x, model.weights(), model.heads, mask, R, rule, epsilon))
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


CORES = [written, in_place, einsum, batched, fused]
MODULES = [
    pytest.param(
        lambda like, b=b, w=w: Module(like, b, w), id=f"module-batch_first={b}-need_weights={w}"
    )
    for b in (True, False)
    for w in (True, False)
]
SPELLINGS = [
    pytest.param(lambda like, core=core: respelled(like, core), id=core.__name__) for core in CORES
] + MODULES
TOKEN_INPUT = drawn(2, TOKENS, E, seed=1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mask", ["unmasked", "bool", "float", "causal"])
@pytest.mark.parametrize("spelled", SPELLINGS)
def test_self_attention(spelled, mask, rule) -> None:
    like = build(partial(Attention, mask=mask))
    model = spelled(like)
    actual = explained(model, TOKEN_INPUT, rule)
    wanted = {r: sum(expected(like, (TOKEN_INPUT,), r)) for r in RULES}
    assert relative_error(actual, wanted[rule]) <= EXACT
    assert_differs(actual, wanted[OTHER[rule]])
    assert_differs(actual, gradient_x_input(model, TOKEN_INPUT, TARGET))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("spelled", [SPELLINGS[2], SPELLINGS[4], SPELLINGS[5]])
def test_epsilon_rule_and_number_of_heads(spelled, heads, rule) -> None:
    like = build(partial(Attention, heads=heads, mask="bool"), seed=2)
    actual = explained(spelled(like), TOKEN_INPUT, rule, presets.epsilon(0.1))
    wanted = sum(expected(like, (TOKEN_INPUT,), rule, epsilon=0.1))
    assert relative_error(actual, wanted) <= EXACT
    assert_differs(actual, explained(spelled(like), TOKEN_INPUT, rule))
    assert_differs(actual, sum(expected(like, (TOKEN_INPUT,), OTHER[rule], 0.1)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelled", SPELLINGS)
def test_cross_attention_of_three_widths(spelled, rule) -> None:
    widths = (E, 6, 3)
    like = build(partial(Attention, mask="float", widths=widths), seed=3)
    inputs = tuple(drawn(2, TOKENS, width, seed=width) for width in widths)
    actual = explained(spelled(like), inputs, rule)
    wanted = expected(like, inputs, rule)
    assert relative_error(actual[2], wanted[2]) <= EXACT
    if rule == "cp":
        assert all(not R.any() for R in (*actual[:2], *wanted[:2]))
    else:
        assert all(relative_error(a, w) <= EXACT for a, w in zip(actual, wanted, strict=True))
    other = expected(like, inputs, OTHER[rule])
    assert_differs(actual[2], other[2])


@pytest.mark.parametrize("spelled", SPELLINGS)
def test_constant_attention_weights_conserve(spelled) -> None:
    model = without_biases(spelled(build(partial(Attention, mask="float"))))
    with torch.no_grad():
        score = model(TOKEN_INPUT)[:, TARGET]
    sums = {rule: explained(model, TOKEN_INPUT, rule).sum((1, 2)) for rule in RULES}
    assert relative_error(sums["cp"], score) <= EXACT
    assert_differs(sums["attnlrp"], score)  # the softmax keeps a part, as a bias does


@pytest.mark.skipif("enable_gqa" not in F.scaled_dot_product_attention.__doc__, reason="torch 2.4")
def test_queries_of_groups_share_keys() -> None:
    def repeated(q: Tensor, k: Tensor, v: Tensor, *_) -> Tensor:
        k, v = (t[:, :2].repeat_interleave(2, dim=1) for t in (k, v))
        return written(q, k, v, None, False)

    def grouped(q: Tensor, k: Tensor, v: Tensor, *_) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k[:, :2], v[:, :2], scale=0.5**0.5, enable_gqa=True
        )

    models = [build(partial(Attention, core, heads=4)) for core in (repeated, grouped)]
    for rule in RULES:
        relevances = [explained(model, TOKEN_INPUT, rule) for model in models]
        assert relative_error(*relevances) <= EXACT
        assert_differs(relevances[0], explained(models[1], TOKEN_INPUT, OTHER[rule]))


def test_a_query_that_sees_no_key_gets_nothing() -> None:
    """Its row of the mask is False throughout, where -inf - (-inf) lies in wait."""

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = MASKS["bool"] & (torch.arange(TOKENS) != 2)[:, None]
            return F.scaled_dot_product_attention(x, x, x, mask).sum(1)

    class Others(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            others = [0, 1, 3, 4]
            mask = MASKS["bool"][others]
            return F.scaled_dot_product_attention(x[:, others], x, x, mask).sum(1)

    for rule in RULES:
        actual = explained(Blind(), TOKEN_INPUT, rule)
        assert actual.isfinite().all()
        assert relative_error(actual, explained(Others(), TOKEN_INPUT, rule)) <= EXACT
        assert_differs(actual, explained(Others(), TOKEN_INPUT, OTHER[rule]))


def test_keys_of_padding_are_not_seen() -> None:
    like = build(partial(Attention, mask="padding"))

    class Padded(Module):
        def forward(self, x: Tensor) -> Tensor:
            padding = MASKS["padding"][:1].isinf().expand(len(x), -1)
            return self.inner(x, x, x, key_padding_mask=padding)[0].mean(1)

    for rule in RULES:
        actual = explained(Padded(like, True, True), TOKEN_INPUT, rule)
        assert relative_error(actual, sum(expected(like, (TOKEN_INPUT,), rule))) <= EXACT
        unmasked = sum(expected(build(Attention), (TOKEN_INPUT,), rule))
        assert_differs(actual, unmasked)


@pytest.mark.parametrize(
    "made_of",
    [
        lambda A: F.dropout(A, 0.1, training=False),
        lambda A: A.masked_fill(~MASKS["bool"], 0.0) * 2,
        lambda A: A / A.sum(-2, keepdim=True),
    ],
    ids=["dropped", "masked", "normalised-over-queries"],
)
def test_what_is_made_of_attention_weights_is_constant_too(made_of) -> None:
    """Under CP-LRP queries and keys get nothing, and values all."""

    class Weighing(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (made_of(F.softmax(q @ k.mT, dim=-1)) @ v).sum((1, 2))

    inputs = tuple(drawn(2, 2, TOKENS, E, seed=seed) for seed in (11, 12, 13))
    R_q, R_k, R_v = explained(Weighing(), inputs, "cp")
    score = Weighing()(*inputs)[:, TARGET]
    assert not R_q.any()
    assert not R_k.any()
    assert relative_error(R_v.sum((1, 2, 3)), score) <= EXACT
    R_q, R_k, _ = explained(Weighing(), inputs, "attnlrp")
    assert min(R_q.abs().max(), R_k.abs().max()) > DIFFERENT


# a transformer layer ------------------------------------------------------------------------------


@torch.no_grad()
def expected_of_layer(model: Layer, inputs: Tensor, rule: str) -> Tensor:
    """The dense formulas: the layer's operations from last to first."""

    def norm(i: int, x: Tensor, R: Tensor) -> Tensor:
        return ra.of_rows(ra.normalisation, x, R, 0.1, model.norms[i].weight, model.norms[i].bias)

    def attend(x: Tensor, R: Tensor) -> Tensor:
        block, mask = model.attention, additive(model.attention.mask)
        return sum(ra.attention((x, x, x), block.weights(), block.heads, mask, R, rule))

    def mlp(x: Tensor, R: Tensor) -> Tensor:
        up, down = model.up, model.down
        R = ra.linear(F.gelu(up(x)), down.weight, down.bias, R)
        return ra.linear(x, up.weight, up.bias, R)

    rows = []
    first, second = model.norms
    for x in inputs:
        R = ra.mean_of_tokens(model.tokens(x[None])[0], TARGET)
        if model.norm_first:
            attended = model.attention.tokens(first(x)[None])[0]
            y = x + attended
            R_skip, R = ra.add(y, model.mlp(second(y)), R)
            R_skip, R = ra.add(x, attended, R_skip + norm(1, y, mlp(second(y), R)))
            rows.append(R_skip + norm(0, x, attend(first(x), R)))
        else:
            attended = model.attention.tokens(x[None])[0]
            y = first(x + attended)
            R_skip, R = ra.add(y, model.mlp(y), norm(1, y + model.mlp(y), R))
            R_skip, R = ra.add(x, attended, norm(0, x + attended, R_skip + mlp(y, R)))
            rows.append(R_skip + attend(x, R))
    return torch.stack(rows)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mask", ["unmasked", "bool", "causal"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["norm_first", "norm_last"])
def test_transformer_layer(norm_first, mask, rule) -> None:
    like = build(partial(Layer, norm_first, mask))
    wanted = {r: expected_of_layer(like, TOKEN_INPUT, r) for r in RULES}
    for model in (like, ModuleLayer(like)):
        actual = explained(model, TOKEN_INPUT, rule)
        assert relative_error(actual, wanted[rule]) <= EXACT
        assert_differs(actual, wanted[OTHER[rule]])
        assert_differs(actual, gradient_x_input(model, TOKEN_INPUT, TARGET))


@pytest.mark.parametrize("trained", [True, False], ids=["grad", "frozen"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["norm_first", "norm_last"])
def test_stacked_layers_conserve(norm_first, trained) -> None:
    """Frozen parameters too: there torch has a fast path that no operation could be seen in."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(
                E, 2, 12, activation="gelu", batch_first=True, norm_first=norm_first
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            layer = nn.TransformerDecoderLayer(
                E, 4, 12, activation=F.silu, batch_first=True, norm_first=norm_first
            )
            self.decoder = nn.TransformerDecoder(layer, 2)
            self.head = nn.Linear(E, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.decoder(y, self.encoder(x)).amax(dim=1))

    model = without_biases(build(Stack)).requires_grad_(trained)
    inputs = (TOKEN_INPUT, drawn(2, 3, E, seed=9))
    with torch.no_grad():
        score = model(*inputs)[:, TARGET]
    actual = explained(model, inputs, "cp")
    assert relative_error(sum(R.sum((1, 2)) for R in actual), score) <= EXACT
    assert all(R.abs().max() > DIFFERENT for R in actual)
    assert_differs(sum(R.sum((1, 2)) for R in explained(model, inputs)), score)
