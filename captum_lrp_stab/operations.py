"""Which torch functions are LRP-0 under plain autograd, by name, in every spelling.

``x.add(y)``, ``torch.add(x, y)``, ``x + y`` and ``x += y`` are one operation, ``add``. An operation
that is in none of the sets is non-linear as far as this package knows: in gradient form it gets its
plain gradient, and is listed as a fallback.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MOVING = frozenset(
    """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d alias as_strided bfloat16
    broadcast_tensors broadcast_to channel_shuffle chunk clone concat concatenate contiguous copy
    cpu cuda detach diagonal double dropout dropout1d dropout2d dropout3d dsplit expand expand_as
    feature_dropout feature_alpha_dropout alpha_dropout flatten
    flip fliplr flipud float fold gather get getitem
    half hsplit hstack index_select cat max_pool1d max_pool2d max_pool3d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices movedim moveaxis
    narrow pad permute pixel_shuffle pixel_unshuffle positive ravel repeat repeat_interleave
    requires_grad reshape reshape_as roll select split split_with_sizes squeeze stack swapaxes
    swapdims t take take_along_dim tensor_split tile to transpose type type_as unbind unflatten
    unsafe_chunk unsafe_split unsqueeze view view_as vsplit vstack where tril triu masked_fill
    masked_select setitem index_put max_unpool1d max_unpool2d max_unpool3d rot90
    """.split()
)
"""Operations that move, select or copy values: relevance moves with them."""

MIXING = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add avg_pool1d avg_pool2d
    avg_pool3d batch_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    cumsum diff interpolate linear mean nansum neg negative rsub sub subtract sum trace unfold
    upsample upsample_bilinear upsample_nearest
    """.split()
)
"""Operations that are linear in all their inputs together."""

PRODUCTS = frozenset(
    """
    addbmm addmm addmv addr baddbmm bilinear bmm chain_matmul cross dot einsum inner kron matmul
    mm mul multiply mv outer rmatmul rmul tensordot vdot
    """.split()
)
"""Operations that are linear as long as one factor at most depends on the input."""

QUOTIENTS = frozenset("div divide truediv true_divide rdiv rtruediv grid_sample".split())
"""Operations that are linear as long as the divisor, or the grid, does not depend on the input."""

RANDOM = frozenset(
    """
    bernoulli bernoulli_ exponential_ multinomial normal normal_ poisson rand rand_like randint
    randint_like randn randn_like rrelu_with_noise uniform_
    """.split()
)
"""Operations whose result is drawn."""

PIECEWISE = frozenset(
    """
    abs absolute amax amin fmax fmin leaky_relu max maximum min minimum prelu relu rrelu sort
    topk norm vector_norm aminmax cummax cummin kthvalue median mode
    """.split()
)
"""Operations with f(a x) = a f(x) for a > 0: the gradient is exact (Euler)."""


def canonical_name(func: Callable[..., Any]) -> str:
    """Return the operation's name without the marks of in-place and operator spellings.

    Example:
        >>> import torch
        >>> canonical_name(torch.Tensor.add_), canonical_name(torch.Tensor.__rsub__)
        ('add', 'rsub')
    """
    name = getattr(func, "__name__", str(func)).strip("_")
    if name[0:1] == "i" and name[1:] in MIXING | PRODUCTS | QUOTIENTS:  # __iadd__
        return name[1:]
    if name[0:1] == "r" and name[1:] in ("add",):
        return name[1:]
    return name


def made(tensor: Tensor) -> bool:
    """Return whether a tensor is the result of a differentiable operation."""
    return tensor.requires_grad and not tensor.is_leaf


def fallback_reason(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    depends: Callable[[Tensor], bool] = made,
) -> str:
    """Return why an operation gets its plain gradient, or "" if that is LRP-0 anyway.

    Args:
        func: The operation.
        args: Its arguments.
        kwargs: Its keyword arguments.
        depends: Whether a tensor depends on the model's input.
    """
    name = canonical_name(func)
    if name in MOVING or name in MIXING or name in PIECEWISE:
        return ""
    if name in PRODUCTS:
        factors = sum(depends(t) for t in tensors_in(args, kwargs))
        return "a product of values that both depend on the input" if factors > 1 else ""
    if name in QUOTIENTS:
        if kwargs.get("rounding_mode"):
            return "rounding has no gradient"
        second = (*args, kwargs.get("other", kwargs.get("grid")))[1]
        divisor = args[0] if name.startswith("r") else second
        if not isinstance(divisor, Tensor) or not depends(divisor):
            return ""
        if name == "grid_sample":
            return "a grid that depends on the input"
        return "a division by a value that depends on the input"
    return "no LRP rule is known for this operation"


def custom_functions(output: Tensor) -> Iterator[type[torch.autograd.Function]]:
    """Yield the custom autograd functions between the inputs and ``output``, this package's aside.

    They are no torch functions, so that only the finished graph shows them.
    """
    for node in _graph(output):
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            function: type[torch.autograd.Function] = node._forward_cls  # type: ignore[attr-defined]
            ours = function.__module__.startswith(f"{__package__}.")
            if not ours and function.__name__ != "BackwardHookFunction":  # a module's full hook
                yield function


def reaches(tensor: Tensor, leaves: Sequence[Tensor]) -> bool:
    """Return whether the graph of ``tensor`` goes back to one of ``leaves``."""
    variables = (getattr(node, "variable", None) for node in _graph(tensor))  # of AccumulateGrad
    return any(variable is leaf for variable in variables for leaf in leaves)


def _graph(tensor: Tensor) -> Iterator[Any]:
    """Yield the nodes of the autograd graph that ``tensor`` comes from."""
    seen: set[Any] = set()
    waiting: list[Any] = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(previous for previous, _ in node.next_functions)
            yield node


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among the arguments, in lists and tuples too."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value, {})
