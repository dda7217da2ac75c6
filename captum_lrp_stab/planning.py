"""``plan``: what each operation of a model will get, before anything is attributed."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from captum_lrp_stab.assignment.rules_of_model import Rules, rule_set_of
from captum_lrp_stab.dispatch import fallbacks
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.propagation.attribution import operations_of
from captum_lrp_stab.reporting.tables import to_text
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import Attention, RuleSet


@dataclass(frozen=True)
class PlannedOperation:
    """One row of a plan.

    ``rule`` is the class of the rule, or in words what relevance does: ``LRP-0``, ``moved``,
    ``passed``, ``1/2 to each factor``, ... It is ``gradient`` for a fallback, and ``constant`` for
    an operation that relevance does not reach, such as what a gate is made of. ``parameters`` and
    ``stabilizer`` are the rule's.
    """

    index: int
    name: str
    type: str
    shape: tuple[int, ...]
    rule: str
    parameters: str
    stabilizer: str
    batch_norm: str
    fallback: str


@dataclass(frozen=True)
class Plan:
    """What each operation of a model will get, in order of execution.

    Printing shows a table; ``pandas.DataFrame(plan.rows)`` makes a data frame. Operations that
    nothing of the input takes part in are not listed.
    """

    rows: tuple[PlannedOperation, ...]

    @property
    def layers(self) -> tuple[PlannedOperation, ...]:
        """The operations with a rule and a stabilizer."""
        return tuple(row for row in self.rows if row.stabilizer)

    @property
    def fallbacks(self) -> tuple[PlannedOperation, ...]:
        """The operations that get their plain gradient because no LRP rule is known."""
        return tuple(row for row in self.rows if row.fallback)

    def refuse_fallbacks(self) -> None:
        """Raise FallbackError if there are any, as :class:`LRP` does with ``strict=True``."""
        fallbacks.refuse([f"{row.name} ({row.type}: {row.fallback})" for row in self.fallbacks])

    def to_json(self) -> str:
        """Return the rows as a JSON list of objects."""
        return json.dumps([asdict(row) for row in self.rows], indent=2)

    def __str__(self) -> str:
        """Return the rows as a table."""
        header = tuple(PlannedOperation.__dataclass_fields__)
        rows = [tuple(map(str, vars(row).values())) for row in self.rows]
        return to_text(header, rows, len(header))


def plan(
    model: nn.Module,
    inputs: Any,
    rules: Rules = None,
    additional_forward_args: Any = None,
    *,
    attention: Attention = "attnlrp",
    merge_batch_norm: bool = True,
) -> Plan:
    """Return what each operation of ``model`` will get, from one forward pass.

    Args:
        model: See :class:`captum_lrp_stab.LRP`; likewise the other arguments.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        rules: A name_map, a preset, or None for the rules set on the modules.
        additional_forward_args: Further arguments of the model.
        attention: ``"attnlrp"`` or ``"cp"``.
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
        1 1 ReLU passed
        2 2 Linear ZeroRule
    """
    rule_set = rule_set_of(model, rules, attention=attention, merge_batch_norm=merge_batch_norm)
    operations = operations_of(model, inputs, additional_forward_args, rule_set)
    return Plan(tuple(_row(i, operation, rule_set) for i, operation in enumerate(operations)))


def _row(index: int, operation: Operation, rule_set: RuleSet) -> PlannedOperation:
    rule = operation.rule
    batch_norm = operation.batch_norm
    if batch_norm in rule_set.named:
        batch_norm += f" (its {_kind(rule_set.named[batch_norm])} has no effect)"
    return PlannedOperation(
        index,
        operation.name,
        operation.kind,
        operation.shape,
        _described(operation, rule_set),
        _parameters(rule) if rule is not None and operation.reached else "",
        repr(rule.stabilizer) if rule is not None and operation.reached else "",
        batch_norm,
        operation.caveat,
    )


def _described(operation: Operation, rule_set: RuleSet) -> str:
    rule = operation.rule
    if not operation.reached:
        named = rule_set.named.get(operation.name)
        return "constant" if named is None else f"constant (its {_kind(named)} has no effect)"
    if rule is None:
        return "gradient" if operation.fallback else operation.treatment_in_words
    return f"{_kind(rule)} (default)" if rule is rule_set.default else _kind(rule)


def _parameters(rule: Rule) -> str:
    """Return the rule's parameters in words, without the stabilizer, which has its own column."""
    described = rule.describe_parameters()
    return ", ".join(text for text in described if not text.startswith("stabilizer="))


def _kind(rule: Rule) -> str:
    """Return the name of a rule's class, for Captum's own as ``captum.GammaRule``."""
    return repr(rule).partition("(")[0]
