"""Interleaved timing: what a machine does meanwhile hits every contender alike.

In each round every contender runs once, in an order that is shifted by one from round to round, and
is divided by the first contender's time of that round. The first round is thrown away: caches are
made in it.
"""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of several measurements."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: list[float]) -> "Spread":
        """Return those of values, at least one.

        Example:
            >>> Spread.of([4.0, 1.0, 2.0, 3.0, 10.0])
            Spread(low=2.0, median=3.0, high=4.0)
        """
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(low, median, high)


@dataclass(frozen=True)
class Timing:
    """How long a contender took.

    Args:
        seconds: Of one call.
        multiple: The same in units of the first contender's time of the same round.
        first: Seconds of the call that was thrown away, which makes what is kept afterwards.
        rounds: Seconds of each round.
    """

    seconds: Spread
    multiple: Spread
    first: float
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """One call to be timed, and what has to be done around it, which is not."""

    call: Callable[[], object]
    prepare: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None


Clock = Callable[[Callable[[], object]], float]


def wall(call: Callable[[], object]) -> float:
    """Return the seconds a call takes on the CPU."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def events(call: Callable[[], object]) -> float:
    """Return the seconds a call takes on the GPU, from the first kernel to the last."""
    event: Any = torch.cuda.Event  # without type information
    begun, ended = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    begun.record()
    call()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


CLOCKS: dict[str, Clock] = {"cpu": wall, "cuda": events}


def interleave(
    steps: Mapping[str, Step], rounds: int, clock: Clock = wall
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Time the contenders in turn.

    Args:
        steps: By name; the first is the unit.
        rounds: How many count.
        clock: Returns how long a call takes.

    Returns:
        The timings, and the errors of those that could not be run.
    """
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    failed: dict[str, Exception] = {}
    with _little_garbage():
        for index in range(rounds + 1):
            shift = index % len(names)
            for name in names[shift:] + names[:shift]:
                if name in failed:
                    continue
                try:
                    seconds[name].append(_once(steps[name], clock))
                except Exception as error:  # a contender may fail in any way; that is a result
                    failed[name] = error
    if names[0] in failed:  # without the unit nothing can be said
        return {}, dict.fromkeys(names, failed[names[0]])
    unit = seconds[names[0]]
    timings = {name: evaluate(found, unit) for name, found in seconds.items() if name not in failed}
    return timings, failed


def evaluate(seconds: list[float], unit: list[float]) -> Timing:
    """Return the timing of a contender from all its rounds and all those of the unit.

    Example:
        >>> evaluate([9.0, 2.0, 4.0, 3.0], [9.0, 1.0, 2.0, 1.0]).multiple.median
        2.0
    """
    kept = seconds[1:]
    multiples = [s / u for s, u in zip(kept, unit[1:], strict=True)]
    return Timing(Spread.of(kept), Spread.of(multiples), seconds[0], tuple(kept))


def _once(step: Step, clock: Clock) -> float:
    gc.collect()  # here, so that it does not happen while the clock runs
    with quiet():
        step.prepare()
        try:
            gc.disable()
            return clock(step.call)
        finally:
            gc.enable()
            step.finish()


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let each collection look at new objects only: the modules of torch alone take it 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings of contenders: Captum warns of every layer, zennit of hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
