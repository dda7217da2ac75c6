"""A progress bar on standard error, where a terminal shows it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

Step = Callable[[str], None]
"""Is called with a name before each step."""


def is_seen() -> bool:
    """Return whether standard error is a terminal that can draw a bar."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()  # FORCE_COLOR makes no terminal
    return is_terminal and not Console(stderr=True).is_dumb_terminal


@contextmanager
def bar(steps: int | None = None, long: bool = False) -> Iterator[Step]:
    """Show a bar; yields what is called with a name before each step.

    Args:
        steps: How many there are, None if that is not known.
        long: Show how much time is left.
    """
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    ]
    if long:
        columns.append(TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console) as shown:
        task = shown.add_task("", total=steps)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            shown.update(task, description=name, completed=begun)
            begun += 1

        yield step
        shown.update(task, description="done", total=steps or begun, completed=steps or begun)


@contextmanager
def told(progress: bool | Step) -> Iterator[Step]:
    """Yield what is to be called before each step.

    Args:
        progress: That itself; True for a bar where one is seen, False for nothing.
    """
    if callable(progress):
        yield progress
    elif progress and is_seen():
        with bar() as step:
            yield step
    else:
        yield lambda name: None
