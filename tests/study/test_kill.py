"""Killed at any point and started again: the same report, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.repository import ROOT
from tests.helpers.study_folders import fill, kept, noise, report_of

pytestmark = pytest.mark.usefixtures("interruptible")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def processes(folder: Path, out: Path, *points: str) -> list[tuple[str, int, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.study_process", folder, out, *points],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """Settings are put in place first, then 4 pictures, then 5 files of the report."""
    folder = fill(tmp_path / "in", 4)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    ((_, ended, everything),) = processes(folder, whole, "end")
    assert (ended, len(everything)) == (0, 4)
    # Of a process that goes on, only what it puts in place itself is counted.
    points = ("1-", "1+", "1-", "1+", "1+", "2-", "1+", "3+", "5-", "end")
    runs = processes(folder, pieces, *points)
    assert [ended for _, ended, _ in runs] == [-signal.SIGKILL] * 9 + [0]
    # The first of these dies before the settings are there, the second before any picture; the
    # third before its picture is in place, ...
    assert [len(measured) for _, _, measured in runs] == [0, 0, 1, 1, 1, 2, 1, 0, 0, 0]
    assert runs[2][2] == runs[3][2]  # a picture that was not kept is measured again
    finished = [runs[i][2][0] for i in (3, 4, 5, 6)]
    assert finished == everything  # each was kept once
    assert report_of(pieces) == report_of(whole)
    assert {k: v.partition(b"{")[2] for k, v in kept(pieces).items()} == {
        k: v.partition(b"{")[2] for k, v in kept(whole).items()
    }
    assert not list(pieces.rglob("*.tmp"))


def command(folder: Path, out: Path) -> list[str | Path]:
    options = "--model squeezenet1_1 --weights none --form relevance --stabilizer signed".split()
    module = [sys.executable, "-m", "captum_lrp_stab.cli", "investigate"]
    return [*module, folder, *options, "--out", out]


def stopped(folder: Path, out: Path, how: signal.Signals, least: int) -> subprocess.Popen[bytes]:
    """The command, ended as soon as some pictures are kept."""
    run = subprocess.Popen(
        command(folder, out), env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pictures = out / "pictures"
    deadline = time.monotonic() + 120
    while not (pictures.is_dir() and len(list(pictures.glob("*.json"))) >= least):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    run.send_signal(how)
    return run


PICTURES = 12  # enough that a process is stopped in time on a busy machine


def test_the_command_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(PICTURES):
        noise(number).save(folder / f"{number:02}.png")
    run = stopped(folder, out, signal.SIGINT, 1)
    shown, said = run.communicate()
    first = kept(out)
    assert 1 <= len(first) < PICTURES and shown == b"" and run.returncode == 130
    begun = f"stopped after {len(first)} of {PICTURES} pictures; what is finished is kept in {out}"
    assert said.decode() == f"{begun}, and the same command goes on from there\n"
    run = stopped(folder, out, signal.SIGKILL, len(first) + 1)
    assert run.communicate() == (b"", b"") and run.returncode == -signal.SIGKILL
    second = kept(out)
    assert len(first) < len(second) < PICTURES and first.items() <= second.items()
    assert not (out / "report.json").exists()
    done = subprocess.run(
        command(folder, out), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and f"stable on all {PICTURES} pictures" in done.stdout
    assert second.items() <= kept(out).items()
    content = json.loads((out / "report.json").read_text())
    assert [p["picture"] for p in content["pictures"]] == [f"{i:02}.png" for i in range(PICTURES)]
