"""What the commands share: loading, the progress bar, standard output, tables."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from captum_lrp_stab import names
from captum_lrp_stab.cli.ending import tell
from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.reporting import progress as bar

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_lrp_stab.zoo import Classifier


@dataclass(frozen=True)
class Output:
    """What is printed, and where.

    Args:
        quiet: Nothing but errors.
        as_json: JSON on standard output, and nothing else there.
    """

    quiet: bool = False
    as_json: bool = False

    @property
    def has_bar(self) -> bool:
        """Whether progress is shown: where one can see it, and it can be drawn."""
        return not self.quiet and bar.is_seen()

    def deliver(self, to_json: Callable[[], str], show: Callable[[Console], None]) -> None:
        """Put a result on standard output, as JSON or for people.

        Nothing is wrong where the reader does not want all of it, as in ``| head -1``.

        Raises:
            ReportError: It cannot be written there, as where a disk is full.
        """
        try:
            if self.as_json:
                print(to_json().rstrip("\n"))
            elif not self.quiet:
                show(_console())
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _forget_stdout()
        except OSError as error:
            _forget_stdout()
            raise ReportError(f"cannot write to standard output: {error}") from error


def _forget_stdout() -> None:
    """Let what is still to be printed vanish, or Python would complain when it exits."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # a test's stdout has no number
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def picture_of(image: Path | None) -> "tuple[Image, str]":
    """Return a picture and what it is called; None is a photograph of scikit-image.

    Raises:
        PictureError: It cannot be read.
    """
    from captum_lrp_stab.images import reading

    if image is None:
        return reading.default_picture(), reading.DEFAULT_PICTURE
    # a name of bytes that are no text is shown by their escapes
    return reading.read(image), image.name.encode("utf-8", "backslashreplace").decode()


def model_of(model: str | None, by_captum: bool, output: Output) -> str:
    """Return the name of the network, without one the usual one, or one that Captum can run.

    Args:
        model: What the user gave.
        by_captum: Whether stock Captum is to run it.
        output: Whether to say which it is where it is not the usual one.
    """
    usual, simple = names.OFFLINE
    if model is not None or not by_captum:
        return model or usual
    if not output.quiet:
        tell(f"stock Captum cannot run {usual}; this is {simple}, --model takes another")
    return simple


def load(model: str, weights: str, seed: int, output: Output) -> "Classifier":
    """Return a classifier, showing the progress of a download where there is a bar."""
    from captum_lrp_stab import zoo

    return zoo.load(model, weights, seed, progress=output.has_bar)


@contextmanager
def progress(
    steps: int | None, output: Output, long: bool = False
) -> Iterator[Callable[[str], None]]:
    """Show a bar; yields what is called with a name before each step.

    Args:
        steps: How many there are, None if that is not known.
        output: Whether there is a bar at all.
        long: Show how much time is left.
    """
    if not output.has_bar:  # one that is disabled writes an empty line, before rich 14.3
        yield lambda name: None
        return
    with bar.bar(steps, long) as step:
        yield step


_NARROWEST = 72


def _console() -> Console:
    """Return where results are shown: plain, and never so narrow that numbers would be cut."""
    shown = Console(highlight=False, emoji=False)
    if shown.width < _NARROWEST:
        shown.width = _NARROWEST
    return shown


def print_table(
    shown: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[str],
    bad: Collection[int],
) -> None:
    """Print a table, with the columns of words to the left and the bad rows in red.

    Args:
        shown: Where to.
        header: The names of the columns.
        rows: Text.
        words: The columns that hold words.
        bad: The indices of the rows that are red.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in header:
        left = name in words
        table.add_column(  # a number is never broken where the terminal is narrow
            name, justify="left" if left else "right", overflow="fold", no_wrap=not left
        )
    for index, row in enumerate(rows):
        table.add_row(*row, style="red" if index in bad else None)
    shown.print(table)


def print_written(shown: Console, paths: Sequence[Path]) -> None:
    """Print which files were written, in one line however long it is."""
    shown.print(f"written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)
