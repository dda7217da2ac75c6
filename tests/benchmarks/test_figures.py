"""Figures of the benchmark: multiples of the gradient, and whether targets are met."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from benchmarks import drawing, report
from benchmarks.contenders import select
from benchmarks.correctness import DIFFERENT, OK, WRONG, Correctness
from benchmarks.many import STABILIZED, TARGETED, Many
from benchmarks.memory import Memory
from benchmarks.records import Results, Row
from benchmarks.settings import Settings
from benchmarks.targets import FACTORS, MEMORY, MET, MISSED, NOT_MEASURED, TIME, outcomes
from benchmarks.timing import Step, evaluate, interleave

# multiples ---------------------------------------------------------------------------------------


def test_a_multiple_is_the_median_of_those_of_each_round() -> None:
    unit, own = [50.0, 1.0, 2.0, 4.0], [99.0, 3.0, 4.0, 20.0]
    timing = evaluate(own, unit)
    assert (timing.multiple.low, timing.multiple.median, timing.multiple.high) == (2.5, 3.0, 4.0)
    assert timing.seconds.median == 4.0
    assert (timing.first, timing.rounds) == (99.0, (3.0, 4.0, 20.0))
    assert evaluate(unit, unit).multiple.median == 1.0


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    seen: list[str] = []

    def step(name: str) -> Step:
        return Step(lambda: seen.append(name), lambda: seen.append("("), lambda: seen.append(")"))

    def clock(call: Callable[[], object]) -> float:
        call()
        return float(len(seen))

    timings, failed = interleave({"a": step("a"), "b": step("b")}, rounds=2, clock=clock)
    assert "".join(seen) == "(a)(b)(b)(a)(a)(b)"
    assert not failed
    assert timings["a"].rounds == (11.0, 14.0)
    assert timings["b"].rounds == (8.0, 17.0)


def test_a_contender_that_fails_leaves_the_others_alone() -> None:
    undone: list[int] = []

    def fail() -> None:
        raise MemoryError("too large")

    steps = {"unit": Step(lambda: None), "bad": Step(fail, finish=lambda: undone.append(1))}
    timings, failed = interleave(steps, rounds=2, clock=lambda call: (call(), 1.0)[1])
    assert list(timings) == ["unit"]
    assert isinstance(failed["bad"], MemoryError)
    assert undone == [1]
    timings, failed = interleave({"bad": Step(fail), "unit": Step(lambda: None)}, rounds=1)
    assert not timings
    assert set(failed) == {"bad", "unit"}  # without the unit there are no multiples


def test_memory_multiples() -> None:
    unit = Memory(peak=100, resident=50)
    row = Row("m", 1, "ours", "epsilon", Correctness(OK), None, Memory(125, 0, 100), unit)
    assert (row.memory_multiple, row.resident_multiple) == (1.25, 2.0)
    assert replace(row, memory=Memory(note="not measured: killed")).memory_multiple is None


# targets -----------------------------------------------------------------------------------------


def timed(seconds: float, **facts: object) -> Row:
    given = {"model": "vgg16", "batch": 1, "library": "ours", "rules": "epsilon"} | facts
    timing = evaluate([9.0, seconds, seconds], [9.0, 1.0, 1.0])
    return Row(**{"correctness": Correctness(OK), "timing": timing} | given)


def results_of(*rows: Row, **settings: object) -> Results:
    return Results({}, replace(Settings(), **settings), {}, rows)


def outcome(results: Results, target: str):
    return next(o for o in outcomes(results) if o.target.startswith(target))


@pytest.mark.parametrize(("multiple", "status"), [(1.10, MET), (1.11, MISSED)])
def test_targets_of_time(multiple: float, status: str) -> None:
    results = results_of(timed(multiple))
    assert outcome(results, "time of epsilon, vgg16, batch 1").status == status
    assert outcome(results, "time of epsilon, vgg16, batch 4").status == NOT_MEASURED
    for other in (Settings(device="cuda"), Settings(size=64), Settings(dtype="bfloat16")):
        elsewhere = replace(results, settings=other)
        assert outcome(elsewhere, "time of epsilon, vgg16, batch 1").status == NOT_MEASURED


def test_targets_of_factors_go_by_the_worst_row() -> None:
    box = {"rules": "epsilon_gamma_box"}
    theirs = box | {"library": "zennit", "correctness": Correctness(WRONG)}
    rows = [timed(2.0, **box), timed(10.0, **theirs)]
    found = outcome(results_of(*rows), "zennit takes longer, epsilon_gamma_box")
    assert (found.measured, found.status) == (5.0, MET)
    rows += [timed(2.0, batch=4, **box), timed(1.5, batch=4, **theirs)]
    found = outcome(results_of(*rows), "zennit takes longer, epsilon_gamma_box")
    assert (found.measured, found.met, found.of, found.status) == (0.75, 1, 2, MISSED)
    assert found.where == "vgg16, batch 4, zennit:epsilon_gamma_box (wrong)"
    assert outcome(results_of(*rows), "no library is faster").status == MISSED
    assert outcome(results_of(*rows[:2]), "no library is faster").status == MET


def test_targets_of_memory() -> None:
    unit = Memory(peak=100)
    own = timed(1.0, memory=Memory(125), unit=unit)
    theirs = timed(2.0, library="captum", memory=Memory(130), unit=unit)
    results = results_of(own, theirs)
    assert outcome(results, "memory of epsilon,").status == MET
    assert outcome(results, "memory as a share of captum's").status == MET
    assert outcome(results, "memory as a share of zennit's").status == NOT_MEASURED
    results = results_of(replace(own, memory=Memory(131)), theirs)
    assert outcome(results, "memory of epsilon,").measured == 1.31
    assert outcome(results, "memory of epsilon,").status == MISSED
    assert outcome(results, "memory as a share of captum's").status == MISSED


def test_a_missed_target_is_marked() -> None:
    found = outcomes(results_of(timed(1.5)))
    table = report.target_table(found)
    assert [table.rows[index][1] for index in table.bad] == [MISSED]
    assert "1 missed" in report.document(results_of(timed(1.5))).verdict
    assert "MISSED" in report.as_text(results_of(timed(1.5)))


def test_targets_name_methods_that_exist() -> None:
    names = {method.name for method in select()}
    assert {f"ours:{rules}" for rules in [*TIME, *MEMORY, *(r for _, r in FACTORS)]} <= names
    assert {f"{library}:{rules}" for library, rules in FACTORS} <= names


def test_targets_of_several_in_one_call() -> None:
    def measured(ratio: float) -> tuple[Many, ...]:
        timing = evaluate([9.0, ratio], [9.0, 1.0])
        return Many("vgg16", STABILIZED, timing), Many("vgg16", TARGETED, timing)

    results = replace(results_of(), many=measured(4.0))
    assert outcome(results, f"time of {STABILIZED}").status == MISSED
    assert outcome(results, f"time of {TARGETED}").status == MET
    elsewhere = replace(results, settings=Settings(size=64))
    assert outcome(elsewhere, f"time of {TARGETED}").status == NOT_MEASURED


@pytest.mark.parametrize(
    ("verdict", "said"), [(OK, None), (WRONG, "wrong result"), (DIFFERENT, "another rule's result")]
)
def test_the_legend_says_what_a_result_is(verdict: str, said: str | None) -> None:
    row = timed(2.0, library="autolrp", correctness=Correctness(verdict))
    (legend,) = drawing.draw(results_of(timed(1.0), row)).legends
    labels = [text.get_text() for text in legend.get_texts() if "result" in text.get_text()]
    assert labels == ([] if said is None else [said])
