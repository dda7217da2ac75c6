"""One attribution as a value: model, inputs, target, rules and form, to be run in several ways.

What is compared, diagnosed and studied is a :class:`Task`. Each run of one, as each call of
:class:`captum_lrp_stab.LRP`, is a :class:`~captum_lrp_stab.propagation.attribution.Pass`.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import Rules, rule_set_of
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.propagation.attribution import (
    Pass,
    Propagation,
    operations_of,
    propagate,
    propagate_many,
)
from captum_lrp_stab.propagation.checks import coarsest_dtype
from captum_lrp_stab.propagation.gradient_form import GradientForm
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.rules.rule_set import Attention, RuleSet
from captum_lrp_stab.stabilizers import StabilizerLike
from captum_lrp_stab.tensors.complex_values import convert
from captum_lrp_stab.tensors.nested import mapped

Form = Callable[..., GradientForm]
Change = Callable[[Rule], Rule]


@dataclass(frozen=True)
class Task:
    """One attribution to be run in several ways; the arguments are those of ``compare``."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    target: Any = None
    additional_forward_args: Any = None
    rules: Rules = None
    stabilizer: StabilizerLike | None = None
    attention: Attention = "attnlrp"
    merge_batch_norm: bool = True
    changes: tuple[Change, ...] = ()  # made to each rule, in order
    fixed: RuleSet | None = None  # in the place of rules
    form: Form = GradientForm  # how relevance is carried

    def rule_set(self) -> RuleSet:
        """Return the rule of each operation.

        Raises:
            RuleMapError: ``rules`` does not fit the model.
        """
        options: Any = {"attention": self.attention, "merge_batch_norm": self.merge_batch_norm}
        if self.fixed is not None:
            rules = replace(self.fixed, **options)
        else:
            rules = rule_set_of(self.model, self.rules, **options)
        rules = replace(rules, named={name: on(r, name) for name, r in rules.named.items()})
        if self.stabilizer is not None:
            stabilizer = self.stabilizer
            rules = rules.changed(lambda rule: rule.with_stabilizer(stabilizer))
        for change in self.changes:
            rules = rules.changed(change)
        return rules

    def operations(self) -> list[Operation]:
        """Return the operations that relevance reaches, in order of execution."""
        found = operations_of(
            self.model, self.inputs, self.additional_forward_args, self.rule_set()
        )
        return [operation for operation in found if operation.reached]

    def propagate(self, probes: tuple[Probe, ...] = ()) -> Propagation:
        """Run this package's LRP.

        Args:
            probes: Layers whose relevance is wanted too.
        """
        return propagate(
            self.model,
            self.inputs,
            self.target,
            self.additional_forward_args,
            rule_set=self.rule_set(),
            probes=probes,
            form=self.form,
        )

    def forward(self, inputs: tuple[Tensor, ...]) -> Any:
        """Return the model's output on other inputs."""
        return self.model(
            *inputs, *(_format_additional_forward_args(self.additional_forward_args) or ())
        )

    def changing(self, *changes: Change) -> "Task":
        """Return the task with each rule changed."""
        return replace(self, changes=(*self.changes, *changes))

    def moved(self) -> "Task":
        """Return the task with each input value moved by a unit roundoff, towards 0.

        Equal values stay equal: maxima that are tied would otherwise change places.
        """
        moved = tuple(torch.nextafter(x.detach(), torch.zeros_like(x)) for x in self.inputs)
        return replace(self, inputs=moved)

    def copied(self, dtype: torch.dtype | None = None) -> "Task":
        """Return the task with copies of the model and the inputs, in another dtype if given.

        Raises:
            ModelError: The model cannot be copied.
        """

        def converted(t: Tensor) -> Tensor:
            copied = t.detach().clone()
            return copied if dtype is None else convert(copied, dtype)

        # what is to be converted is never copied as it is: a large model's weights take long
        made = {} if dtype is None else {id(t): _converted(t, dtype) for t in _numbers(self.model)}
        try:
            model = copy.deepcopy(self.model, made)
        except Exception as error:
            raise ModelError(
                f"{type(self.model).__name__} cannot be copied for the reference, which is kept "
                f"away from your model: {type(error).__name__}: {error}"
            ) from error
        if dtype is not None:
            # to(dtype) would make complex numbers real
            model._apply(partial(convert, dtype=dtype))  # type: ignore[no-untyped-call]
        return replace(
            self,
            model=model,
            inputs=tuple(converted(x) for x in self.inputs),
            additional_forward_args=mapped(converted, self.additional_forward_args),
        )

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest dtype of the inputs, the floating parameters and an active autocast."""
        return coarsest_dtype(self.model, self.inputs)


def _numbers(model: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a model that are of no type of their own."""
    for t in (*model.parameters(), *model.buffers()):
        if type(t) in (nn.Parameter, Tensor):
            yield t


def _converted(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of a parameter or buffer in another dtype, if it has one."""
    given = t.detach()
    copied = convert(given, dtype)
    copied = copied.clone() if copied is given else copied
    return nn.Parameter(copied, t.requires_grad) if isinstance(t, nn.Parameter) else copied


def run_each(
    tasks: Sequence[Task],
    after: Callable[[Propagation], None] | None = None,
    **options: Any,
) -> list[Propagation]:
    """Run tasks that differ in their rules and forms alone, after one forward pass for all.

    Those in another form than the gradient form have a forward pass each.

    Args:
        tasks: What to run.
        after: See :func:`~captum_lrp_stab.propagation.attribution.propagate_many`.
        **options: Of :class:`~captum_lrp_stab.propagation.attribution.Pass`.
    """
    first = tasks[0]
    shared = all(task.form is GradientForm for task in tasks)
    groups = [tasks] if shared else [[task] for task in tasks]
    done: list[Propagation] = []
    for group in groups:
        rule_sets = tuple(task.rule_set() for task in group)
        given = first.model, first.inputs, first.additional_forward_args, rule_sets
        one = Pass(*given, form=group[0].form, **options)
        done += propagate_many(one, [first.target], after)
    return done


def on(rule: Rule, layer: str) -> Rule:
    """Return a rule that knows its layer, which one set on a module need not."""
    if rule.layer == layer:
        return rule
    other = copy.copy(rule)
    other.layer = layer
    return other


def remade(rule: Rule, **parameters: Any) -> Rule:
    """Return a rule with other parameters, on the same layer."""
    other = type(rule)(**rule.parameters() | parameters)
    other.layer = rule.layer
    return other
