"""``captum-lrp-stab investigate``: one picture in detail, or many in numbers."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from captum_lrp_stab import names
from captum_lrp_stab.cli import common, options
from captum_lrp_stab.cli.ending import COMPUTING, Course, ending
from captum_lrp_stab.cli.options import completing, files

if TYPE_CHECKING:
    from captum_lrp_stab.reporting.progress import Step
    from captum_lrp_stab.study.result import Study

_LISTED = 10
_ONE, _MANY = Path("lrp-investigation"), Path("lrp-study")

EPILOG = options.epilog(
    (
        "investigate",
        "investigate cat.jpg --stabilizer none --stabilizer additive:0.1",
        "investigate cat.jpg --model vgg16 --weights vgg16.pth --form modified-forward",
        "investigate photographs --form relevance --epsilon 1e-9:1e-1:9",
        "investigate photographs --json > study.json",
    ),
    {
        options.FINE: "the report is written, whatever it says of stability",
        options.BAD: "of many pictures, none could be measured",
    },
)


def investigate(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, and folders of them; without any, a photograph of scikit-image.",
            show_default=False,
            autocompletion=files,
        ),
    ] = None,
    model: options.ModelOption = names.OFFLINE[0],
    weights: options.WeightsOption = "DEFAULT",
    target: options.TargetOption = None,
    rules: options.RulesOption = "lrp_tutorial",
    stabilizer: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Stabilizer as name or name:epsilon, may be repeated. {options.STABILIZERS}",
            show_default=", ".join(names.DEFAULT_STABILIZERS),
            autocompletion=completing(names.STABILIZERS),
        ),
    ] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Run each stabilizer that has no epsilon of its own at each of these: "
            "LOW:HIGH:N, a number, or numbers with commas between. Without --stabilizer: "
            f"{', '.join(names.SWEPT_STABILIZERS)}.",
            show_default=False,
        ),
    ] = None,
    form: options.FormOption = "gradient",
    attention: options.AttentionOption = "attnlrp",
    dtype: options.DtypeOption = "float32",
    detect_anomaly: Annotated[
        bool, typer.Option("--detect-anomaly", help="Ask autograd where NaN arises, too.")
    ] = False,
    seed: options.SeedOption = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure pictures again that are done already.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report.",
            show_default=f"{_ONE}, or {_MANY} of many pictures",
            autocompletion=files,
        ),
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Study the relevance of one picture, or of many, under several stabilizers.

    Is it finite and stable, and if not, from which layer on, why, and what helps? How large are its
    extremes, and where are they? Writes report.html, report.md, report.json and figures.

    One picture: with heatmaps. Many pictures: each is kept as soon as it is done; the same command
    again goes on where it was stopped.
    """
    paths = images or []
    output = common.Output(quiet, as_json)
    with ending() as course:
        from captum_lrp_stab import by_name
        from captum_lrp_stab.propagation import forms
        from captum_lrp_stab.study import grid, investigation, report
        from captum_lrp_stab.study.files import find

        chosen = stabilizer or list(names.DEFAULT_STABILIZERS)
        if epsilon is not None:
            chosen = grid.combine(stabilizer or names.SWEPT_STABILIZERS, grid.epsilons(epsilon))
        for name in chosen:  # find wrong words before minutes of loading
            by_name.stabilizer_of(name)
        forms.form_of(form)
        by_name.dtype_of(dtype)
        treated = by_name.attention_of(attention)
        many = len(paths) > 1 or any(path.is_dir() for path in paths)
        folder = out or (_MANY if many else _ONE)
        if many:
            found = find(paths, leave_out=folder)
        else:
            picture, title = common.picture_of(paths[0] if paths else None)
        course.make_folder(folder)
        classifier = common.load(model, weights, seed, output)
        question: dict[str, Any] = {
            **{"names": chosen, "rules": rules, "target": target, "form": form},
            **{"attention": treated, "dtype": dtype, "detect_anomaly": detect_anomaly},
        }
        course.now = COMPUTING
        if many:
            with common.progress(len(found), output, long=True) as step:
                study = investigation.study_pictures(
                    classifier,
                    found,
                    folder,
                    fresh=fresh,
                    progress=_counting(step, course, len(found), folder, fresh),
                    **question,
                )
        else:
            with common.progress(len(chosen), output) as step:
                study = investigation.investigate(
                    classifier, picture, name=title, progress=step, **question
                )
        with course.writing(folder):
            written = report.write(study, folder)

        def show(console: Console) -> None:
            _show(console, study)
            common.print_written(console, written)

        output.deliver((folder / "report.json").read_text, show)
        if not study.measured:
            raise typer.Exit(options.BAD)


def _counting(step: "Step", course: Course, total: int, folder: Path, fresh: bool) -> "Step":
    """Return what is called before each picture, and says what is kept if it is interrupted."""
    begun = count()
    again = "the same command without --fresh" if fresh else "the same command"

    def begin(name: str) -> None:
        course.now = (
            f"stopped after {next(begun)} of {total} pictures; what is finished is kept in "
            f"{folder}, and {again} goes on from there"
        )
        step(name)

    return begin


def _show(console: Console, study: "Study") -> None:
    """Print the tables of the stabilizers, and the verdict below them."""
    from captum_lrp_stab.study import tables

    settings, records = study.settings, study.records
    about = f"{len(records)} pictures"
    if study.heatmaps:
        (record,) = records
        about = f"{record.picture}: {record.label}, score {record.score:.4g}, probability "
        about += f"{record.probability:.3g}"
    console.print(
        f"{settings['model']} ({settings['weights']}) on {about}; {settings['rules']}, "
        f"{settings['form']} form, {settings['dtype']}\n",
        markup=False,
    )
    for title, table in tables.tables(study):
        console.print(f"[bold]{title}[/bold]")
        common.print_table(console, table.header, table.rows, table.words, table.bad)
        console.print(f"{table.caption}\n", style="dim", markup=False)
    console.print(tables.verdict(study), markup=False, style="bold")
    lost = [r for r in records if r.error is not None]
    lines = [f"{r.picture} was not measured: {r.error}" for r in lost[:_LISTED]]
    if len(lost) > _LISTED:
        lines.append(f"{len(lost) - _LISTED} more could not be measured: see the report")
    origins = [o for o in study.origins() if o.layer]
    lines += [f"{o.name}, from '{o.layer}': {o.cause}; {o.remedy}" for o in origins[:_LISTED]]
    for line in (*lines, *tables.notes(study)[:_LISTED]):
        console.print(f"- {line}", markup=False)
