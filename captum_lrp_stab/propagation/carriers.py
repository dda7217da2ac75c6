"""What collects relevance beside the inputs of a model, from rules that send no coefficient.

The zB, w² and flat rules give relevance that is not proportional to a layer's input. Where that is
an input of the model, or what moving and normalising its values has made of it, the gradient of a
tensor of zeros beside it carries the relevance: it moves as the input does, is resampled by the
same weights, and passes a normalisation unchanged, value by value, as if that were part of the
layer. A value that is multiplied by 0, as by a mask, gets none.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.first_layers import SCALING
from captum_lrp_stab.dispatch.form import Follow
from captum_lrp_stab.dispatch.layer_use import current_site
from captum_lrp_stab.operations.calls import out_of_place
from captum_lrp_stab.operations.table import MOVING, canonical_name
from captum_lrp_stab.tensors.graph import made
from captum_lrp_stab.tensors.nested import mapped, tensors_in
from captum_lrp_stab.tensors.step import Step

_MOVES = MOVING - frozenset(
    """
    alpha_dropout as_strided copy detach dropout dropout1d dropout2d dropout3d feature_alpha_dropout
    feature_dropout requires_grad
    """.split()
)
"""What can be done to the tensors beside as well; a dropout that drops nothing gives its input."""

_RESAMPLING = frozenset(
    "grid_sample interpolate upsample upsample_bilinear upsample_nearest".split()
)


class Carriers:
    """Tensors, each with what collects relevance beside it.

    Args:
        pairs: The model's inputs with theirs.
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        self._entries: list[tuple[Tensor, int, Tensor]] = []
        for t, carrier in pairs:
            self.put(t, carrier)

    def put(self, t: Tensor, carrier: Tensor) -> None:
        """Let a carrier stand beside a tensor, until that is written to."""
        self._entries.append((t, t._version, carrier))

    def of(self, t: Tensor) -> Tensor | None:
        """Return what stands beside a tensor, None if nothing does."""
        for other, version, carrier in reversed(self._entries):
            if other is t and version == t._version:
                return carrier
        return None

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Let what stands beside a tensor stand beside another that has its values, too."""
        carrier = self.of(source)
        if carrier is not None:
            self.put(target, carrier)

    def following(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Follow | None:
        """Return what lets carriers follow an operation to its result, None where they cannot.

        To be asked before it runs: it may write over its arguments.
        """
        name = canonical_name(func)
        given = [t for t in tensors_in(args, kwargs) if made(t)]
        found = {id(t): carrier for t in given if (carrier := self.of(t)) is not None}
        if not given or any(id(t) not in found for t in given):
            return None
        if name in _MOVES or (name in _RESAMPLING and len(given) == 1):
            return partial(self._move, func, args, kwargs, found)
        if name in SCALING and len(given) == 1:
            (x,) = given
            plain = partial(_called, out_of_place(func), args, kwargs, x)
            current = [(t, c) for t, version, c in self._entries if t._version == version]
            return partial(self._pass_on, found[id(x)], plain, current)
        return None

    def clear(self) -> None:
        """Let go of all."""
        self._entries.clear()

    def _move(
        self,
        func: Callable[..., Any],
        args: Any,
        kwargs: Any,
        found: dict[int, Tensor],
        result: Any,
    ) -> None:
        given = mapped(lambda t: found.get(id(t), t), (args, kwargs))
        if func is Tensor.__setitem__:
            target, index, value = given[0]
            moved: Any = target.clone()
            moved[index] = value
        else:
            moved = out_of_place(func)(*given[0], **given[1])
        for t, carrier in zip(tensors_in((result,), {}), tensors_in((moved,), {}), strict=True):
            if made(t):
                self.put(t, carrier)

    def _pass_on(
        self,
        carrier: Tensor,
        plain: Callable[[Tensor], Tensor],
        current: Iterable[tuple[Tensor, Tensor]],
        result: Tensor,
    ) -> None:
        if current_site(result) is not None:
            return  # a batch norm with a rule of its own
        beside, shape = torch.zeros_like(result), carrier.shape

        def down(R: Tensor) -> tuple[Tensor]:
            return (R.masked_fill(_slope(plain, R) == 0, 0).sum_to_size(shape),)

        self.put(result, Step.apply(down, beside, carrier))
        for t, own in current:  # what has been written over, by whatever name
            if t is not result and self.of(t) is None:
                self.put(t, own)


def _called(func: Callable[..., Any], args: Any, kwargs: Any, x: Tensor, point: Tensor) -> Tensor:
    """Return what a function gives at a point in the place of ``x``."""
    given = mapped(lambda t: point if t is x else t.detach(), (args, kwargs))
    result: Tensor = func(*given[0], **given[1])
    return result


def _slope(function: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return by what a function scales each value."""
    with torch.enable_grad():
        point = torch.zeros_like(like, requires_grad=True)
        z = function(point)
    return torch.autograd.grad(z, point, torch.ones_like(z))[0]
