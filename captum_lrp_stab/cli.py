"""The command ``captum-lrp-stab``.

A mistake of the user's ends with one message on stderr and exit status 2. Results go to stdout,
progress to stderr.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from captum_lrp_stab import choices, forms, pictures, report, zoo
from captum_lrp_stab._version import __version__
from captum_lrp_stab.errors import LRPError
from captum_lrp_stab.investigation import Investigation
from captum_lrp_stab.investigation import investigate as run_investigation
from captum_lrp_stab.planning import Plan
from captum_lrp_stab.planning import plan as make_plan

app = typer.Typer(
    name="captum-lrp-stab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


_WORDS = ("stabilizer", "finite", "", "channel")
_MODELS = f"{', '.join(zoo.OFFLINE)}, or any torchvision classifier."
_RULES = f"Rule preset: {', '.join(choices.preset_names())}."
_ATTENTION = "attnlrp: softmax by its gradient, products halved; cp: attention weights constant."


@contextmanager
def _one_message() -> Iterator[None]:
    """Turn this package's errors into a message on stderr and exit status 2."""
    try:
        yield
    except LRPError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(2) from error


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"captum-lrp-stab {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Layer-wise relevance propagation with injectable stabilizers, for Captum."""


@app.command()
def investigate(
    image: Annotated[
        Path | None,
        typer.Argument(help="An image file; without one, a photograph of scikit-image."),
    ] = None,
    model: Annotated[str, typer.Option(help=_MODELS)] = zoo.LITE0,
    weights: Annotated[
        str, typer.Option(help="DEFAULT (ImageNet), none (random), or a file with a state dict.")
    ] = "DEFAULT",
    target: Annotated[
        int | None, typer.Option(help="Class to explain.", show_default="the one the model finds")
    ] = None,
    rules: Annotated[str, typer.Option(help=_RULES)] = "lrp_tutorial",
    stabilizer: Annotated[
        list[str] | None,
        typer.Option(
            help="Stabilizer as name or name:epsilon, may be repeated. Names: "
            f"{', '.join(choices.STABILIZERS)}.",
            show_default=", ".join(choices.DEFAULT_STABILIZERS),
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help=f"How relevance is carried: {', '.join(forms.NAMES)}; the last two divide "
            "without protection."
        ),
    ] = "gradient",
    attention: Annotated[str, typer.Option(help=_ATTENTION)] = "attnlrp",
    dtype: Annotated[
        str, typer.Option(help=f"Of model and input: {', '.join(choices.DTYPES)}.")
    ] = "float32",
    detect_anomaly: Annotated[
        bool, typer.Option("--detect-anomaly", help="Ask autograd where NaN arises, too.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of random weights.", min=0, max=2**63 - 1)] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("lrp-investigation"),
) -> None:
    """Study what each stabilizer makes of the relevance of one picture.

    Is it finite, and if not, in which layer did the first NaN or Inf arise? How large are its
    extremes, and where do they sit? Writes report.json, report.md and heatmaps.png.

    For example: `captum-lrp-stab investigate`

    `captum-lrp-stab investigate cat.jpg --stabilizer none --stabilizer additive:0.1`

    `captum-lrp-stab investigate cat.jpg --model vgg16 --weights vgg16.pth --form modified-forward`
    """
    with _one_message():
        names = stabilizer or list(choices.DEFAULT_STABILIZERS)
        _check(names, form, dtype)
        treated = choices.attention_of(attention)
        picture = pictures.default_picture() if image is None else pictures.read(image)
        report.make_folder(out)  # or fail now, not after minutes of work
        classifier = zoo.load(model, weights, seed, progress=Console(stderr=True).is_terminal)
        with _progress(len(names)) as step:
            investigation = run_investigation(
                classifier,
                picture,
                target=target,
                rules=rules,
                names=names,
                form=form,
                attention=treated,
                dtype=dtype,
                detect_anomaly=detect_anomaly,
                progress=step,
            )
        title = pictures.DEFAULT_PICTURE
        if image is not None:  # a name of bytes that are no text is shown by their escapes
            title = image.name.encode("utf-8", "backslashreplace").decode()
        paths = report.write(investigation, out, title)
    _show(investigation, title)
    print(f"written: {', '.join(map(str, paths))}")


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help=_MODELS)],
    rules: Annotated[str, typer.Option(help=_RULES)] = "epsilon",
    attention: Annotated[str, typer.Option(help=_ATTENTION)] = "attnlrp",
    merge_batch_norm: Annotated[
        bool, typer.Option(help="Treat a batch norm as one layer with the layer before it.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if an operation would get its plain gradient.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="List only the operations with a rule.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what each operation of a model will get: rule, stabilizer, merged batch norm, fallback.

    A plan needs no weights: it is made by one forward pass with random ones.

    For example: `captum-lrp-stab plan vit_b_16 --rules epsilon_plus --attention cp`

    `captum-lrp-stab plan resnet50 --layers --json`
    """
    with _one_message():
        treated = choices.attention_of(attention)
        classifier = zoo.load(model, "none")
        preset = choices.preset_of(rules, classifier.preprocessing)
        side = classifier.preprocessing.crop
        planned = make_plan(
            classifier.model,
            torch.zeros(1, len(classifier.preprocessing.mean), side, side),
            preset,
            attention=treated,
            merge_batch_norm=merge_batch_norm,
        )
        if strict:
            planned.refuse_fallbacks()
    if layers:
        planned = Plan(planned.layers)
    if as_json:
        print(planned.to_json())
        return
    print(planned)
    print(
        f"\n{len(planned.rows)} operations, {len(planned.layers)} with a rule, "
        f"{len(planned.fallbacks)} with their plain gradient"
    )


def _check(names: list[str], form: str, dtype: str) -> None:
    """Find wrong words before minutes of loading."""
    for name in names:
        choices.stabilizer_of(name)
    forms.form_of(form)
    choices.dtype_of(dtype)


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal; yields what is called with a name before each step."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=steps)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            progress.update(task, description=name, completed=begun)
            begun += 1

        yield step
        progress.update(task, description="done", completed=steps)


def _show(investigation: Investigation, picture: str) -> None:
    """Print the tables."""
    console = Console(highlight=False, emoji=False)
    console.print(
        f"{investigation.model} ({investigation.weights}) on {picture}: {investigation.label}, "
        f"score {investigation.score:.4g}, probability {investigation.probability:.3g}; "
        f"{investigation.rules}, {investigation.form} form, {investigation.dtype}",
        markup=False,
    )
    for title, header, rows in report.tables(investigation):
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for name in header:
            table.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold")
        for row in rows:
            table.add_row(*row, style="red" if "NO" in row else None)
        console.print(f"\n[bold]{title}[/bold]")
        console.print(table)
    console.print(f"\n{report.LEGEND}", style="dim")
    for note in report.notes(investigation):
        console.print(f"- {note}", markup=False)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    main()
