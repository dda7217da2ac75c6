"""How a command ends: an error is one message, and Ctrl-C says what is kept."""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from captum_lrp_stab.cli.options import INTERRUPTED, MISTAKE
from captum_lrp_stab.errors import LRPError


class Course:
    """What a command says if it is interrupted now, and the folders that it has made."""

    def __init__(self) -> None:
        self.now = "interrupted while loading; nothing has been written"
        self._made: list[Path] = []  # folders, the inner ones first

    def make_folder(self, folder: Path) -> None:
        """Make the folder of a report: where that fails, before minutes of work.

        Raises:
            ReportError: It cannot be made.
        """
        from captum_lrp_stab.reporting.files import make_folder

        self._made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        make_folder(folder)

    @contextmanager
    def writing(self, folder: Path) -> Iterator[None]:
        """Write a report, each file of which is replaced as a whole."""
        self.now = f"interrupted while writing; the files in {folder} may be incomplete"
        yield
        self.now = f"interrupted; the report is finished, and kept in {folder}"

    def remove_empty(self) -> None:
        """Remove the folders made for a report that came to nothing."""
        for path in self._made:
            with suppress(OSError):  # there is something in it
                path.rmdir()


@contextmanager
def ending() -> Iterator[Course]:
    """Turn errors of this package and of the system, and Ctrl-C, into a message and a status.

    Any other exception is a defect of this package, and its traceback is shown.

    Yields:
        What the command keeps up to date.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not where it is closed
            stream.reconfigure(errors="backslashreplace")  # names of bytes that are no text
    course = Course()
    try:
        with _warnings_in_one_line():
            yield course
    except LRPError as error:
        raise _mistake(str(error)) from error
    except OSError as error:
        raise _mistake(f"{error}; see that it can be read or written, and is not full") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise _mistake("there is not enough memory; take a smaller model or dtype") from error
    except KeyboardInterrupt:
        tell(course.now)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        course.remove_empty()


COMPUTING = "interrupted while computing; nothing has been written"


def tell(message: str, style: str | None = None) -> None:
    """Print one line to stderr."""
    console = Console(stderr=True, soft_wrap=True, emoji=False)  # ':x:' is an argument
    console.print(" ".join(message.splitlines()), style=style, markup=False, highlight=False)


def _mistake(message: str) -> typer.Exit:
    tell(f"error: {message}", "red")
    return typer.Exit(MISTAKE)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "allocate memory" in str(error)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show warnings without the line of code that gave them."""

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        tell(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
