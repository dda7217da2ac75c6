"""How one operation hands influence down, for ``receptive_field``.

Each operation hands influence down in one of these ways:

- Values are moved: as autograd moves them.
- Convolutions, linear layers, pools: to the whole window.
- Element-wise operations: from element to element, whatever their derivative is here.
- Choice by size (max, sort, ...): to all along the dimension.
- Anything else: where its derivative at a random point, under random influence, is not 0. For a
  function that is smooth almost everywhere that is where it depends on what it reads; where no
  derivative can be had, influence goes to all that it reads.

Not followed: positions that the data chooses (indices, boolean masks that select), which count as
they are in this pass, and comparisons; a sparse pattern of constants, such as a causal mask, which
counts as if all of it were open.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.operations import activations, calls, gates, table
from captum_lrp_stab.operations.calls import argument
from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.rules import affine_builders
from captum_lrp_stab.rules.affine import ADAPTIVE, TRANSPOSED, AveragePool, Convolution
from captum_lrp_stab.tensors.graph import made
from captum_lrp_stab.tensors.nested import mapped, tensors_in

Masks = Sequence[Tensor]
HandDown = Callable[[Masks], Masks]
"""From the influence of each output to that of each input, not 0 where there is some."""


class _Step(torch.autograd.Function):
    """The results of an operation, connected to all that it reads."""

    @staticmethod
    def forward(ctx: Any, hand_down: HandDown, values: Masks, *inputs: Tensor) -> Any:
        """Return the values."""
        ctx.hand_down, ctx.dtypes = hand_down, [t.dtype for t in inputs]
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        """Return the influence of each input, as 0 and 1 so that depth cannot overflow it."""
        handed_down = ctx.hand_down([u.ne(0).float() for u in upstream])
        pairs = zip(handed_down, ctx.dtypes, strict=True)
        # both parts of a complex number
        ones = ((i.ne(0).to(dtype), 1 + 1j if dtype.is_complex else 1) for i, dtype in pairs)
        return None, None, *(influence * one for influence, one in ones)


_MOVED = table.MOVING - {"detach", "masked_fill", "where"} | frozenset(
    "conj imag real view_as_complex view_as_real".split()  # views as well
)
_ELEMENTWISE = activations.ACTIVATIONS | activations.LINEAR_SIDES | gates.FUNCTIONS
_ELEMENTWISE |= table.QUOTIENTS | table.ELEMENTWISE
_ELEMENTWISE |= frozenset(
    """
    abs absolute add batch_norm ceil data detach exp fix floor floor_divide fmax fmin fmod frac
    heaviside log masked_fill max maximum min minimum nan_to_num neg negative remainder round rsub
    sqrt sub subtract threshold trunc where
    """.split()
)  # max and min only of two tensors: see _way
_SELECTING = table.SELECTING | frozenset("msort nanmedian nanquantile quantile".split())
_AT_2 = frozenset("kthvalue nanquantile quantile topk".split())  # where their dimension is given
_LEAVING = {getattr(Tensor, f"__{name}__") for name in "array complex float index int".split()}
_LEAVING |= {Tensor.item, Tensor.numpy, Tensor.tolist}
"""What gives no tensor, and is refused for one with a graph, which is one behind detach() here."""


def followed(
    operation: Operation, func: Callable[..., Any], args: Any, kwargs: Any, given: Masks
) -> Any:
    """Run an operation and return its output, connected to the tensors it is given."""
    name = canonical_name(func)
    by_mask = func is Tensor.__setitem__ and any(True for _ in tensors_in(args[1:2], {}))
    attribute = func.__name__ == "__get__" and name != "data"
    shaped = name.startswith("new_") or name.endswith("_like")  # reads the shape alone
    if func in _LEAVING:
        return func(*mapped(Tensor.detach, args), **mapped(Tensor.detach, kwargs))
    if attribute or shaped or (name in _MOVED and not by_mask):
        return func(*args, **kwargs)
    if name == "batch_norm" and (kwargs.get("training") or any(args[5:6])):
        raise ModelError(
            f"batch norm '{operation.name}' normalises by the statistics of the batch; call "
            "model.eval(), or give it running statistics"
        )
    ghosts: list[Tensor] = []  # shape, dtype and device of what is given, without its memory

    def ghost(t: Tensor) -> Tensor:
        if made(t):
            t = t.detach().new_zeros(()).expand(t.shape)
            ghosts.append(t)
        return t

    ghostly = mapped(ghost, args), mapped(ghost, kwargs)
    target = calls.written(func, args, kwargs)
    with torch.no_grad():
        out = func(*args, **kwargs)
    values = list(filter(_is_number, tensors_in((out if target is None else target,), {})))
    if not values:
        return out
    if any(t.is_nested or t.layout is not torch.strided for t in values):
        return func(*args, **kwargs)  # to be refused
    if target is not None and all(t is target for t in given):
        if by_mask or name in _ELEMENTWISE:
            return target  # its graph is right as it is
    hand_down = _way(func, *ghostly, ghosts, values[0].shape)
    if by_mask:  # what is written may come to lie anywhere
        kept = [t is target for t in given]
        hand_down = partial(_written, kept, ghosts)
    connected = iter(_Step.apply(hand_down, [t.detach() for t in values], *given))
    if target is not None:
        target.copy_(next(connected))
        return target
    return mapped(lambda t: next(connected) if _is_number(t) else t, out)


def _is_number(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _way(
    func: Callable[..., Any], args: Any, kwargs: Any, ghosts: Masks, shape: Sequence[int]
) -> HandDown:
    """Return the way in which a call hands influence down.

    Args:
        func: The function.
        args: Its arguments, with ghosts in the place of what depends on the input.
        kwargs: Likewise.
        ghosts: These.
        shape: Of the first output.
    """
    name, x, alone = canonical_name(func), ghosts[0], len(ghosts) == 1
    of_two = isinstance(argument(args, kwargs, 1, "other"), Tensor)
    reads_x = alone and x is argument(args, kwargs, 0, "input")
    if name in _ELEMENTWISE and (of_two or name not in ("max", "min")):
        fits = all(_broadcasts(g.shape, shape) for g in ghosts)
        if fits and (alone or name not in activations.LINEAR_SIDES):  # with slopes per channel
            return lambda masks: [masks[0].sum_to_size(g.shape) for g in ghosts]
    elif func in affine_builders.BUILDERS and reads_x:
        op = affine_builders.of_call(func, args, kwargs)
        if isinstance(op, Convolution):
            return lambda masks: [_under_convolution(op, masks[0], x)]
        if isinstance(op, AveragePool):
            pool = replace(op, weight=op.weight.float())
            ones = torch.ones_like(pool.weight)
            return lambda masks: [pool.vjp(masks[0], x.float(), ones)]
        return lambda masks: [_along(masks, x, [x.dim() - 1])]
    elif "max_pool" in name and "fractional" not in name:
        return lambda masks: [_under_max_pool(name, args, kwargs, masks[0], x)]
    elif name in _SELECTING and alone:
        dims = _dimensions(name, args, kwargs, x)
        return lambda masks: [_along(masks, x, dims)]
    elif not _chooses(func, args, kwargs) and (func is not F.grid_sample or reads_x):
        return lambda masks: _by_derivative(func, args, kwargs, masks, ghosts)
    return lambda masks: _to_all(masks, ghosts)


def _chooses(func: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Return whether the derivative of a call misses what it chooses from by size."""
    settings = [v for v in (*args, *kwargs.values()) if isinstance(v, (float, str))]
    by_setting = any(v in (math.inf, -math.inf, "amax", "amin", "max") for v in settings)
    return by_setting or canonical_name(func) in {"matrix_norm"} | activations.LINEAR_SIDES


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(n in (1, m) for n, m in pairs)


def _to_all(masks: Masks, ghosts: Masks) -> Masks:
    reached = any(bool(m.any()) for m in masks)
    return [torch.full(g.shape, float(reached), device=g.device) for g in ghosts]


def _written(kept: Sequence[bool], ghosts: Masks, masks: Masks) -> Masks:
    both = zip(kept, _to_all(masks, ghosts), strict=True)
    return [masks[0] if is_kept else everywhere for is_kept, everywhere in both]


def _under_convolution(op: Convolution, mask: Tensor, x: Tensor) -> Tensor:
    """Return the influence of x: with weights of 1 all channels of a group have the same."""
    batch = x.shape[: -op.dims - 1].numel()  # 1 without a batch dimension
    grouped = mask.reshape(batch, op.groups, -1, *mask.shape[-op.dims :]).amax(2)
    ones = mask.new_ones((op.groups, 1, *op.weight.shape[2:]))
    point = mask.new_zeros(()).expand(batch, op.groups, *x.shape[-op.dims :])
    one = replace(op, weight=ones, bias=None)
    influence = one.vjp(grouped, point, ones) > 0.5  # a sum of ones, but for rounding
    shape = (batch, op.groups, x.shape[-op.dims - 1] // op.groups, *x.shape[-op.dims :])
    return influence.unsqueeze(2).expand(shape).reshape(x.shape)


def _under_max_pool(name: str, args: Any, kwargs: Any, mask: Tensor, x: Tensor) -> Tensor:
    """Return the influence of x: of the whole window."""
    dims = int(name[name.index("pool") + 4])
    sizes, pooled = x.shape[-dims:], mask.shape[-dims:]
    mask = mask.reshape(-1, 1, *pooled)
    if name.startswith("adaptive"):
        with torch.enable_grad():
            point = mask.new_zeros((len(mask), 1, *sizes), requires_grad=True)
            means = ADAPTIVE[dims](point, pooled)
        influence = torch.autograd.grad(means, point, mask)[0]
        return influence.reshape(x.shape)

    def setting(position: int, key: str, default: Any) -> tuple[int, ...]:
        value = argument(args, kwargs, position, key)
        value = default if value is None or value == [] or value == () else value
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * dims if len(values) == 1 else values

    kernel = setting(1, "kernel_size", None)
    stride, dilation = setting(2, "stride", kernel), setting(4, "dilation", 1)
    ones = mask.new_ones((1, 1, *kernel))
    influence = TRANSPOSED[dims](mask, ones, stride=stride, dilation=dilation)
    for d, (padding, size) in enumerate(zip(setting(3, "padding", 0), sizes, strict=True), 2):
        known = influence.narrow(d, padding, min(size, influence.shape[d] - padding))
        missing = list(known.shape)
        missing[d] = size - known.shape[d]
        influence = torch.cat([known, known.new_zeros(missing)], d)
    return (influence > 0.5).reshape(x.shape)


def _dimensions(name: str, args: Any, kwargs: Any, x: Tensor) -> list[int]:
    """Return the dimensions along which a call chooses by size."""
    dim = 0 if name == "msort" else argument(args, kwargs, 2 if name in _AT_2 else 1, "dim")
    dim = kwargs.get("axis") if dim is None else dim
    if dim is None:
        dim = -1 if name in ("kthvalue", "mode", "sort", "topk") else ()
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    return sorted(d % x.dim() for d in dims if x.dim()) or list(range(x.dim()))


def _along(masks: Masks, x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the influence of x: of all along some dimensions."""
    total = torch.zeros(x.shape, device=x.device)
    for mask in masks:
        if mask.dim() < x.dim():
            for d in dims:
                mask = mask.unsqueeze(d)
        total = total + (mask.amax(tuple(dims), keepdim=True) if dims else mask)
    return total


def _by_derivative(
    func: Callable[..., Any], args: Any, kwargs: Any, masks: Masks, ghosts: Masks
) -> Masks:
    """Return the influence of each input: where a derivative at a random point is not 0.

    Influence is random too, so that nothing cancels by chance.
    """
    generator = torch.Generator(ghosts[0].device).manual_seed(0)  # torch's own stays as it is
    is_product = canonical_name(func) in table.PRODUCTS or func in affine_builders.BUILDERS
    points: list[Tensor] = []

    def random(t: Tensor) -> Tensor:
        dtype = torch.promote_types(t.dtype, torch.float32)
        drawn = torch.rand(t.shape, generator=generator, dtype=dtype, device=t.device)
        return drawn / 2 + 0.5

    def change(t: Tensor) -> Tensor:
        if any(t is g for g in ghosts):
            points.append(random(t).requires_grad_())
            return points[-1]
        if not _is_number(t) or t.layout is not torch.strided:
            return t
        t = t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True)
        return torch.ones_like(t) if is_product else t  # as weights count whatever they are

    options = {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}
    try:
        with torch.enable_grad():
            out = calls.out_of_place(func)(*mapped(change, args), **mapped(change, options))
            results = list(filter(_is_number, tensors_in((out,), {})))
            messages = [m * random(r) for m, r in zip(masks, results, strict=True)]
            found = torch.autograd.grad(results, points, messages, allow_unused=True)
    except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return _to_all(masks, ghosts)
    if not any(g is not None and bool(g.ne(0).any()) for g in found):
        return _to_all(masks, ghosts)  # constant at the point, which says nothing of others
    pairs = zip(ghosts, found, strict=True)
    return [torch.zeros(g.shape, device=g.device) if f is None else f for g, f in pairs]
