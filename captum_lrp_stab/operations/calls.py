"""One call of a torch function, with its arguments and what is known of the function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_lrp_stab.operations.table import Kind, cached, kind_of
from captum_lrp_stab.tensors.nested import tensors_in

if TYPE_CHECKING:
    from captum_lrp_stab.operations.gates import Gates

_INPLACE_IS_LAST = frozenset(
    """
    alpha_dropout celu dropout dropout1d dropout2d dropout3d elu feature_alpha_dropout hardsigmoid
    hardswish hardtanh leaky_relu mish relu relu6 rrelu selu silu threshold
    """.split()
)


class TorchCall:
    """A torch function with its arguments.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its arguments by name.
        data: Those of the tensors among them that depend on the model's input.
    """

    kind: Kind  # what is known of the function
    name: str  # its canonical name
    tensors: list[Tensor]  # among the arguments, in order, also those in lists, tuples and dicts
    gates: Gates  # what is known of the data, from before it runs

    def __init__(
        self, func: Callable[..., Any], args: Any, kwargs: Any, data: Sequence[Tensor] = ()
    ) -> None:
        self.func = func
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.data = data
        self.kind = kind_of(func)
        self.name = self.kind.name
        self.tensors = tensors_in(args, kwargs)

    @property
    def x(self) -> Tensor:
        """The first argument."""
        x: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return x

    @property
    def options(self) -> dict[str, Any]:
        """The arguments by name, but the first one."""
        return {key: value for key, value in self.kwargs.items() if key != "input"}

    @property
    def others(self) -> list[Tensor]:
        """The tensors among the arguments but the first one."""
        return tensors_in(self.args[1:], self.options)

    def argument(self, position: int, name: str) -> Any:
        """Return an argument given by position or by name, None if it is left out."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)

    def is_data(self, value: object) -> bool:
        """Return whether an argument depends on the model's input."""
        for t in self.data:  # quicker than any() of so few
            if t is value:
                return True
        return False

    def any_is_data(self, values: Iterable[object]) -> bool:
        """Return whether one of several arguments depends on the model's input."""
        return any(map(self.is_data, values))

    @property
    def writes(self) -> bool:
        """Whether it writes to a tensor it is given, its first argument or ``out``."""
        if is_in_place(self.func) or self.kwargs.get("inplace"):
            return True
        # F.relu6(x, True), F.hardtanh(x, 0.0, 6.0, True)
        by_position = self.name in _INPLACE_IS_LAST and len(self.args) > 1
        return (by_position and self.args[-1] is True) or self.kwargs.get("out") is not None

    @property
    def target(self) -> Tensor | None:
        """The tensor that it writes to, None if it writes to none."""
        if not self.writes:
            return None
        target = self.kwargs.get("out", self.args[0] if self.args else self.kwargs.get("input"))
        return target if isinstance(target, Tensor) else None

    def result(self, out: Any) -> Any:
        """Return its result, given its output: that of ``x[i] = y`` is None, the result is x."""
        return self.args[0] if self.func is Tensor.__setitem__ else out

    def run(self) -> Any:
        """Return its output."""
        return self.func(*self.args, **self.kwargs)

    def changed(self, func: Any = None, args: Any = None, kwargs: Any = None) -> TorchCall:
        """Return the same call with another function or other arguments."""
        call = TorchCall(
            self.func if func is None else func,
            self.args if args is None else args,
            self.kwargs if kwargs is None else kwargs,
            self.data,
        )
        call.gates = self.gates
        return call


@cached
def is_in_place(func: Callable[..., Any]) -> bool:
    """Return whether a function writes to its first argument, whatever the others are."""
    given = func.__name__
    if given.endswith("_") and not given.endswith("__"):
        return True
    return given in (f"__i{kind_of(func).name}__", "__setitem__")


@cached
def out_of_place(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that computes what an in-place ``func`` writes, or ``func`` itself."""
    if not is_in_place(func):
        return func
    name = kind_of(func).name
    plain = getattr(Tensor, name, None) or getattr(Tensor, f"__{name}__", None)
    return partial(_on_a_copy, func) if plain is None else plain  # there is no Tensor.zero


def _on_a_copy(func: Callable[..., Any], target: Tensor, *args: Any, **kwargs: Any) -> Any:
    return func(target.clone(), *args, **kwargs)
