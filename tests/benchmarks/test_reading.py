"""Runs of the benchmark that were kept as JSON, read back and put together."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import drawing, report
from benchmarks.correctness import OK, WRONG, Correctness
from benchmarks.many import TARGETED, Many
from benchmarks.memory import Memory
from benchmarks.reading import read
from benchmarks.records import Results, Row
from benchmarks.settings import Settings
from benchmarks.timing import evaluate

TIMING = evaluate([9.0, 2.0, 4.0], [9.0, 1.0, 2.0])
MEMORY = Memory(300, 0, 400)
GOOD = Correctness(OK, relative_l2=1e-7, sum_over_score=1.0)
VGG = Row("vgg16", 4, "ours", "epsilon", GOOD, timing=TIMING)
VIT = Row("vit_b_16", 1, "zennit", "epsilon_plus", Correctness(WRONG, "why"), timing=TIMING)
FIRST = Results(
    {"processor": "one", "cores": 2},
    Settings(models=("vgg16",), rounds=3),
    {"vgg16": "random"},
    (VGG,),
    (Many("vgg16", TARGETED, TIMING),),
)


def keep(path: Path, results: Results) -> Path:
    path.write_text(report.as_json(results), encoding="utf-8")
    return path


def test_what_is_read_is_what_was_kept(tmp_path) -> None:
    whole = replace(FIRST, rows=(VGG, replace(VIT, memory=MEMORY, unit=Memory(100, 0, 100))))
    assert read([keep(tmp_path / "a.json", whole)]) == whole


def test_runs_are_put_together(tmp_path) -> None:
    measured = replace(VGG, timing=None, memory=MEMORY, unit=Memory(100, 0, 100))
    second = replace(FIRST, weights={"vit_b_16": "random"}, rows=(VIT, measured), many=())
    other = replace(second, settings=replace(second.settings, rounds=2))
    paths = [keep(tmp_path / "b.json", other), keep(tmp_path / "a.json", FIRST)]
    found = read(paths)
    assert found.rows == (replace(measured, timing=TIMING), VIT)  # in the order of the models
    assert found.many == FIRST.many
    assert found.weights == {"vgg16": "random", "vit_b_16": "random"}
    assert found.settings.rounds == 2  # all rows have at least so many
    assert (found.settings.models, found.settings.batches) == (("vgg16", "vit_b_16"), (1, 4))
    assert drawing.draw(found).axes  # which needs to know all of them


def test_the_later_file_counts(tmp_path) -> None:
    later = replace(FIRST, rows=(replace(VGG, timing=evaluate([1.0, 1.0], [1.0, 1.0])),))
    paths = [keep(tmp_path / "a.json", FIRST), keep(tmp_path / "b.json", later)]
    assert read(paths).rows == later.rows
    assert read(paths[::-1]).rows == FIRST.rows


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(FIRST, machine={"processor": "two", "cores": 2}), "another machine"),
        (replace(FIRST, settings=Settings(size=64)), "another size"),
        (replace(FIRST, settings=Settings(dtype="bfloat16")), "another dtype"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, other, said) -> None:
    paths = [keep(tmp_path / "a.json", FIRST), keep(tmp_path / "b.json", other)]
    with pytest.raises(ValueError, match=rf"b\.json was measured (on|with) {said}"):
        read(paths)


@pytest.mark.parametrize("text", ["", "{}", "[1]", json.dumps({"machine": {}})])
def test_other_files_are_refused(tmp_path, text) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is no file that --json has written"):
        read([path])


def test_the_command_reports_on_them(tmp_path, capsys) -> None:
    path = keep(tmp_path / "a.json", FIRST)
    out = tmp_path / "b.md"
    assert command.main(["--read", str(path), "--markdown", str(out)]) == 0
    assert "vgg16" in capsys.readouterr().out
    assert out.read_text() == report.as_markdown(FIRST)
    assert command.main(["--read", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
