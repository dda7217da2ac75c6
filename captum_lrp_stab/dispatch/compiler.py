"""Keeping ``torch.compile`` out of what it cannot trace."""

import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function run as it is where ``torch.compile`` compiles its caller.

    ``torch.compiler.disable`` does so too, and imports the compiler, which takes longer than the
    rest of this package: here that waits until a user's own code has done it.
    """
    known: list[Callable[P, T]] = []

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        # without it where another thread is just importing the module
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        if disable is None:
            return function(*args, **kwargs)
        if not known:
            known.append(disable(function))
        return known[0](*args, **kwargs)

    return wrapper


class _Stance:
    """The compiler's stance, one for all threads: eager while any pass asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._set: Any = None  # restores it when closed

    def acquire(self, set_stance: Callable[[str], Any]) -> None:
        with self._lock:
            if not self._count:
                self._set = set_stance("force_eager")
            self._count += 1

    def release(self) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._set.__exit__(None, None, None)


_STANCE = _Stance()


class Eager:
    """Let functions that a model has compiled run as they are, while a pass follows it.

    Their operations cannot be seen otherwise. It needs PyTorch 2.6, and is so for all threads.
    """

    #: Whether the compiler has been loaded meanwhile, too late to keep it out.
    is_late = False

    def __init__(self) -> None:
        self._holds = False

    def __enter__(self) -> None:
        """Begin, if there is a compiler yet."""
        self.is_late = False
        self._start(getattr(sys.modules.get("torch._dynamo"), "set_stance", None))

    def begin(self) -> None:
        """Begin in any case, because something is about to be compiled."""
        import torch._dynamo  # takes seconds

        self._start(getattr(torch._dynamo, "set_stance", None))

    def _start(self, set_stance: Callable[[str], Any] | None) -> None:
        if set_stance is not None and not self._holds:
            _STANCE.acquire(set_stance)
            self._holds = True

    def __exit__(self, *error: object) -> None:
        """End."""
        if self._holds:
            _STANCE.release()
        else:
            self.is_late = hasattr(sys.modules.get("torch._dynamo"), "set_stance")
        self._holds = False
