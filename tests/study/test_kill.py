"""Killed at any point and started again: the same report, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.commands import command
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


PICTURES = 8  # enough that a process is stopped in time on a busy machine


def test_the_command_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(PICTURES):
        noise(number).save(folder / f"{number:02}.png")
    options = "--model squeezenet1_1 --weights none --stabilizer signed".split()
    arguments = ["investigate", folder, *options, "--out", out]
    run = subprocess.Popen(
        [sys.executable, "-m", "captum_lrp_stab.cli", *arguments],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list((out / "pictures").glob("*.json")):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    shown, said = run.communicate()
    first = kept(out)
    assert 1 <= len(first) < PICTURES and shown == b"" and run.returncode == 130
    begun = f"stopped after {len(first)} of {PICTURES} pictures; what is finished is kept in {out}"
    assert said.decode() == f"{begun}, and the same command goes on from there\n"
    assert not (out / "report.json").exists()
    done = command(*arguments)
    assert done.exit_code == 0 and f"stable on all {PICTURES} pictures" in done.stdout
    assert first.items() <= kept(out).items()
    content = json.loads((out / "report.json").read_text())
    assert [p["picture"] for p in content["pictures"]] == [f"{i:02}.png" for i in range(PICTURES)]
