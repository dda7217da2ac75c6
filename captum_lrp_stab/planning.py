"""``plan``: what each operation of a model will get, before anything is attributed."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from captum_lrp_stab.propagation import operations_of
from captum_lrp_stab.sites import Operation
from captum_lrp_stab.translation import Rules, rules_of, rules_on


@dataclass(frozen=True)
class PlannedOperation:
    """One row of a plan."""

    index: int
    name: str
    type: str
    rule: str
    stabilizer: str
    batch_norm: str
    fallback: str


@dataclass(frozen=True)
class Plan:
    """What each operation with a rule, or without a known one, will get, in order of execution.

    Operations that are not listed are exactly LRP-0 as they are: additions, pooling, reshapes,
    ReLU and other activations. Printing shows a table.
    """

    rows: tuple[PlannedOperation, ...]

    @property
    def fallbacks(self) -> tuple[PlannedOperation, ...]:
        """The operations that get their plain gradient because no LRP rule is known."""
        return tuple(row for row in self.rows if row.fallback)

    def to_json(self) -> str:
        """Return the rows as a JSON list of objects."""
        return json.dumps([asdict(row) for row in self.rows], indent=2)

    def __str__(self) -> str:
        """Return the rows as a table."""
        header = tuple(PlannedOperation.__dataclass_fields__)
        table = [header, *(tuple(map(str, asdict(row).values())) for row in self.rows)]
        widths = [max(len(line[column]) for line in table) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        return "\n".join(lines)


def plan(
    model: nn.Module,
    inputs: Any,
    rules: Rules = None,
    additional_forward_args: Any = None,
    *,
    merge_batch_norm: bool = True,
) -> Plan:
    """Return what each operation of ``model`` will get, from one forward pass.

    Args:
        model: See :class:`captum_lrp_stab.LRP`; likewise the other arguments.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        rules: A name_map, a preset, or None for the rules set on the modules.
        additional_forward_args: Further arguments of the model.
        merge_batch_norm: Treat batch norm after a linear layer as one layer with it.

    Raises:
        RuleMapError: ``rules`` does not fit the model.
        ModelError: The model cannot be followed.
        InputError: An input is not a finite floating-point tensor.

    Example:
        >>> import torch
        >>> from captum_lrp_stab import plan, presets
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)
        ... )
        >>> for row in plan(model, torch.ones(1, 4), presets.zero()).rows:
        ...     print(row.index, row.name, row.type, row.rule)
        0 0 Linear ZeroRule
        1 2 Linear ZeroRule
    """
    by_name = rules_on(model) if rules is None else rules_of(model, rules)
    operations = operations_of(
        model, inputs, additional_forward_args, rules=by_name, merge_batch_norm=merge_batch_norm
    )
    return Plan(tuple(_row(i, operation, by_name) for i, operation in enumerate(operations)))


def _row(index: int, operation: Operation, chosen: dict[str, Any]) -> PlannedOperation:
    rule = operation.rule
    described = "" if rule is None else repr(rule).partition("(")[0]  # captum.GammaRule too
    if rule is not None and operation.name not in chosen:
        described += " (default)"
    batch_norm = operation.batch_norm
    if batch_norm in chosen:
        batch_norm += f" (its {type(chosen[batch_norm]).__name__} has no effect)"
    return PlannedOperation(
        index,
        operation.name,
        operation.kind,
        described,
        "" if rule is None else repr(rule.stabilizer),
        batch_norm,
        operation.fallback,
    )
