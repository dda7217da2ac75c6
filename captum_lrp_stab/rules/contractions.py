"""Which product with weights a call computes: a linear layer in another spelling.

``x @ w``, ``torch.addmm(b, x, w)``, ``torch.einsum("bi,io->bo", x, w)`` and their like are a linear
layer where the one factor depends on the input and the others are weights, and where the product
sums over elements of the input: ``x * w`` does not.

Products are written in the sublist form of :func:`torch.einsum`: a tuple of numbers for each factor
and for the result, which name their dimensions.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_lrp_stab.operations.calls import TorchCall, out_of_place
from captum_lrp_stab.rules.affine import Affine, Contraction, Dense, Grouped

Dims = tuple[int, ...]


class Product(NamedTuple):
    """A product of tensors, and what is added to it."""

    factors: Sequence[Tensor]
    dims: Sequence[Dims]  # of each factor
    result: Dims
    summand: Tensor | None = None
    alpha: float = 1  # multiplies the product
    beta: float = 1  # multiplies the summand
    ends: Dims | None = None  # of groups of rows of the first factor, with a matrix each


def product_of(call: TorchCall) -> Product | None:
    """Return the product that a call computes; None if it is of a kind that is not known."""
    read = _READERS.get(call.name)
    if read is None or call.writes:
        return None
    try:
        return read(call)
    except (IndexError, KeyError, TypeError, ValueError):  # torch's to refuse
        return None


IsWeights = Callable[[Tensor], bool]
"""Whether a tensor is a parameter of the model, or made of parameters."""


def is_layer(call: TorchCall, is_weights: IsWeights) -> bool:
    """Return whether a call is a linear layer."""
    product = _with_weights(call, is_weights)
    if product is None:
        return False
    return product.summand is None or not call.is_data(product.summand)


def apart(call: TorchCall, is_weights: IsWeights) -> Callable[..., Tensor] | None:
    """Return a call as a layer followed by the other operations that it does.

    None where a call is no layer, or nothing else. ``torch.addmm(x, y, w)`` with data ``x`` and
    ``y`` is a layer and a sum, and ``z.addmm_(y, w)`` writes as well.
    """
    func, plain = call.func, out_of_place(call.func)
    product = _with_weights(TorchCall(plain, call.args, call.kwargs, call.data), is_weights)
    if product is None or product.summand is None:
        return None
    if plain is not func:
        return lambda target, *args, **kwargs: target.copy_(plain(target, *args, **kwargs))
    if not product.beta or not call.is_data(product.summand):
        return None

    name = call.name

    def separate(*args: Any, **kwargs: Any) -> Tensor:
        parts = product_of(TorchCall(func, args, kwargs))
        assert parts is not None and parts.summand is not None
        multiply = _WITHOUT_SUMMAND[name]
        summand = parts.summand if parts.beta == 1 else parts.beta * parts.summand
        return torch.add(summand, multiply(*parts.factors), alpha=parts.alpha)

    return separate


_WITHOUT_SUMMAND: dict[str, Callable[..., Tensor]] = {
    "addbmm": lambda a, b: torch.einsum("bij,bjk->ik", a, b),
    "addmm": torch.mm,
    "addmv": torch.mv,
    "baddbmm": torch.bmm,
}


def _with_weights(call: TorchCall, is_weights: IsWeights) -> Product | None:
    """Return the product of a call if it is one of data with weights, which sums over the data."""
    if not call.kind.contracts:
        return None
    tensors = call.tensors
    if len({t.is_complex() for t in tensors}) > 1 or not any(map(is_weights, tensors)):
        return None
    product = product_of(call)
    if product is None:
        return None
    is_factor = [call.is_data(t) for t in product.factors]
    others = [t for t, factor in zip(product.factors, is_factor, strict=True) if not factor]
    if sum(is_factor) != 1 or not all(map(is_weights, others)):
        return None
    if product.ends is not None and not is_factor[0]:
        return None  # each weight in one of several matrices
    return None if {*product.dims[is_factor.index(True)]} <= {*product.result} else product


def of_call(call: TorchCall) -> tuple[Affine, Tensor]:
    """Return the map of a layer, and its input."""
    product = product_of(call)
    assert product is not None  # is_layer has been asked
    index = [call.is_data(t) for t in product.factors].index(True)
    x, dims = product.factors[index], product.dims[index]
    if product.ends is not None:
        ends = (0, *product.ends, len(x))
        sizes = tuple(end - start for start, end in pairwise(ends))
        return Grouped(product.factors[1].detach(), None, sizes), x
    others = [i for i in range(len(product.factors)) if i != index]
    weight, own = _together(product, others, {*dims, *product.result})
    weight = weight if product.alpha == 1 else weight * product.alpha
    summand = product.summand if product.beta else None
    bias = None if summand is None else summand.detach() * product.beta
    return _affine(x, dims, weight, own, product.result, bias), x


def _together(product: Product, others: Sequence[int], needed: set[int]) -> tuple[Tensor, Dims]:
    """Return one tensor of weights for all factors but the input, and its dimensions."""
    factors = [(product.factors[i].detach(), product.dims[i]) for i in others]
    found = tuple(dict.fromkeys(d for _, dims in factors for d in dims if d in needed))
    if len(factors) == 1 and found == factors[0][1]:
        return factors[0]
    operands = [value for factor, dims in factors for value in (factor, list(dims))]
    return torch.einsum(*operands, list(found)), found


def _affine(
    x: Tensor, dims: Dims, weight: Tensor, own: Dims, result: Dims, bias: Tensor | None
) -> Affine:
    *rest, last = dims
    *kept, unit = result or (last,)
    is_dense = set(own) == {last, unit} and kept == rest and len({*dims, unit}) == len(dims) + 1
    if is_dense:
        matrix = weight if own == (unit, last) else weight.T
        vector = None if bias is None else _vector(bias, len(matrix))
        if x.shape[-1] == matrix.shape[1] and (bias is None or vector is not None):
            return Dense(matrix, vector)
    return Contraction(weight, bias, dims, own, result)


def _vector(bias: Tensor, size: int) -> Tensor | None:
    """Return what is added to each vector of outputs as a vector, None if it is none."""
    return bias.reshape(-1) if bias.shape[-1:] == (size,) and bias.numel() == size else None


# from a call to its product ----------------------------------------------------------------------


def _matmul(call: TorchCall) -> Product:
    a, b = call.argument(0, "input"), _second(call)
    return Product((a, b), *_matrices(a.dim(), b.dim()))


def _matrices(a: int, b: int) -> tuple[Sequence[Dims], Dims]:
    """Return the dimensions of ``a @ b``, given how many there are."""
    row, inner, column = 0, 1, 2
    batch = tuple(range(3, 1 + max(a, b)))  # aligned at the right
    left = (inner,) if a == 1 else (*batch[len(batch) - a + 2 :], row, inner)
    right = (inner,) if b == 1 else (*batch[len(batch) - b + 2 :], inner, column)
    result = (*batch, *(() if a == 1 else (row,)), *(() if b == 1 else (column,)))
    return (left, right), result


def _second(call: TorchCall) -> Any:
    names = {"other", "mat2", "vec", "vec2", "tensor"} & call.kwargs.keys()
    return call.args[1] if len(call.args) > 1 else call.kwargs[names.pop()]


def _rmatmul(call: TorchCall) -> Product:
    return _matmul(TorchCall(call.func, (call.args[1], call.args[0]), {}))


def _inner(call: TorchCall) -> Product:
    a, b = call.args[0], _second(call)
    first, second = tuple(range(1, a.dim())), tuple(range(a.dim(), a.dim() + b.dim() - 1))
    return Product((a, b), ((*first, 0), (*second, 0)), (*first, *second))


def _vecdot(call: TorchCall) -> Product:
    a, b = call.args[0], call.args[1]
    if call.kwargs.get("dim", -1) != -1:
        raise ValueError
    n = max(a.dim(), b.dim())
    dims = tuple(range(n))
    return Product((a, b), (dims[n - a.dim() :], dims[n - b.dim() :]), dims[:-1])


def _added(names: tuple[str, str], sums_batch: bool = False) -> Callable[[TorchCall], Product]:
    """Return the reader of a product of two with a summand, such as addmm."""

    def read(call: TorchCall) -> Product:
        summand, a, b = (call.argument(i, name) for i, name in enumerate(("input", *names)))
        dims, result = _matrices(a.dim(), b.dim())
        result = result[1:] if sums_batch else result
        beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
        return Product((a, b), dims, result, summand, alpha, beta)

    return read


def _einsum(call: TorchCall) -> Product:
    if isinstance(call.args[0], str):
        inputs, arrow, output = call.args[0].replace(" ", "").replace("...", ".").partition("->")
        factors = call.args[1] if isinstance(call.args[1], (list, tuple)) else call.args[1:]
        return _from_subscripts(factors, inputs.split(","), output if arrow else None)
    pairs = call.args[: len(call.args) // 2 * 2]
    result = None if len(pairs) == len(call.args) else _dotted(call.args[-1])
    return _from_subscripts(pairs[::2], list(map(_dotted, pairs[1::2])), result)


def _dotted(dims: Sequence[Any]) -> Sequence[Any]:
    return ["." if d is ... else d for d in dims]


def _from_subscripts(
    factors: Sequence[Tensor],
    subscripts: Sequence[Sequence[Any]],
    result: Sequence[Any] | None,
) -> Product:
    """Return a product whose dimensions are named by symbols, with ``.`` for an ellipsis."""
    symbols = [symbol for s in subscripts for symbol in s if symbol != "."]
    if result is None:
        once = sorted(symbol for symbol in set(symbols) if symbols.count(symbol) == 1)
        result = [".", *once] if any("." in s for s in subscripts) else once
    number = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    hidden = [t.dim() - len(s) + 1 for t, s in zip(factors, subscripts, strict=True) if "." in s]
    dots = tuple(range(len(number), len(number) + max(hidden, default=0)))

    def dims(named: Sequence[Any], count: int) -> Dims:
        own = dots[len(dots) - count :]
        return tuple(d for s in named for d in (own if s == "." else (number[s],)))

    each = [dims(s, t.dim() - len(s) + 1) for t, s in zip(factors, subscripts, strict=True)]
    return Product(factors, each, dims(result, len(dots)))


def _tensordot(call: TorchCall) -> Product:
    a, b = call.argument(0, "a"), call.argument(1, "b")
    summed = call.argument(2, "dims")
    summed = 2 if summed is None else summed.tolist() if isinstance(summed, Tensor) else summed
    if isinstance(summed, int):
        summed = list(range(a.dim() - summed, a.dim())), list(range(summed))
    of_a, of_b = ([d % t.dim() for d in s] for t, s in zip((a, b), summed, strict=True))
    dims = list(range(a.dim())), list(range(a.dim(), a.dim() + b.dim()))
    for i, j in zip(of_a, of_b, strict=True):
        dims[1][j] = dims[0][i]
    result = [d for i, d in enumerate(dims[0]) if i not in of_a]
    result += [d for j, d in enumerate(dims[1]) if j not in of_b]
    return Product((a, b), (tuple(dims[0]), tuple(dims[1])), tuple(result))


def _grouped(call: TorchCall) -> Product:
    a, b = call.argument(0, "mat_a"), call.argument(1, "mat_b")
    ends = call.argument(2, "offs")
    if call.kwargs.get("bias") is not None or b.dim() != 3 or (a.dim() == 2) != (ends is not None):
        raise ValueError
    if ends is None:
        return Product((a, b), *_matrices(3, 3))
    return Product((a, b), ((0, 1), (2, 1, 3)), (0, 3), ends=tuple(ends.tolist()))


def _bilinear(call: TorchCall) -> Product:
    names = ("input1", "input2", "weight", "bias")
    a, b, weight, bias = (call.argument(i, name) for i, name in enumerate(names))
    batch = tuple(range(3, 2 + a.dim()))
    return Product((a, b, weight), ((*batch, 0), (*batch, 1), (2, 0, 1)), (*batch, 2), bias)


def _chain(call: TorchCall) -> Product:
    factors = call.args[0] if isinstance(call.args[0], (list, tuple)) else call.args
    dims: list[Dims] = [(i, i + 1) for i in range(len(factors))]
    dims[0] = dims[0][2 - factors[0].dim() :]
    dims[-1] = dims[-1][: factors[-1].dim()]
    return Product(factors, dims, tuple(d for d in (0, len(factors)) if d in (*dims[0], *dims[-1])))


_READERS: dict[str, Callable[[TorchCall], Product]] = {
    "addbmm": _added(("batch1", "batch2"), sums_batch=True),
    "addmm": _added(("mat1", "mat2")),
    "addmv": _added(("mat", "vec")),
    "baddbmm": _added(("batch1", "batch2")),
    "bilinear": _bilinear,
    "bmm": _matmul,
    "chain_matmul": _chain,
    "dot": _matmul,
    "einsum": _einsum,
    "grouped_mm": _grouped,
    "inner": _inner,
    "matmul": _matmul,
    "mm": _matmul,
    "multi_dot": _chain,
    "mv": _matmul,
    "rmatmul": _rmatmul,
    "tensordot": _tensordot,
    "vdot": _matmul,
    "vecdot": _vecdot,
}
