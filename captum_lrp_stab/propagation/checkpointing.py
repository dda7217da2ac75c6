"""Segments: modules whose inner values are not kept, but computed again in the backward pass.

A pass keeps the values of every layer until its backward pass. Of a segment only the inputs are
kept. It runs twice, each time under a form of its own: in the forward pass to find the treatment of
its operations, in the backward pass to propagate through them.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", sec. 3.
"""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.propagation.checkpoint_runs import (
    Inside,
    SegmentRun,
    refusal,
    refuse_inner_values,
)
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.rules.rule_set import RuleSet


class SegmentedForm(GradientForm):
    """The gradient form, with segments.

    Args:
        model: See :class:`~captum_lrp_stab.dispatch.mode.Interception`.
        rule_sets: The rule of each operation.
        checkpoint: The names of the segments; one inside another is part of that.
    """

    def __init__(self, model: nn.Module, *rule_sets: RuleSet, checkpoint: Collection[str]) -> None:
        super().__init__(model, *rule_sets)
        self.model = model
        self._names = frozenset(checkpoint)
        self._missing = set(checkpoint)
        self._running: SegmentRun | None = None
        self._shared: list[tuple[str, Tensor, int]] = []  # outputs in the memory of others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle one torch function call, or let the segment that is running do so."""
        if self._running is not None:
            return self._running.form.__torch_function__(func, types, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def restart(self) -> None:
        """Forget a pass."""
        super().restart()
        self._missing = set(self._names)
        self._shared.clear()

    def on_input(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Begin a segment."""
        if self._running is not None and name == self._running.name:
            raise ModelError(f"checkpoint: '{name}' calls itself; leave it out")
        if self._running is not None:
            self._missing.discard(name)  # part of the one that is running
        if self._running is not None or name not in self._names:
            return super().on_input(name, args, kwargs)
        with torch._C.DisableTorchFunction():
            run = SegmentRun(self, name, args, kwargs)
            if not run.inputs:
                return args, kwargs  # nothing in it depends on the input
            self._missing.discard(name)
            form = Inside(self, name)
            # whose hooks are those of the pass
            form.naming, form.assignment = self.naming, self.assignment
            given = run.begin(form, run.inputs)
        self._running = run
        return given

    def on_output(self, name: str, output: Any) -> Any:
        """End a segment."""
        if self._running is None or name != self._running.name:
            return super().on_output(name, output)
        run, self._running = self._running, None
        with torch._C.DisableTorchFunction():
            return run.finish(output)

    def check_pass(self, output: Any) -> None:
        """Refuse a pass whose segments would not give the same as no segments.

        Raises:
            ModelError: The pass ran no module of a segment's name, or one that would not give the
                same as without segments.
            RuleError: A rule that is not proportional to its input reads no input of the model.
        """
        for name in sorted(self._missing):
            raise ModelError(
                f"checkpoint: the pass did not run '{name}' on anything that depends on the "
                "inputs; leave it out"
            )
        for name, t, version in self._shared:
            if t._version != version:
                raise ModelError(
                    f"checkpoint: the model writes in place over an output of '{name}', which "
                    "shares its memory with an input or another output of it; make that "
                    "operation out of place, or leave the segment out"
                )
        self._shared.clear()
        refuse_inner_values(output)
        direct = [use for use in self.direct_uses if not use.reads_input]
        if direct:
            raise refusal(direct[0].name, "the output of a segment")

    def note_shared(self, name: str, given: Sequence[Tensor], shared: Sequence[bool]) -> None:
        """Remember outputs that share memory: a segment's copies do not, so none must be written.

        Args:
            name: Of the segment.
            given: Its outputs.
            shared: Which of them do.
        """
        aliases = [t.detach() for t, is_shared in zip(given, shared, strict=True) if is_shared]
        self._shared += [(name, t, t._version) for t in aliases]


def check_names(model: nn.Module, checkpoint: Any) -> frozenset[str]:
    """Return the names of segments.

    Raises:
        ModelError: A name is that of no module inside the model.
    """
    if isinstance(checkpoint, str) or not isinstance(checkpoint, Iterable):
        raise ModelError(f"checkpoint is {checkpoint!r}; give a list of names of modules")
    names = list(checkpoint)
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "see model.named_modules()"
            raise ModelError(f"checkpoint: the model has no module {name!r} inside it; {hint}")
    return frozenset(names)
