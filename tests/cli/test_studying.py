"""The command on folders: what it takes, what it prints, and how mistakes end."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import command, failed
from tests.helpers.study_folders import noise

SMALL = ("--model", "squeezenet1_1", "--weights", "none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one/cat.png", "two/cat.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True)
        noise(len(name) + ord(name[0])).save(path)
    return tmp_path / "in"


def content(out: Path) -> Any:
    return json.loads((out / "report.json").read_text())


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "bad.png").write_text("castle")
    result = command("investigate", folder, *SMALL, "--stabilizer", "signed", "--out", out)
    assert result.exit_code == 0, result.output
    assert [p["picture"] for p in content(out)["pictures"]] == [
        *("bad.png", "one/cat.png", "two/cat.png")
    ]
    assert "squeezenet1_1 (random, seed 0) on 3 pictures" in result.stdout
    assert "bad.png was not measured: the file is not an image file" in result.stdout
    assert "1 picture could not be measured" in " ".join(result.stdout.split())
    for name in ("report.html", "report.md", "report.json", "peaks.png", "amplification.png"):
        assert (out / name).is_file() and name in result.stdout.replace("\n", "")
    changed = ("--stabilizer", "clip", "--out", out)
    result = command("investigate", folder, *SMALL, *changed)
    failed(result, "stabilizers was signed:1e-6, now clip:1e-6", "--fresh")
    assert command("investigate", folder, *SMALL, *changed, "--fresh").exit_code == 0
    assert content(out)["settings"]["stabilizers"] == ["clip:1e-6"]


def test_one_file_with_a_grid_and_several_files(folder: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", folder / "one" / "cat.png"
    grid = ("--stabilizer", "signed", "--stabilizer", "none", "--epsilon", "1e-6:1e-3:2")
    result = command("investigate", file, *SMALL, *grid, "--out", out)
    assert result.exit_code == 0, result.output
    assert content(out)["settings"]["stabilizers"] == ["signed:1e-6", "signed:1e-3", "none"]
    assert (out / "heatmaps.png").exists() and (out / "peaks.png").exists()
    both = (file, folder / "two" / "cat.png")
    result = command("investigate", *both, *SMALL, "--stabilizer", "none", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert [p["picture"] for p in content(tmp_path / "b")["pictures"]] == [
        *("one/cat.png", "two/cat.png")
    ]


def test_no_picture_at_all_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.png").write_text("castle")
    result = command("investigate", folder, *SMALL, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "No picture could be measured" in result.stdout


def test_a_wrong_grid_is_quoted_as_it_was_given(folder: Path) -> None:
    failed(command("investigate", folder, *SMALL, "--epsilon", "1:x:3"), "'1:x:3'")


def test_default_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a study in a folder of pictures does not become part of the next one."""
    monkeypatch.chdir(folder)
    for _ in range(2):
        result = command("investigate", ".", *SMALL, "--stabilizer", "none")
        assert result.exit_code == 0, result.output
        assert len(content(folder / "lrp-study")["pictures"]) == 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("empty",), ("there is no picture in", "empty")),
        (("in", "nothing.png"), ("nothing.png does not exist",)),
        (("in", "--epsilon", "1e-1:1e-9:9"), ("1e-1:1e-9:9", "the smaller one first")),
        (("in", "--epsilon", "0.1", "--stabilizer", "none"), ("--stabilizer signed",)),
        (("in", "--stabilizer", "sined"), ("'sined'", "did you mean signed")),
        (("in", "--target", "1000"), ("target 1000 is out of range", "0 to 999")),
        (("in", "--out", "file"), ("cannot make the folder file",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes(folder: Path, tmp_path: Path, monkeypatch, arguments, parts) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    failed(command("investigate", *SMALL, *arguments), *parts)


def test_help() -> None:
    shown = command("investigate", "--help").output
    for part in ("--epsilon", "--fresh", "LOW:HIGH:N", "goes on where it was stopped"):
        assert part in " ".join(shown.replace("│", " ").split())
