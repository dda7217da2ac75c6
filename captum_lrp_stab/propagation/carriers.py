"""Carriers: tensors beside a model's inputs that collect relevance of rules without coefficients.

The zB, w² and flat rules give relevance that is not proportional to a layer's input. Where that is
an input of the model, with its values moved and normalised at most, the gradient of a tensor of
zeros beside it, the carrier, carries the relevance: it moves as the input does, is resampled by the
same weights, and passes a normalisation unchanged, value by value, as if that were part of the
layer. A value that is multiplied by 0, as by a mask, gets none.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_lrp_stab.dispatch.form import Follow
from captum_lrp_stab.dispatch.layer_use import layer_of
from captum_lrp_stab.operations.calls import TorchCall, out_of_place
from captum_lrp_stab.tensors.graph import made
from captum_lrp_stab.tensors.nested import mapped, tensors_in
from captum_lrp_stab.tensors.step import Step


class Carriers:
    """Tensors, each with its carrier.

    Args:
        pairs: The model's inputs with theirs.
    """

    def __init__(self, pairs: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        self._entries: list[tuple[Tensor, int, Tensor]] = []
        for t, carrier in pairs:
            self.put(t, carrier)

    def put(self, t: Tensor, carrier: Tensor) -> None:
        """Set the carrier of a tensor, until the tensor is written to."""
        self._entries.append((t, t._version, carrier))

    def of(self, t: Tensor) -> Tensor | None:
        """Return the carrier of a tensor, None if it has none."""
        for other, version, carrier in reversed(self._entries):
            if other is t and version == t._version:
                return carrier
        return None

    def carry(self, source: Tensor, target: Tensor) -> None:
        """Give the carrier of a tensor to another one that has its values, too."""
        carrier = self.of(source)
        if carrier is not None:
            self.put(target, carrier)

    def following(self, call: TorchCall) -> Follow | None:
        """Return the function that gives an operation's result its carrier, None if it gets none.

        Ask before the operation runs: it may write over its arguments.
        """
        kind = call.kind
        given = [t for t in call.tensors if made(t)]
        found = {id(t): carrier for t in given if (carrier := self.of(t)) is not None}
        if not given or any(id(t) not in found for t in given):
            return None
        moves = kind.moves and not kind.leaves_alone
        if moves or (kind.interpolates and len(given) == 1):
            return partial(self._move, call, found)
        if len(given) == 1 and (kind.adds or kind.scales or kind.shifts_and_scales):
            (x,) = given
            plain = partial(_called, call.changed(out_of_place(call.func)), x)
            current = [(t, c) for t, version, c in self._entries if t._version == version]
            return partial(self._pass_on, found[id(x)], plain, current)
        return None

    def clear(self) -> None:
        """Free all of them."""
        self._entries.clear()

    def _move(self, call: TorchCall, found: dict[int, Tensor], result: Any) -> None:
        args, kwargs = mapped(lambda t: found.get(id(t), t), (call.args, call.kwargs))
        if call.func is Tensor.__setitem__:
            target, index, value = args
            moved: Any = target.clone()
            moved[index] = value
        else:
            moved = out_of_place(call.func)(*args, **kwargs)
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
        if layer_of(result) is not None:
            return  # a batch norm with a rule of its own
        beside, shape = torch.zeros_like(result), carrier.shape

        def down(R: Tensor) -> tuple[Tensor]:
            return (R.masked_fill(_slope(plain, R) == 0, 0).sum_to_size(shape),)

        self.put(result, Step.apply(down, beside, carrier))
        for t, own in current:  # what has been written over, by whatever name
            if t is not result and self.of(t) is None:
                self.put(t, own)


def _called(call: TorchCall, x: Tensor, point: Tensor) -> Tensor:
    """Return the result of a call with ``point`` in the place of ``x``."""
    args, kwargs = mapped(lambda t: point if t is x else t.detach(), (call.args, call.kwargs))
    result: Tensor = call.func(*args, **kwargs)
    return result


def _slope(function: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the factor by which a function scales each value."""
    with torch.enable_grad():
        point = torch.zeros_like(like, requires_grad=True)
        z = function(point)
    return torch.autograd.grad(z, point, torch.ones_like(z))[0]
