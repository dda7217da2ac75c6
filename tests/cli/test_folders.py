"""A command that comes to nothing leaves no folder for a report."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import TINY, command
from tests.helpers.repository import DATA

_PADDED = ("--model", "efficientnet_lite0", "--weights", "none")
# what is found out after the folder has been made, because it takes a network
FAILURES: dict[str, tuple[str, ...]] = {
    "compare target": ("compare", *TINY, "--target", "1000"),
    "compare reference": ("compare", *_PADDED, "--reference", "captum"),
    "compare model": ("compare", "--model", "resnet19"),
    "compare weights": ("compare", "--weights", "nothing.pth"),
    "diagnose target": ("diagnose", *TINY, "--target", "1000"),
    "diagnose model": ("diagnose", *_PADDED, "--form", "stock"),
    "diagnose rules": ("diagnose", *TINY, "--rules", "espilon"),
    "investigate target": ("investigate", *TINY, "--target", "1000"),
    "investigate weights": ("investigate", "--weights", "nothing.pth"),
    "study target": ("investigate", "pictures", *TINY, "--target", "1000"),
    "study model": ("investigate", "pictures", "--model", "resnet19"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("name", FAILURES)
def test_no_folder_is_left(name: str, here: Path) -> None:
    before = entries(here)
    assert command(*FAILURES[name]).exit_code == 2
    assert command(*FAILURES[name], "--out", "of/several/folders").exit_code == 2
    assert entries(here) == before


@pytest.mark.parametrize("name", ["compare target", "study model"])
def test_what_was_there_stays(name: str, here: Path) -> None:
    (here / "mine").mkdir()
    assert command(*FAILURES[name], "--out", "mine/report").exit_code == 2
    assert command(*FAILURES[name], "--out", "mine").exit_code == 2
    assert (here / "mine").is_dir() and entries(here / "mine") == []
    (here / "mine" / "file").touch()
    assert command(*FAILURES[name], "--out", "mine").exit_code == 2
    assert entries(here / "mine") == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ["compare", "diagnose", "investigate"])
def test_nor_by_a_defect_or_an_interruption(
    name: str, error: type[BaseException], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        if error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        raise error

    monkeypatch.setattr("captum_lrp_stab.zoo.load", fails)
    before = entries(here)
    assert command(name).exit_code != 0
    assert entries(here) == before


def test_a_folder_that_can_be_made_in_part(here: Path) -> None:
    result = command("diagnose", *TINY, "--out", f"part/{'x' * 300}")
    assert result.exit_code == 2 and "cannot make the folder" in result.stderr
    assert not (here / "part").exists()


def test_a_report_is_kept_whatever_it_finds(here: Path) -> None:
    options = (*TINY, "--stabilizer", "none", "--form", "relevance", "--rules", "zero", "-q")
    assert command("investigate", DATA / "constant_areas.png", *options).exit_code == 0
    content = json.loads((here / "lrp-investigation" / "report.json").read_text())
    assert content["pictures"][0]["runs"][0]["verdict"] == "not finite"
