"""What is kept, what is taken again, and what is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.study import report
from captum_lrp_stab.study.measuring import Measurer
from tests.helpers.study_folders import NAMES, fill, kept, noise, report_of, study


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that were measured."""
    seen: list[str] = []
    measure = Measurer.measure

    def note(self: Measurer, file: Any, *rest: Any) -> Any:
        seen.append(file.name)
        return measure(self, file, *rest)

    monkeypatch.setattr(Measurer, "measure", note)
    return seen


def test_a_finished_picture_is_not_measured_again(tmp_path: Path, measured) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    first = study(folder, out)
    assert measured == ["0.png", "2.png", "deep/1.png"]
    before = kept(out)
    again = study(folder, out)
    assert len(measured) == 3 and kept(out) == before
    assert again.records == first.records and again.summaries() == first.summaries()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"finite": true', '"finite": false'),
        lambda text: text.replace('"score":', '"other":'),
        lambda text: text.replace('"settings": "', '"settings": "x'),
        lambda text: "[]",
        lambda text: '{"record": null}',
        lambda text: "[" * 100000,
    ],
    ids=["half", "empty", "changed", "renamed", "other settings", "list", "null", "deep"],
)
def test_a_damaged_record_is_redone(tmp_path: Path, measured, damage) -> None:
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    first = study(folder, out)
    path = next(p for p in (out / "pictures").iterdir() if "deep/1" in p.read_text())
    whole = path.read_text()
    assert damage(whole) != whole
    path.write_text(damage(whole))
    measured.clear()
    assert study(folder, out).records == first.records
    assert measured == ["deep/1.png"]
    assert path.read_text() == whole


def test_a_changed_picture_is_measured_again(tmp_path: Path, measured) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    first = study(folder, out)
    measured.clear()
    noise(99).save(folder / "2.png")
    second = study(folder, out)
    assert measured == ["2.png"]
    assert [a == b for a, b in zip(first.records, second.records, strict=True)] == [
        *(True, False, True)
    ]


def test_pictures_that_come_go_or_move(tmp_path: Path, measured) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    study(folder, out)
    measured.clear()
    (folder / "0.png").unlink()
    (folder / "2.png").rename(folder / "deep" / "renamed.png")
    noise(7).save(folder / "new.png")
    found = study(folder, out)
    assert [r.picture for r in found.records] == ["new.png", "deep/1.png", "deep/renamed.png"]
    assert measured == ["new.png"]


def test_equal_pictures_both_appear_and_are_measured_once(tmp_path: Path, measured) -> None:
    folder = fill(tmp_path / "in", 1)
    shutil.copy(folder / "0.png", folder / "deep" / "0.png")
    found = study(folder, tmp_path / "out")
    assert [r.picture for r in found.records] == ["0.png", "deep/0.png"]
    assert found.records[0].runs == found.records[1].runs
    assert measured == ["0.png"]
    assert len(found.runs("none")) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ["signed"]}, "stabilizers was none signed:0.1 additive:0.1, now signed:1e-6"),
        ({"dtype": "float64"}, "dtype was float32, now float64; the weights' values are others"),
        ({"form": "gradient"}, "form was relevance, now gradient"),
        ({"target": 2}, "target was not given, now 2"),
        ({"rules": "epsilon"}, "rules was zero, now epsilon; the rules of the layers are others"),
        ({"attention": "cp"}, "attention was attnlrp, now cp"),
        ({"threshold": 50}, "threshold was 1000.0, now 50.0"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, options, said) -> None:
    folder, out = fill(tmp_path / "in", 1), tmp_path / "out"
    study(folder, out)
    before = kept(out)
    with pytest.raises(ReportError) as caught:
        study(folder, out, **options)
    assert said in str(caught.value)
    assert "give another folder with --out, or --fresh" in str(caught.value)
    assert kept(out) == before
    study(folder, out, fresh=True, **options)
    study(folder, out, **options)


def test_other_weights_or_versions_are_refused(tmp_path: Path, monkeypatch) -> None:
    folder, out = fill(tmp_path / "in", 1), tmp_path / "out"
    study(folder, out)
    from tests.helpers.study_folders import classifier

    def other(*args: Any) -> Any:
        c = classifier(*args)
        with torch.no_grad():
            c.model[5].bias[0] += 1e-3
        return c

    with monkeypatch.context() as patch:
        patch.setattr("tests.helpers.study_folders.classifier", other)
        with pytest.raises(ReportError, match="the weights' values are others; give"):
            study(folder, out)
    monkeypatch.setattr("captum_lrp_stab.study.settings.__version__", "9.9")
    with pytest.raises(ReportError, match=r"captum-lrp-stab was .*, now 9\.9; give"):
        study(folder, out)


def test_fresh_throws_away_what_is_kept_and_nothing_else(tmp_path: Path, measured) -> None:
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    study(folder, out)
    (folder / "0.png").unlink()
    (out / "pictures" / "mine.json").write_text("{}")
    (out / "pictures" / f".{'0' * 32}.tmp").write_text("half")
    measured.clear()
    study(folder, out, fresh=True)
    assert measured == ["deep/1.png"]
    names = {path.name for path in (out / "pictures").iterdir()}
    assert len(names) == 2 and "mine.json" in names


def test_a_damaged_settings_file_does_not_stand_in_the_way(tmp_path: Path, measured) -> None:
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    study(folder, out)
    whole = (out / "settings.json").read_bytes()
    (out / "settings.json").write_bytes(whole[:50])
    measured.clear()
    study(folder, out)
    assert not measured and (out / "settings.json").read_bytes() == whole


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match=r"cannot make the folder .* with --out"):
        study(folder, tmp_path / "file")
    out = tmp_path / "out"
    (out / "settings.json").mkdir(parents=True)
    with pytest.raises(ReportError, match=r"cannot write into .* with --out"):
        study(folder, out)


def test_records_and_report_have_neither_nan_nor_dates(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    report.write(study(folder, out), out)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for path in (out / "report.json", *(out / "pictures").iterdir()):
        json.loads(path.read_text(), parse_constant=refuse)
    first = report_of(out)
    report.write(study(folder, out), out)
    assert report_of(out) == first
    assert list(json.loads(first["report.json"])["amplification"]) == list(NAMES)
