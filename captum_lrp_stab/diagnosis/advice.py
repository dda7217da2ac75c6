"""What to change in a name_map, and what that was seen to do."""

import pprint
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.stabilizers import Stabilizer


@dataclass(frozen=True)
class Change:
    """Another stabilizer for one layer."""

    layer: str
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class Advice:
    """What to change, and what that was seen to do.

    ``error`` is the relative difference between the dtype asked about and float64, ``error_before``
    the same without the advice; None where one of them is not finite. ``is_stable`` says whether no
    layer is in trouble any more. Where no stabilizer alone helps, ``dtype`` is the narrowest wider
    dtype that does, with the changes if there are any.
    """

    tolerance: float
    error_before: float | None
    error: float | None
    was_stable: bool
    is_stable: bool
    changes: tuple[Change, ...]
    name_map: NameMap
    dtype: str | None
    relevances: tuple[Tensor, ...] = field(repr=False)  # once the advice is followed

    @property
    def holds(self) -> bool:
        """Whether the dtype agrees with float64 to the tolerance, once the advice is followed."""
        return self.error is not None and self.error <= self.tolerance

    def __str__(self) -> str:
        """Return the advice in words."""
        return "\n".join([self.summary(), *(f"- {line}" for line in self.grouped())])

    def summary(self) -> str:
        """Return what the advice was seen to do, in a sentence."""
        before, after = (_in_words(e) for e in (self.error_before, self.error))
        if self.dtype is not None:
            return (
                f"no stabilizer alone makes this attribution agree with float64 to "
                f"{self.tolerance:g} ({before} as it is); use {self.dtype}"
                f"{' with these changes' if self.changes else ''}: {after}"
            )
        if not self.changes:
            if self.holds and not self.is_stable:
                return (
                    "no stabilizer helps: relevance is amplified, in float64 as well, from which "
                    f"the relative difference is {after}; another rule may cancel less"
                )
            if self.holds:
                return f"nothing to change: the relative difference from float64 is {after}"
            return f"no stabilizer and no dtype helps: {after} from float64"
        end = "" if self.is_stable else "; relevance is still amplified, as it is in float64"
        return f"relative difference from float64: {before} as it is, {after} after the change{end}"

    def grouped(self) -> list[str]:
        """Return the changes in words, a line for all layers with the same."""
        layers: dict[str, list[str]] = {}
        for change in self.changes:
            layers.setdefault(f"{change.before} -> {change.after}", []).append(change.layer)
        return [
            f"{names[0] if len(names) == 1 else f'{len(names)} layers, such as {names[0]}'}: {text}"
            for text, names in layers.items()
        ]

    def to_python(self) -> str:
        """Return the name_map as Python text, to be copied."""
        values = [v for _, _, parameters in self.name_map for v in parameters.values()]
        kinds = {rule for _, rule, _ in self.name_map}
        kinds |= {type(v) for v in values if isinstance(v, Stabilizer)}
        lines = ["import torch"] if any(isinstance(v, Tensor) for v in values) else []
        lines += _imports(kinds)
        own = {id(v): v for v in values if callable(v) and not isinstance(v, Stabilizer)}
        named = {key: f"stabilizer_{n}" for n, key in enumerate(own)}
        lines += [f"{named[key]} = ...  # put in yours: {value!r}" for key, value in own.items()]
        lines += ["", "name_map = ["]
        for names, rule, parameters in self.name_map:
            listed = textwrap.indent(pprint.pformat(names, width=90, compact=True), " " * 8)
            given = ", ".join(
                f"{key!r}: {named.get(id(v)) or _literal(v)}" for key, v in parameters.items()
            )
            lines += ["    (", f"{listed},", f"        {rule.__name__},", f"        {{{given}}},"]
            lines.append("    ),")
        return "\n".join([*lines, "]"])


_RULES = "captum_lrp_stab.rules"


def _imports(kinds: Iterable[type]) -> Iterator[str]:
    """Yield import statements, one for each module."""
    modules: dict[str, list[str]] = {}
    for kind in sorted(kinds, key=lambda kind: (kind.__module__, kind.__name__)):
        module = kind.__module__
        if module.startswith(f"{_RULES}."):  # which offers those of its modules
            module = _RULES
        modules.setdefault(module, []).append(kind.__name__)
    for module, names in modules.items():
        yield f"from {module} import {', '.join(names)}"


def _literal(value: Any) -> str:
    """Return a value as Python text on one line, a tensor with all its digits."""
    if isinstance(value, Tensor):
        return f"torch.tensor({value.tolist()!r}, dtype={value.dtype})"
    return repr(value)


def _in_words(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.2g}"
