"""What the commands share: options, the progress bar, how a mistake ends, tables."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.box import SIMPLE_HEAD
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
from rich.table import Table

from captum_lrp_stab import choices, forms, pictures, zoo
from captum_lrp_stab.errors import LRPError

MODELS = f"{', '.join(zoo.OFFLINE)}, or any torchvision classifier."
RULES = f"Rule preset: {', '.join(choices.preset_names())}."
_ATTENTION = "attnlrp: softmax by its gradient, products halved; cp: attention weights constant."

ImageArgument = Annotated[
    Path | None, typer.Argument(help="An image file; without one, a photograph of scikit-image.")
]
ModelOption = Annotated[str, typer.Option(help=MODELS)]
WeightsOption = Annotated[
    str, typer.Option(help="DEFAULT (ImageNet), none (random), or a file with a state dict.")
]
TargetOption = Annotated[
    int | None, typer.Option(help="Class to explain.", show_default="the one the model finds")
]
RulesOption = Annotated[str, typer.Option(help=RULES)]
FormOption = Annotated[
    str,
    typer.Option(
        help=f"How relevance is carried: {', '.join(forms.NAMES)}; the last two divide without "
        "protection."
    ),
]
AttentionOption = Annotated[str, typer.Option(help=_ATTENTION)]
DtypeOption = Annotated[str, typer.Option(help=f"Of model and input: {', '.join(choices.DTYPES)}.")]
SeedOption = Annotated[int, typer.Option(help="Of random weights.", min=0, max=2**63 - 1)]


@contextmanager
def one_message() -> Iterator[None]:
    """Turn this package's errors into a message on stderr and exit status 2."""
    try:
        yield
    except LRPError as error:
        console = Console(stderr=True, soft_wrap=True, emoji=False)  # ':x:' is an argument
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from error


def picture_of(image: Path | None) -> tuple[Image.Image, str]:
    """Return a picture and what it is called; None is a photograph of scikit-image.

    Raises:
        PictureError: It cannot be read.
    """
    if image is None:
        return pictures.default_picture(), pictures.DEFAULT_PICTURE
    # a name of bytes that are no text is shown by their escapes
    return pictures.read(image), image.name.encode("utf-8", "backslashreplace").decode()


def load(model: str, weights: str, seed: int) -> zoo.Classifier:
    """Return a classifier, showing the progress of a download on a terminal."""
    return zoo.load(model, weights, seed, progress=Console(stderr=True).is_terminal)


@contextmanager
def progress(steps: int | None, long: bool = False) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal; yields what is called with a name before each step.

    Args:
        steps: How many there are, None if that is not known.
        long: Show how much time is left.
    """
    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    ]
    if long:
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=steps)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            shown.update(task, description=name, completed=begun)
            begun += 1

        yield step
        shown.update(task, description="done", total=steps or begun, completed=steps or begun)


_NARROWEST = 72


def console() -> Console:
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
    is_bad: Callable[[Sequence[str]], bool],
    unbroken: bool = False,
) -> None:
    """Print a table, with the columns of words to the left and the bad rows in red.

    Args:
        shown: Where to.
        header: The names of the columns.
        rows: Text.
        words: The columns that hold words.
        is_bad: Which rows are red.
        unbroken: Never break a number where the terminal is narrow.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in header:
        left = name in words
        keep = unbroken and not left
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=keep)
    for row in rows:
        table.add_row(*row, style="red" if is_bad(row) else None)
    shown.print(table)
