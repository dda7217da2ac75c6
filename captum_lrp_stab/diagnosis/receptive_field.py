"""Which part of each model input can influence a neuron: its structural receptive field.

In one forward pass every operation is connected to all that it reads, and a backward pass carries
*influence* from the neuron: 1 where a value can have an effect on it, 0 elsewhere. Structural means
whatever the weights and the data are: a weight of 0, a unit that ReLU switched off, the losers of a
max pool and a gate that LRP holds constant all count.

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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from torch import Tensor, nn

from captum_lrp_stab import activations, checks, describe, gates, operations, surrogates, treatments
from captum_lrp_stab.affine import ADAPTIVE, TRANSPOSED, AveragePool, Convolution
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.interception import Call, Interception
from captum_lrp_stab.operations import argument, canonical_name, made, mapped, tensors_in
from captum_lrp_stab.propagation import as_tuple
from captum_lrp_stab.rule_set import RuleSet
from captum_lrp_stab.sites import Operation, Site

Masks = Sequence[Tensor]
HandDown = Callable[[Masks], Masks]
"""From the influence of each output to that of each input, not 0 where there is some."""


@dataclass(frozen=True)
class Box:
    """The bounding box of a part of an input, without the batch dimension.

    Example:
        >>> Box((0, 12, 0), (3, 71, 67)).describe()
        'rows 12 to 70, columns 0 to 66'
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]  # exclusive

    def is_whole(self, shape: Sequence[int]) -> bool:
        """Return whether the box is all of an input of this shape, without the batch dimension."""
        return not any(self.start) and self.stop == tuple(shape)

    def describe(self, shape: Sequence[int] | None = None) -> str:
        """Return the box in words, with inclusive ends.

        Args:
            shape: Of the input, without the batch dimension; with it, channels of a picture or a
                volume are named where they are not all in the box.
        """
        names = {1: ("feature",), 3: ("channel", "row", "column")}.get(len(self.start), ())
        if len(self.start) == 4:
            names = ("channel", "slice", "row", "column")
        parts = []
        for d, (first, end) in enumerate(zip(self.start, self.stop, strict=True)):
            if names[d : d + 1] == ("channel",) and (shape is None or end - first == shape[d]):
                continue
            if names:
                name = names[d] if end - first == 1 else f"{names[d]}s"
            else:
                name = f"dimension {d + 1}:"
            parts.append(f"{name} {first}" if end - first == 1 else f"{name} {first} to {end - 1}")
        return ", ".join(parts) or "the only value"


def receptive_field(
    model: nn.Module,
    inputs: Any,
    additional_forward_args: Any,
    rule_set: RuleSet,
    layer: str,
    index: tuple[int, ...],
    use: int = 0,
) -> tuple[Box | None, ...]:
    """Return the part of each input that can influence a neuron, None where there is none.

    Args:
        model: Any module that LRP can explain; it stays as it is.
        inputs: A tensor ``(N, ...)`` or a tuple of them, floating point.
        additional_forward_args: As in Captum.
        rule_set: Its named rules decide what operations are called.
        layer: Name of the operation, as a plan lists it, or of a batch norm merged into it.
        index: Of the neuron in the operation's (first) output, with the batch dimension.
        use: Which it is of the operations that the pass runs under this name: runs of a layer that
            is used again, or the steps of one that takes several, such as an LPPool2d.

    Raises:
        InputError: An input is not a finite floating-point tensor, or there is no such neuron.
        ModelError: The model cannot be followed.
    """
    checks.check_model(model)
    xs = as_tuple(inputs)
    checks.check_inputs(xs)
    extra = mapped(
        lambda t: t.clone() if t.is_inference() else t.detach(),
        tuple(_format_additional_forward_args(additional_forward_args) or ()),
    )
    with torch.inference_mode(False), torch.enable_grad():
        mode = _Following(model, rule_set, layer, index, use)
        mode.leaves = tuple(x.detach().clone().requires_grad_() for x in xs)
        with mode.places.watch(lambda name, *given: given, lambda name, output: output), mode:
            model(*(leaf.clone() for leaf in mode.leaves), *extra)
        return tuple(map(_box, mode.influences()))


def _box(influence: Tensor | None) -> Box | None:
    if influence is None or not influence.any():
        return None
    places = influence.ne(0).nonzero()[:, 1:]  # without the batch dimension
    return Box(tuple(places.amin(0).tolist()), tuple((places.amax(0) + 1).tolist()))


class _Following(Interception):
    """Connect each operation up to a neuron to all that it reads."""

    def __init__(
        self, model: nn.Module, rule_set: RuleSet, layer: str, index: tuple[int, ...], use: int
    ) -> None:
        super().__init__(model, rule_set)
        self._layer, self._index, self._use = layer, index, use
        self._uses = 0
        self._neuron: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one torch function call; inside, the mode is off."""
        kwargs = kwargs or {}
        tensors = list(tensors_in(args, kwargs))
        if self._neuron is not None and tensors:  # what comes after it needs no graph
            with torch.no_grad():
                return func(*mapped(Tensor.detach, args), **mapped(Tensor.detach, kwargs))
        self._refuse_randomness(func, kwargs)
        given = [t for t in tensors if made(t)]
        if not given:
            return self._constant(func, [t for t in tensors if t.requires_grad], args, kwargs)
        with torch.enable_grad():  # what the model computes under no_grad() has influence too
            self._refuse_unseen(func, args, kwargs)
            written_out = surrogates.WRITTEN_OUT.get(func)
            if written_out is None and treatments.of(func) is None and func not in self._opening:
                written_out = operations.opened(func)
            if written_out is not None:
                self._opening.append(func)
                try:
                    with self:
                        return written_out(*args, **kwargs)
                finally:
                    self._opening.pop()
            operation = self._operation(func, args)
            out = _followed(operation, func, args, kwargs, given)
            result = args[0] if func is Tensor.__setitem__ else out
            return self._recorded(operation, out, result, given)

    def on_result(self, operation: Operation, output: Any, result: Any) -> Any:
        """Get hold of the neuron."""
        if operation.name == self._layer:
            self._uses += 1
            if self._uses == self._use + 1:
                value = next(t for t in tensors_in((result,), {}) if t.requires_grad)
                sizes = tuple(value.shape)
                fits = len(self._index) == len(sizes)
                if not fits or any(not 0 <= i < n for i, n in zip(self._index, sizes, strict=True)):
                    raise InputError(
                        f"index {self._index} is no element of the output of '{self._layer}', "
                        f"which has shape {sizes}"
                    )
                self._neuron = value[self._index].clone()  # later writes leave a copy alone
        return output

    def influences(self) -> tuple[Tensor | None, ...]:
        """Return the influence of each input on the neuron, None for none."""
        if self._neuron is None:
            ran = ", ".join(dict.fromkeys(o.name for o in self.operations)) or "none"
            raise InputError(
                f"use {self._use} of operation '{self._layer}': the pass ran it {self._uses} "
                f"times; the operations it ran are {ran}"
            )
        for function in operations.custom_functions(self._neuron):
            raise ModelError(
                f"the custom autograd function {function.__name__} does not tell what its result "
                "depends on; write it in torch functions"
            )
        seed = torch.ones_like(self._neuron)
        return torch.autograd.grad(self._neuron, self.leaves, seed, allow_unused=True)

    def affine(self, site: Site, call: Call) -> Tensor:
        """Raise: rules have no part in this."""
        raise NotImplementedError

    def activation(self, z: Tensor, slope: float, g: Callable[[Tensor], Tensor]) -> Tensor:
        """Raise: rules have no part in this."""
        raise NotImplementedError


# one operation -----------------------------------------------------------------------------------


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


_MOVED = operations.MOVING - {"detach", "masked_fill", "where"} | frozenset(
    "conj imag real view_as_complex view_as_real".split()  # views as well
)
_ELEMENTWISE = activations.ACTIVATIONS | activations.LINEAR_SIDES | gates.FUNCTIONS
_ELEMENTWISE |= operations.QUOTIENTS | operations.ELEMENTWISE
_ELEMENTWISE |= frozenset(
    """
    abs absolute add batch_norm ceil data detach exp fix floor floor_divide fmax fmin fmod frac
    heaviside log masked_fill max maximum min minimum nan_to_num neg negative remainder round rsub
    sqrt sub subtract threshold trunc where
    """.split()
)  # max and min only of two tensors: see _way
_SELECTING = operations.SELECTING | frozenset("msort nanmedian nanquantile quantile".split())
_AT_2 = frozenset("kthvalue nanquantile quantile topk".split())  # where their dimension is given
_LEAVING = {getattr(Tensor, f"__{name}__") for name in "array complex float index int".split()}
_LEAVING |= {Tensor.item, Tensor.numpy, Tensor.tolist}
"""What gives no tensor, and is refused for one with a graph, which is one behind detach() here."""


def _followed(
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
    target = operations.written(func, args, kwargs)
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
    elif func in describe.BUILDERS and reads_x:
        op = describe.of_call(func, args, kwargs)
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
    is_product = canonical_name(func) in operations.PRODUCTS or func in describe.BUILDERS
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
            out = operations.out_of_place(func)(*mapped(change, args), **mapped(change, options))
            results = list(filter(_is_number, tensors_in((out,), {})))
            messages = [m * random(r) for m, r in zip(masks, results, strict=True)]
            found = torch.autograd.grad(results, points, messages, allow_unused=True)
    except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return _to_all(masks, ghosts)
    if not any(g is not None and bool(g.ne(0).any()) for g in found):
        return _to_all(masks, ghosts)  # constant at the point, which says nothing of others
    pairs = zip(ghosts, found, strict=True)
    return [torch.zeros(g.shape, device=g.device) if f is None else f for g, f in pairs]
