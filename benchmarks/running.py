"""The whole benchmark in order: models, checks, interleaved rounds, memory."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import machine, many, memory, models
from benchmarks.contenders import Explainer, Method, NotInstalledError, select
from benchmarks.correctness import (
    NOT_INSTALLED,
    REFUSED,
    Checker,
    Correctness,
    in_words,
)
from benchmarks.memory import Memory
from benchmarks.models import Subject
from benchmarks.records import Results, Row
from benchmarks.settings import Settings
from benchmarks.timing import CLOCKS, Step, Timing, interleave, quiet
from captum_lrp_stab.errors import MissingExtraError

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Entrant:
    """A contender on one model; without an explainer it takes no part."""

    method: Method
    correctness: Correctness
    explainer: Explainer | None = None


def run(settings: Settings, say: Say = lambda text: None) -> Results:
    """Run the benchmark.

    Args:
        settings: What to measure.
        say: Is told what is being done.

    Raises:
        ValueError: A method, preset or model has no such name.
    """
    methods = select(settings.methods, settings.presets)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    rows: list[Row] = []
    weights: dict[str, str] = {}
    for name in settings.models:
        say(f"{name}: checking")
        try:
            subject = models.load(name, settings)
        except MissingExtraError as error:
            weights[name] = f"not measured: {error}"
            continue
        weights[name] = subject.weights
        entrants = _enter(methods, subject, settings)
        for batch in settings.batches:
            say(f"{name}, batch {batch}: timing")
            timings, failed = _time(entrants, subject, batch, settings)
            rows += _rows(entrants, timings, failed, name, batch, settings, say)
    found: tuple[many.Many, ...] = ()
    if settings.many and any(not text.startswith("not measured") for text in weights.values()):
        say("several targets and stabilizers in one call")
        found = many.measure(settings)
    return Results(machine.describe(settings.device), settings, weights, tuple(rows), found)


def _enter(methods: list[Method], subject: Subject, settings: Settings) -> list[_Entrant]:
    """Build the contenders, run each once on one input, and check what it says."""
    checker = Checker(subject, settings.dtype)
    own: dict[str, Subject] = {}  # one copy of the model for each library that writes to it
    entrants = []
    for method in methods:
        try:
            model = subject
            if method.kind.changes_model:
                model = own.setdefault(method.library, subject.copied())
            explainer = method.build(model)
            with quiet():
                explainer.prepare()
                try:
                    relevance = explainer.attribute(checker.inputs, checker.target)
                finally:
                    explainer.finish()
        except NotInstalledError as error:
            entrants.append(_Entrant(method, Correctness(NOT_INSTALLED, str(error))))
        except Exception as error:  # a contender may refuse a model in any way
            entrants.append(_Entrant(method, Correctness(REFUSED, in_words(error))))
        else:
            known = explainer.known_difference()
            entrants.append(_Entrant(method, checker.check(method, relevance, known), explainer))
    return entrants


def _time(
    entrants: list[_Entrant], subject: Subject, batch: int, settings: Settings
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    inputs = subject.inputs(batch)
    target = subject.targets(inputs)
    steps = {
        entrant.method.name: _step(entrant.explainer, inputs, target)
        for entrant in entrants
        if entrant.explainer is not None
    }
    return interleave(steps, settings.rounds, CLOCKS[settings.device])


def _step(explainer: Explainer, inputs: torch.Tensor, target: torch.Tensor) -> Step:
    return Step(lambda: explainer.attribute(inputs, target), explainer.prepare, explainer.finish)


def _rows(
    entrants: list[_Entrant],
    timings: dict[str, Timing],
    failed: dict[str, Exception],
    model: str,
    batch: int,
    settings: Settings,
    say: Say,
) -> list[Row]:
    """Return the rows of one model and batch size, with the memory of those that ran."""
    rows: list[Row] = []
    unit: Memory | None = None
    for entrant in entrants:
        name, correctness = entrant.method.name, entrant.correctness
        if name in failed:
            correctness = Correctness(REFUSED, in_words(failed[name]))
        peak: Memory | None = None
        if settings.memory and name in timings:
            say(f"{model}, batch {batch}: memory of {name}")
            peak = memory.measure(model, batch, name, settings)
            unit = unit or peak  # the gradient comes first
        library, rules = entrant.method.library, entrant.method.rules
        timing = timings.get(name)
        rows.append(Row(model, batch, library, rules, correctness, timing, peak, unit))
    return rows
