"""How many bytes of tensors are alive: also of those that a graph holds and Python does not see."""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Remember the memory of every tensor that is made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.layout is torch.strided:
                storage = t.untyped_storage()
                self._seen[storage._cdata] = weakref.ref(storage)
        return out

    @property
    def bytes(self) -> int:
        """The bytes still alive after the garbage collector has run."""
        gc.collect()
        alive = (seen() for seen in self._seen.values())
        return sum(storage.nbytes() for storage in alive if storage is not None)
