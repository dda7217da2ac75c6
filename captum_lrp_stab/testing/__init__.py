"""Helpers for your own tests.

Example:
    >>> import torch
    >>> from captum_lrp_stab import presets
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2))
    >>> done = assert_agrees(model, torch.ones(2, 4), 1, presets.epsilon(), "float64")
    >>> done.verdict
    'equal'

A rule or a stabilizer of your own, in your own tests:

    >>> from captum_lrp_stab import stabilizers
    >>> assert_stabilizer_contract(stabilizers.Clip(1e-6))
"""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

import captum_lrp_stab.stabilizers as stabilizers
from captum_lrp_stab.assignment.rules_of_model import Rules
from captum_lrp_stab.comparison import Comparison, compare
from captum_lrp_stab.comparison.known_differences import KNOWN
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.stabilizers import Stabilizer, StabilizerLike
from captum_lrp_stab.testing import contract

__all__ = ["assert_agrees", "assert_rule_contract", "assert_stabilizer_contract"]


def assert_agrees(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    rules: Rules = None,
    reference: Any = "zennit",
    *,
    known: Collection[str] = (),
    **options: Any,
) -> Comparison:
    """Assert that a model's relevance is that of another implementation, but for rounding.

    Args:
        model: See :func:`captum_lrp_stab.compare`; likewise the next four.
        inputs: A tensor ``(N, ...)`` or a tuple of them.
        target: The output to explain.
        rules: A name_map, a preset, or None for the rules set on the modules.
        reference: What to compare with.
        known: Names of known differences that may be between the two, such as
            ``"eps of merged batch norms"``.
        **options: Further arguments of :func:`captum_lrp_stab.compare`.

    Returns:
        The comparison.

    Raises:
        AssertionError: The two differ, and the message names the first layer at which they part; or
            all relevance is 0.
        InputError: No known difference has a name that ``known`` has.
    """
    names = {difference.name for difference in KNOWN}
    unknown = sorted(set(known) - names)
    if unknown:
        raise InputError(
            f"no known difference is called {unknown[0]!r}; they are: {', '.join(sorted(names))}"
        )
    done = compare(model, inputs, target, rules, reference, **options)
    if not any(bool(r.any()) for r in (*done.relevances, *done.reference_relevances)):
        raise AssertionError("all relevance is 0 on both sides: there is nothing to compare")
    if done.verdict in ("equal", "rounding"):
        return done
    if done.verdict == "known difference" and {d.name for d in done.differences} <= set(known):
        return done
    raise AssertionError(f"captum-lrp-stab and {done.reference}: {done}")


def assert_rule_contract(
    rule: Rule,
    layers: Sequence[tuple[nn.Module, Tensor]] | None = None,
    *,
    conserves: bool = True,
) -> None:
    """Assert that a rule works in every form and driver of this package.

    On small layers, in float64: relevance has the shape of the input and is finite; it is linear in
    the relevance of the output, and the same for a sample alone as in a batch; relevance form and
    gradient form agree, and so do :class:`captum_lrp_stab.LRP` and stock Captum; the stabilizer is
    used; without bias and stabilizer the sum of relevance is kept; a call changes neither layer nor
    rule, and a second one gives the same bits; the rule can be made again from its parameters, as a
    name_map does. In float16 and bfloat16: relevance is finite.

    Args:
        rule: An instance of your subclass of :class:`captum_lrp_stab.rules.Rule`.
        layers: Pairs of a layer and its input ``(N, ...)``; None for a linear layer, a convolution
            and a transposed convolution. Each is tried as it is, and its bias is taken off a copy
            where the sum of relevance is looked at.
        conserves: Whether the rule keeps the sum of relevance without bias and stabilizer; False
            for a rule that is meant to absorb, as one with an epsilon of its own.

    Raises:
        AssertionError: It does not, and the message says what, on which layer, and what to look at.
        InputError: ``rule`` is no rule, or there is no layer.

    Example:
        >>> from captum_lrp_stab import GammaRule
        >>> assert_rule_contract(GammaRule(0.5))
    """
    if not isinstance(rule, Rule):
        raise InputError(f"{rule!r} is no rule; give an instance of a subclass of Rule")
    layers = None if layers is None else list(layers)
    if layers is not None and not layers:
        raise InputError("there is no layer; give pairs of a layer and its input, or None")
    contract.can_be_made_again(rule)
    for case in contract.cases(rule, layers):
        for check in contract.OF_RULES:
            check(case)
    if conserves:
        for case in contract.cases(rule, layers, bias=False):
            contract.conserves(case)


def assert_stabilizer_contract(
    stabilizer: StabilizerLike, *, protects: bool = True, per_sample: bool = True
) -> None:
    """Assert that a stabilizer works in every rule and dtype.

    It returns a new tensor of the same shape, dtype and device in float16 to float64, and the same
    one at each call; it leaves no denominator at 0; a sample's denominators do not depend on the
    others'; what it says of itself (``is_elementwise``, ``moves_away_from_0``) is true, and a copy
    is equal to it; LRP-0 with it is the same in :class:`captum_lrp_stab.LRP` and stock Captum.

    Args:
        stabilizer: A number, a subclass of :class:`captum_lrp_stab.stabilizers.Stabilizer`, or any
            callable from denominators to denominators.
        protects: Whether it moves 0 away from 0; False for one that does not.
        per_sample: Whether samples are apart; False for one that mixes a batch.

    Raises:
        AssertionError: It does not, and the message says what.
        StabilizerError: It is neither a number nor a callable.
    """
    s = stabilizers.ensure(stabilizer)
    contract.keeps_shape_and_dtype(s)
    if protects:
        contract.leaves_no_zero(s)
    if per_sample:
        contract.stabilizer_samples_do_not_mix(s)
    if isinstance(s, Stabilizer):
        contract.claims_hold(s)
    contract.works_in_rules(s)
