"""Running a command, and the one line that an error may end it with."""

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
