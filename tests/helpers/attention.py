"""Attention and a transformer layer in many spellings: by hand, and the modules of torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.agreement import drawn

E, TOKENS = 8, 5


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if is_bool else scores + mask
    return F.softmax(scores, dim=-1) @ v


def in_place(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = torch.matmul(q, k.mT)
    scores *= q.shape[-1] ** -0.5
    scores += additive("causal" if causal else mask)
    return scores.softmax(-1).matmul(v)


def einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    scores = torch.einsum("nhtp,nhup->nhtu", q / math.sqrt(q.shape[-1]), k)
    scores = scores.add(additive("causal" if causal else mask))
    return torch.einsum("nhtu,nhup->nhtp", torch.softmax(scores, -1), v)


def batched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    shape, (q, k, v) = q.shape, (t.flatten(0, 1) for t in (q, k, v))
    mask = additive("causal" if causal else mask).expand(len(q), -1, -1)
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
    return torch.bmm(nn.Softmax(dim=-1)(scores), v).view(shape)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


MASKS: dict[str, Tensor | None] = {
    "unmasked": None,
    "bool": (drawn(TOKENS, TOKENS, seed=5) > 0) | torch.eye(TOKENS, dtype=torch.bool),
    "float": drawn(TOKENS, TOKENS, seed=6).masked_fill(
        drawn(TOKENS, TOKENS, seed=7) > 1, -math.inf
    ),
    "causal": None,
    "padding": torch.tensor([0.0, -math.inf, 0.0, 0.0, -math.inf]).double().expand(TOKENS, -1),
}


def additive(mask: str | Tensor | None) -> Tensor:
    """What a mask, or the mask of a name, adds to the scores."""
    if isinstance(mask, str):
        causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        mask = causal if mask == "causal" else MASKS[mask]
    if mask is None:
        return torch.zeros(TOKENS, TOKENS, dtype=torch.float64)
    zero = torch.zeros(mask.shape, dtype=torch.float64)
    return zero.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask


class Attention(nn.Module):
    """Projections, several heads, attention as spelled by ``core``, and a mean over the tokens."""

    def __init__(self, core=written, mask="unmasked", heads=2, widths=(E, E, E)) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, E) for width in widths)
        self.out = nn.Linear(E, E)
        self.core, self.mask, self.heads = core, mask, heads

    def tokens(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None):
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self.q(query), self.k(key), self.v(value)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = self.core(q, k, v, MASKS[self.mask], self.mask == "causal")
        return self.out(out.transpose(1, 2).flatten(2))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.tokens(*inputs).mean(dim=1)

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {n: (getattr(self, n).weight, getattr(self, n).bias) for n in ("q", "k", "v", "out")}


class Module(nn.Module):
    """The same by ``nn.MultiheadAttention``."""

    def __init__(self, like: Attention, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        kdim, vdim = like.k.in_features, like.v.in_features
        self.inner = nn.MultiheadAttention(
            E, like.heads, kdim=kdim, vdim=vdim, batch_first=batch_first
        )
        copied(self.inner, like)
        self.eval().double()
        self.mask, self.batch_first, self.need_weights = like.mask, batch_first, need_weights

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None):
        if not self.batch_first:
            query, key, value = (t if t is None else t.transpose(0, 1) for t in (query, key, value))
        key = query if key is None else key
        mask = None if self.mask == "unmasked" else additive(self.mask)
        if mask is not None and self.mask != "float":
            mask = mask.isinf()  # True where nothing is seen
        out, _ = self.inner(
            query,
            key,
            key if value is None else value,
            attn_mask=mask,
            is_causal=self.mask == "causal",
            need_weights=self.need_weights,
        )
        return out.mean(dim=1 if self.batch_first else 0)


@torch.no_grad()
def copied(inner: nn.MultiheadAttention, like: Attention) -> None:
    projections = (like.q, like.k, like.v)
    if inner.in_proj_weight is not None:
        inner.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
    else:
        for name, p in zip("qkv", projections, strict=True):
            getattr(inner, f"{name}_proj_weight").copy_(p.weight)
    inner.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    inner.out_proj.load_state_dict(like.out.state_dict())


def respelled(like: Attention, core) -> Attention:
    widths = (like.q.in_features, like.k.in_features, like.v.in_features)
    model = Attention(core, like.mask, like.heads, widths).double()
    model.load_state_dict(like.state_dict())
    return model


class Layer(nn.Module):
    """A transformer layer by hand, and a mean over the tokens."""

    def __init__(self, norm_first: bool, mask: str = "unmasked") -> None:
        super().__init__()
        self.attention = Attention(mask=mask)
        self.up, self.down = nn.Linear(E, 12), nn.Linear(12, E)
        self.norms = nn.ModuleList([nn.LayerNorm(E, 0.1), nn.LayerNorm(E, 0.1)])
        for norm in self.norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
        self.norm_first = norm_first

    def mlp(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))

    def tokens(self, x: Tensor) -> Tensor:
        first, second = self.norms
        if self.norm_first:
            x = x + self.attention.tokens(first(x))
            return x + self.mlp(second(x))
        x = first(x + self.attention.tokens(x))
        return second(x + self.mlp(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x).mean(dim=1)


class ModuleLayer(nn.Module):
    """The same by ``nn.TransformerEncoderLayer``."""

    def __init__(self, like: Layer) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(
            E,
            like.attention.heads,
            12,
            activation="gelu",
            layer_norm_eps=0.1,
            batch_first=True,
            norm_first=like.norm_first,
        )
        copied(self.inner.self_attn, like.attention)
        self.inner.linear1, self.inner.linear2 = like.up, like.down
        self.inner.norm1, self.inner.norm2 = like.norms
        self.mask = like.attention.mask
        self.eval().double()

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask == "unmasked" else additive(self.mask)
        return self.inner(x, mask, is_causal=self.mask == "causal").mean(dim=1)
