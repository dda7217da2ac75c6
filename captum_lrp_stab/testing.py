"""Helpers for your own tests.

Example:
    >>> import torch
    >>> from captum_lrp_stab import presets
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2))
    >>> done = assert_agrees(model, torch.ones(2, 4), 1, presets.epsilon(), "float64")
    >>> done.verdict
    'equal'
"""

from collections.abc import Collection
from typing import Any

from torch import nn

from captum_lrp_stab.comparison import Comparison, compare
from captum_lrp_stab.comparison.known import KNOWN
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.translation import Rules


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
