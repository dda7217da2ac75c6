"""Which constants of a pass are weights, parameters or made of them, and of which layer.

A product of values with weights is a layer. A product with another constant, such as an adjacency
matrix or a mask that the caller gives, only mixes values. Parts of parameters are weights whatever
selects them, such as a router that chooses the matrices of experts.

A model may use the weights of a layer without calling the layer: ``nn.MultiheadAttention`` does so
with its ``out_proj``, as does ``F.linear(x, self.fc.weight)``. The operation is then a use of that
layer, whose rule it has and whose relevance is its.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import captum_lrp_stab.types as types
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.tensors import marks
from captum_lrp_stab.tensors.nested import tensors_in


class Weights:
    """The constants of one pass that are a model's own.

    Args:
        model: The model, whose buffers may take part in computing weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = {id(t): t for t in model.buffers()}
        self.used: set[int] = set()  # parameters of which others are made, by their identity

    def has(self, t: Tensor) -> bool:
        """Return whether a constant is a parameter, or made of parameters."""
        return bool(self._origin(t))

    def origin(self, call: TorchCall) -> bool | None:
        """Return whether an operation computes with parameters; None if with foreign tensors too.

        Ask before the operation runs: it may write over its arguments.
        """
        name, tensors = call.name, call.tensors
        self.used.update(id(t) for t in tensors if isinstance(t, nn.Parameter))
        if call.kind.moves or name == "embedding":  # whatever the indices are
            tensors = list(filter(_has_digits, tensors)) or tensors
        origins = set(map(self._origin, tensors))
        reads = not name.startswith("new_") and not name.endswith("_like")  # more than a shape
        return None if None in origins else reads and True in origins

    def note(self, result: Any, origin: bool | None) -> None:
        """Mark the result of an operation without data by what it was computed from."""
        for t in tensors_in((result,), {}) if origin is not None else ():
            own = isinstance(t, nn.Parameter) or id(t) in self._buffers  # the user's
            if not own and not t.is_inference():  # which has no version
                marks.put(t, "weights", origin)

    def _origin(self, t: Tensor) -> bool | None:
        if isinstance(t, nn.Parameter):
            return True
        if id(t) in self._buffers:
            return False
        known: bool | None = marks.get(t, "weights")
        return known


def _has_digits(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


Key = tuple[int, Any, tuple[int, ...]]


class Owners:
    """The layers that parameters and buffers belong to.

    Args:
        modules: The modules of a model, by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._names: dict[Key, list[str]] | None = None  # made when it is asked for

    def of(self, tensors: Iterable[Tensor], kind: str) -> str | None:
        """Return the layer that an operation stands for, None if it is none of the model's.

        Args:
            tensors: What the operation reads.
            kind: Canonical name of the function that the layer would call.
        """
        layer = types.of_function(kind)
        if layer is None:
            return None
        for t in tensors:
            for name in self._owners_of(t):
                if isinstance(self._modules[name], layer):
                    return name
        return None

    def _owners_of(self, t: Tensor) -> Sequence[str]:
        made = t.requires_grad and not isinstance(t, nn.Parameter)
        if made and not isinstance(t._base, nn.Parameter):
            return ()  # of data, or of several parameters
        if self._names is None:
            self._names = self._listed()
        return self._names.get(_key(t), ()) if t.numel() else ()

    def _listed(self) -> dict[Key, list[str]]:
        names: dict[Key, list[str]] = {}
        for name, module in self._modules.items():
            for t in (*module._parameters.values(), *module._buffers.values()):
                if t is not None and t.dim() and t.device.type != "meta":
                    names.setdefault(_key(t), []).append(name)
        return names


def _key(t: Tensor) -> Key:
    return t.data_ptr(), t.shape, t.stride()
