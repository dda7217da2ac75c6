"""Keeping ``torch.compile`` out of what it cannot trace."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

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
