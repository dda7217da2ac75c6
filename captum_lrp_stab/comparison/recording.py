"""The values and the relevance of each layer, recorded while either side of a comparison runs.

A layer may run several times in one pass; each use has its own record, in order of execution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.task import Task
from captum_lrp_stab.tensors.complex_values import total
from captum_lrp_stab.tensors.nested import mapped, tensors_in


@dataclass
class Use:
    """The values and the relevance of a layer's input or output tensors, in one use of it."""

    values: list[Tensor | None] = field(default_factory=list)
    relevances: list[Tensor | None] = field(default_factory=list)

    @property
    def relevance(self) -> list[Tensor] | None:
        """The relevance of each tensor that has any; None if none has."""
        return [r for r in self.relevances if r is not None] or None


class Uses(Probe):
    """A probe that keeps each use of a layer apart.

    Args:
        name: The layer.
        at_input: Look at its input; values of inputs are outputs of others, and never kept.
        values: Keep the values of outputs, not their relevance alone.
    """

    def __init__(self, name: str, at_input: bool, values: bool = True) -> None:
        super().__init__(name, at_input)
        self._keeps_values = values and not at_input
        self.uses: list[Use] = []
        self._place: list[tuple[Use, int]] = []  # from positions to a use and its tensor

    def start(self, values: Sequence[Tensor], was_tuple: bool) -> int:
        """Begin a use of the layer; return the position of its first tensor."""
        kept = [v.detach().clone() if self._keeps_values else None for v in values]
        use = Use(kept, [None] * len(values))
        self.uses.append(use)
        self._place += [(use, index) for index in range(len(values))]
        return len(self._place) - len(values)

    def note(self, position: int, relevance: Tensor) -> None:
        """Add to the relevance of one tensor of one use."""
        use, index = self._place[position]
        known = use.relevances[index]
        use.relevances[index] = relevance if known is None else known + relevance

    def restart(self) -> None:
        """Drop everything, before a forward pass."""
        self.uses.clear()
        self._place.clear()

    def forget(self) -> None:
        """Drop what was noted, before another backward pass."""
        for use in self.uses:
            use.relevances = [None] * len(use.relevances)

    @property
    def reached(self) -> list[Use]:
        """The uses that relevance reached."""
        return [use for use in self.uses if use.relevance is not None]


@dataclass
class Recording:
    """The relevance of the inputs, the score, and what was seen at the layers in one run.

    ``outputs`` and ``inputs`` map a layer's name to its uses that relevance reached; a layer that
    could not be watched is missing.
    """

    relevances: tuple[Tensor, ...]
    score: Tensor | None = None
    outputs: dict[str, list[Use]] = field(default_factory=dict)
    inputs: dict[str, list[Use]] = field(default_factory=dict)

    @property
    def was_watched(self) -> bool:
        """Whether anything was seen at a layer."""
        return bool(self.outputs or self.inputs)

    def scaled(self, factor: Tensor) -> "Recording":
        """Return the recording with the relevance of each sample multiplied.

        Args:
            factor: Shape ``(N,)``.
        """

        def times(t: Tensor) -> Tensor:
            samples = factor.to(t).reshape(-1, *[1] * (t.dim() - 1))
            return t * samples if t.dim() and len(t) == len(factor) else t

        def scaled(use: Use) -> Use:
            return Use(use.values, [None if R is None else times(R) for R in use.relevances])

        outputs, inputs = (
            {name: [scaled(use) for use in uses] for name, uses in ends.items()}
            for ends in (self.outputs, self.inputs)
        )
        return Recording(tuple(map(times, self.relevances)), self.score, outputs, inputs)


class Watch:
    """Hooks that record relevance at the modules of a model, under another implementation.

    The gradient of a layer's output is its relevance there. Leave the context to remove the hooks;
    what was recorded stays.

    Args:
        model: The model.
        values: Keep the values of outputs too, not their relevance alone.
    """

    def __init__(self, model: nn.Module, values: bool = True) -> None:
        self._values = values
        self._outputs: dict[str, Uses] = {}
        self._inputs: dict[str, Uses] = {}
        self._waiting: list[tuple[Uses, int, Tensor]] = []  # until the forward pass is over
        self._handles: list[Any] = [model.register_forward_hook(self._hook_waiting)]

    def __enter__(self) -> "Watch":
        """Return the watch."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def output(self, name: str, module: nn.Module, late: bool = False) -> None:
        """Watch the output of a module.

        Args:
            name: To record it under.
            module: The module.
            late: Hook it after the whole forward pass, when all other hooks on it are known.
        """
        uses = self._outputs[name] = Uses(name, False, self._values)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = tensors_in((output,), {})
            for position, t in enumerate(tensors, uses.start(tensors, False)):
                if t.requires_grad and late:
                    self._waiting.append((uses, position, t))
                elif t.requires_grad:
                    _note(uses, position, t)

        self._handles.append(module.register_forward_hook(hook))

    def input(self, name: str, module: nn.Module) -> None:
        """Watch what reaches the input of a module: a copy, whose gradient is of this one alone."""
        uses = self._inputs[name] = Uses(name, True)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            tensors = [t for t in tensors_in(args, kwargs) if t.requires_grad]
            copies = {id(t): t.clone() for t in tensors}
            for position, t in enumerate(tensors, uses.start(tensors, False)):
                _note(uses, position, copies[id(t)])

            def change(t: Tensor) -> Tensor:
                return copies.get(id(t), t)

            return mapped(change, args), mapped(change, kwargs)

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _hook_waiting(self, module: nn.Module, args: Any, output: Any) -> None:
        for uses, position, t in self._waiting:
            _note(uses, position, t)
        self._waiting.clear()

    def recording(self, relevances: tuple[Tensor, ...], score: Tensor | None) -> Recording:
        """Return what was seen."""
        return Recording(relevances, score, _reached(self._outputs), _reached(self._inputs))


def _note(uses: Uses, position: int, t: Tensor) -> None:
    def hook(R: Tensor | None) -> None:
        if R is not None:  # else of a part that nothing reads, where others are read
            uses.note(position, total(R.detach()))

    t.register_hook(hook)  # type: ignore[no-untyped-call]


def _reached(probes: Mapping[str, Uses]) -> dict[str, list[Use]]:
    return {name: probe.reached for name, probe in probes.items() if probe.reached}


def record(task: Task, names: tuple[str, ...] = ()) -> Recording:
    """Run this package's LRP and return the recording.

    Args:
        task: What to attribute.
        names: The operations to watch.
    """
    outputs, inputs = ({name: Uses(name, end) for name in names} for end in (False, True))
    done = task.propagate((*outputs.values(), *inputs.values()))
    return Recording(done.relevances, done.score, _reached(outputs), _reached(inputs))
