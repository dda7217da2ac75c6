"""What ``LRP(nonfinite="raise" | "warn")`` says: the layer, the neuron, the cause, the remedy."""

import math
from collections.abc import Callable, Sequence

import torch

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.ledger.causes import cause_of
from captum_lrp_stab.ledger.locating import Origin, Trouble, locate
from captum_lrp_stab.ledger.records import Input, Neuron
from captum_lrp_stab.ledger.watching import Collector, probes_of, records_of
from captum_lrp_stab.propagation.attribution import Propagation
from captum_lrp_stab.propagation.observer import Observer
from captum_lrp_stab.propagation.probes import Probe

Rerun = Callable[[Observer, tuple[Probe, ...]], Propagation]
"""Runs the attribution again, watched."""


def nonfinite_origin(
    rerun: Rerun, operations: Sequence[Operation], dtype: torch.dtype
) -> Origin | None:
    """Return where NaN or Inf first arose in an attribution; None if it cannot be told.

    Args:
        rerun: See ``Rerun``.
        operations: Of an earlier run.
        dtype: The coarsest of the pass.
    """
    collector, probes = Collector(), probes_of(operations)
    ran = rerun(collector, tuple(probes)).operations
    return locate(records_of(collector, probes, ran, dtype), nonfinite_only=True)


def in_words(origin: Origin | None, dtype: torch.dtype) -> str:
    """Return where NaN or Inf arose, why, and what to do, for an error message."""
    if origin is None:
        return (
            "it arose outside the layers with a rule, in the operations between them; look at "
            "exp, log, division and sums of large values in the model's forward, or use a wider "
            "dtype"
        )
    cause = cause_of(origin, dtype)
    kind = "pre-activations" if origin.trouble is Trouble.OVERFLOW else "values of relevance"
    where = f"layer '{origin.name}' under" if origin.stabilizer else f"operation '{origin.name}':"
    place = [f"{origin.count} non-finite {kind} first arose in {where} {origin.rule}"]
    if origin.neuron is not None:
        place.append(f"at {describe_neuron(origin.neuron)}")
    elif origin.input is not None:
        place.append(f"at {describe_input(origin.input)}")
    return f"{' '.join(place)}: {cause.what}; {cause.remedy}"


def describe_neuron(neuron: Neuron) -> str:
    """Return a neuron and its values in words.

    Example:
        >>> describe_neuron(Neuron((0, 3, 1, 2), 0.0, 0.0, denominator=0.0, stabilized=0.0))
        'output (0, 3, 1, 2) (z = 0, s(z) = 0, R = 0)'
    """
    values = [("z", neuron.z)]
    if neuron.denominator is not None and neuron.denominator != neuron.z:
        values.append(("denominator", neuron.denominator))
    if neuron.stabilized is not None:
        values.append(("s(z)", neuron.stabilized))
    values.append(("R", neuron.relevance))
    known = ", ".join(f"{name} = {value:.6g}" for name, value in values if value == value)
    return f"output {neuron.index}" + (f" ({known})" if known else "")


def describe_input(given: Input) -> str:
    """Return an input of a layer and its values in words."""
    x = "" if math.isnan(given.x) else f"x = {given.x:.6g}, "
    return f"input {given.index} ({x}R = {given.relevance:.6g})"
