"""``--json`` and ``--quiet``, and how the commands end where something goes wrong."""

import errno
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import TINY, command, failed
from tests.helpers.repository import DATA
from tests.helpers.study_folders import noise

pytestmark = pytest.mark.usefixtures("interruptible")

# the arguments, and the file whose content is printed
COMMANDS = {
    "investigate": (("investigate", *TINY, "--stabilizer", "signed"), "report.json"),
    "study": (("investigate", "in", *TINY, "--stabilizer", "signed"), "report.json"),
    "compare": (("compare", *TINY, "--reference", "captum_driver"), "comparison.json"),
    "diagnose": (("diagnose", *TINY, "--rules", "epsilon_plus"), "report.json"),
}
NOT_FINITE = ("--rules", "zero", "--stabilizer", "none", "--form", "relevance", "--no-advice")
CONSTANT = DATA / "constant_areas.png"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "in").mkdir()
    noise(1).save(tmp_path / "in" / "cat.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_that_of_the_file_and_nothing_else(name: str, folder: Path) -> None:
    arguments, file = COMMANDS[name]
    result = command(*arguments, "--json", "--out", "out")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout == (folder / "out" / file).read_text("utf-8")
    assert isinstance(json.loads(result.stdout, parse_constant=pytest.fail), dict)


def test_json_and_the_status_of_what_is_not_finite() -> None:
    result = command("diagnose", CONSTANT, *TINY, *NOT_FINITE, "--json", "-q")
    assert (result.exit_code, result.stderr) == (1, "")
    assert json.loads(result.stdout, parse_constant=pytest.fail)["verdict"] == "not finite"


@pytest.mark.parametrize("name", ["investigate", "study", "compare"])
def test_quiet(name: str, folder: Path) -> None:
    """Nothing is printed, and the files are written."""
    arguments, file = COMMANDS[name]
    result = command(*arguments, "--out", "out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (folder / "out" / file).exists()


def test_quiet_is_not_silent_on_mistakes() -> None:
    failed(command("diagnose", "nothing.png", "--quiet"), "nothing.png does not exist")


def test_a_plan_quiet() -> None:
    assert command("plan", "squeezenet1_1", "--strict", "-q").output == ""
    rows = command("plan", "squeezenet1_1", "-q", "--json").stdout
    assert len(json.loads(rows, parse_constant=pytest.fail)) == 66


@pytest.mark.parametrize("name", ["investigate", "study", "compare"])
def test_a_full_disk(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    failed(command(*COMMANDS[name][0], "--out", "out"), "No space left on device", "out")


@pytest.mark.parametrize("name", [*COMMANDS, "plan"])
def test_interrupted_while_loading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("captum_lrp_stab.zoo.load", interrupt)
    result = command(*(("plan", "resnet18") if name == "plan" else COMMANDS[name][0]))
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.startswith("interrupted while loading")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_interrupted_while_computing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("captum_lrp_stab.propagation.checks.check_parameters", interrupt)
    result = command(*COMMANDS[name][0], "--out", "out")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted while computing; nothing has been written\n"
    assert not Path("out").exists()


def test_interrupted_while_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is there as a whole."""
    replace, left = os.replace, 2

    def interrupted(source: Any, target: Any) -> None:
        nonlocal left
        if not left:
            signal.raise_signal(signal.SIGINT)
        left -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    result = command(*COMMANDS["diagnose"][0], "--out", "out")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted while writing; the files in out may be incomplete\n"
    assert {path.name for path in Path("out").iterdir()} == {"report.html", "report.md"}


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("captum_lrp_stab.propagation.checks.check_parameters", fail)
    failed(command("diagnose", *TINY), "not enough memory", "dtype")
    said = "a defect"
    assert isinstance(command("diagnose", *TINY).exception, RuntimeError)


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Pillow, say, about a picture that is large."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 40000)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = command("diagnose", CONSTANT, *TINY, "--target", "-1")
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("warning: Image size (") and second.startswith("error: target -1")
