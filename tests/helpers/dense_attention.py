r"""Dense float64 formulas of the rules of transformers, written from the papers' equations.

In relevance form: each function takes the values of a forward pass and the relevance ``R`` of an
operation's output, and returns the relevance of its inputs as a sum of messages
:math:`R_{i \leftarrow j}`, one example at a time. Nothing of the package is imported, and no
formula uses automatic differentiation.

Conventions: t and u number tokens, p and i features, k outputs. ``c`` holds contributions, with a
message :math:`c_{i..} / \sum c\ R` from each output. A message is 0 where its relevance is 0.

Sources: Bach et al. 2015 (linear layers); Ali et al. 2022, arXiv:2202.07304 (normalisation, eq. 13
and 14; CP-LRP); Achtibat et al. 2024, arXiv:2402.05602 (AttnLRP: softmax, prop. 3.1; element-wise
product, prop. 3.2; matrix product, prop. 3.3).
"""

import math

import torch
from torch import Tensor

Weights = dict[str, tuple[Tensor, Tensor]]


def share(R: Tensor, z: Tensor) -> Tensor:
    """R / z, 0 where there is nothing to share."""
    return torch.where(R == 0, 0.0, R / z)


def linear(x: Tensor, W: Tensor, b: Tensor, R: Tensor, epsilon: float = 0.0) -> Tensor:
    """x_i w_ki / (z_k + epsilon sign z_k) R_k over the last dimension of x. Bach et al. 2015."""
    c = W * x[..., None, :]
    z = c.sum(-1) + b
    z = z + epsilon * (1 - 2 * (z < 0).to(z))
    return (c * share(R, z)[..., None]).sum(-2)


def add(a: Tensor, b: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """a / (a + b) R and b / (a + b) R, 0 for values of -inf that lead nowhere."""
    one = share(R, a + b)
    return torch.where(one == 0, 0.0, a * one), torch.where(one == 0, 0.0, b * one)


def mean_of_tokens(y: Tensor, target: int) -> Tensor:
    """Relevance y_tk / T of each token where mean_t y_tk is the score, for k = target."""
    R = torch.zeros_like(y)
    R[:, target] = y[:, target] / len(y)
    return R


def softmax(x: Tensor, R: Tensor) -> Tensor:
    """R_i = x_i (R_i - s_i sum_j R_j) over the last dimension. AttnLRP, prop. 3.1."""
    e = torch.exp(x - x.amax(-1, keepdim=True))
    s = e / e.sum(-1, keepdim=True)
    difference = R - s * R.sum(-1, keepdim=True)
    return torch.where(difference == 0, 0.0, x * difference)


def matrix_product(A: Tensor, V: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    """O_tp = sum_u A_tu V_up: A_tu V_up / (2 O_tp) R_tp to each factor. AttnLRP, prop. 3.3."""
    c = torch.einsum("tu,up->tup", A, V)
    messages = c * share(R, 2 * c.sum(1))[:, None, :]
    return messages.sum(2), messages.sum(0)


def constant_weights(A: Tensor, V: Tensor, R: Tensor) -> Tensor:
    """O_tp = sum_u A_tu V_up: A_tu V_up / O_tp R_tp to V. Ali et al. 2022."""
    c = torch.einsum("tu,up->tup", A, V)
    return (c * share(R, c.sum(1))[:, None, :]).sum(0)


def attention(
    inputs: tuple[Tensor, Tensor, Tensor],
    weights: Weights,
    heads: int,
    mask: Tensor,
    R: Tensor,
    rule: str,
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance of query, key and value of a multi-head attention.

    Args:
        inputs: Query, key and value, each (tokens, features).
        weights: W and b of the projections ``q``, ``k``, ``v`` and ``out``.
        heads: Number of heads, which the features are divided into.
        mask: What is added to the scores, -inf for keys that are not seen.
        R: Relevance of the output.
        rule: ``"attnlrp"`` or ``"cp"``.
        epsilon: Of the projections.
    """
    q, k, v = (x @ weights[n][0].T + weights[n][1] for n, x in zip("qkv", inputs, strict=True))
    columns = torch.arange(q.shape[1]).chunk(heads)
    weighing, outputs = [], []
    for h in columns:
        e = torch.exp(q[:, h] @ k[:, h].T / math.sqrt(len(h)) + mask)
        weighing.append(e / e.sum(1, keepdim=True))
        outputs.append(weighing[-1] @ v[:, h])

    R = linear(torch.cat(outputs, 1), *weights["out"], R, epsilon)
    R_q, R_k, R_v = (torch.zeros_like(x) for x in (q, k, v))
    for h, A in zip(columns, weighing, strict=True):
        if rule == "cp":
            R_v[:, h] = constant_weights(A, v[:, h], R[:, h])
            continue
        R_A, R_v[:, h] = matrix_product(A, v[:, h], R[:, h])
        scores = q[:, h] @ k[:, h].T / math.sqrt(len(h))
        R_scores, _ = add(scores, mask, softmax(scores + mask, R_A))
        R_q[:, h], R_kT = matrix_product(q[:, h], k[:, h].T, R_scores)
        R_k[:, h] = R_kT.T
    return tuple(
        linear(x, *weights[n], R, epsilon)
        for n, x, R in zip("qkv", inputs, (R_q, R_k, R_v), strict=True)
    )


def normalisation(
    x: Tensor, R: Tensor, eps: float, weight: Tensor, bias: Tensor, centred: bool = True
) -> Tensor:
    """y = w (x - mean) / sqrt(var + eps) + b of one row, the root a constant. Ali et al. 2022.

    Its matrix is diag(w) (1 - 1/n) / sqrt(var + eps); without ``centred`` no mean is subtracted.
    """
    n = len(x)
    centring = torch.eye(n, dtype=x.dtype) - (1 / n if centred else 0)
    root = torch.sqrt((centring @ x).square().mean() + eps)
    c = weight[:, None] * centring / root * x
    return (c * share(R, c.sum(1) + bias)[:, None]).sum(0)


def of_rows(formula, x: Tensor, R: Tensor, *arguments) -> Tensor:
    """The formula of each row of x: rows along the last dimension."""
    pairs = zip(x.flatten(0, -2), R.flatten(0, -2), strict=True)
    return torch.stack([formula(*pair, *arguments) for pair in pairs]).reshape(x.shape)


def gram(x: Tensor, R: Tensor) -> Tensor:
    """Y = X X^T: each of the two factors gets half, and both are X. AttnLRP, prop. 3.3."""
    R_left, R_right = matrix_product(x, x.T, R)
    return R_left + R_right.T


def triple(x: Tensor, R: Tensor) -> Tensor:
    """y_ijk = sum_t a_ti b_tj d_tk, the thirds of x: a third of each message to each factor."""
    a, b, d = x.chunk(3, -1)
    c = torch.einsum("ti,tj,tk->tijk", a, b, d)
    messages = c * share(R, c.sum(0)) / 3
    thirds = messages.sum((2, 3)), messages.sum((1, 3)), messages.sum((1, 2))
    return torch.cat(thirds, -1)
