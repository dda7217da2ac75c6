"""Running a command, and the one line that an error may end it with."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from captum_lrp_stab.cli import app

TINY = ("--model", "tiny", "--weights", "none")
"""A network of three layers, see ``tests/cli/conftest.py``: a real one takes seconds."""


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failed(result: Any, *parts: str) -> None:
    """One message on stderr, exit status 2, nothing else."""
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def in_a_process(folder: Path, *arguments: str) -> str:
    """What a command prints that runs in a folder, in a process of its own, and succeeds."""
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "captum_lrp_stab.cli", *arguments],
        cwd=folder,
        env=environment | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b[" not in done.stdout  # no colours: this is no terminal
    return done.stdout
