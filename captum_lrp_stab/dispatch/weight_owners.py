"""Whose weights an operation uses: a model may use those of a layer without calling the layer.

``nn.MultiheadAttention`` does so with its ``out_proj``, as does ``F.linear(x, self.fc.weight)``.
The operation is then a use of that layer, whose rule it has and whose relevance is its.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

import captum_lrp_stab.types as types

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
