"""``captum-lrp-stab investigate``: one picture in detail, or many in numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from captum_lrp_stab.cli import common, names, options
from captum_lrp_stab.cli.ending import COMPUTING, Course, ending, written_whole
from captum_lrp_stab.cli.names import completing, files
from captum_lrp_stab.errors import InputError

if TYPE_CHECKING:
    from captum_lrp_stab.rules.rule_set import Attention
    from captum_lrp_stab.study.investigation import Investigation


_WORDS = ("stabilizer", "finite", "", "channel")
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


@dataclass(frozen=True)
class Asked:
    """What to run, of one picture or of many."""

    model: str
    weights: str
    target: int | None
    rules: str
    names: list[str]
    form: str
    attention: "Attention"
    dtype: str
    seed: int
    out: Path


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
    """Study what each stabilizer makes of the relevance of one picture, or of many.

    One picture: is relevance finite, and if not, in which layer did the first NaN or Inf arise?
    How large are its extremes, and where do they sit? Writes report.json, report.md and
    heatmaps.png.

    Many pictures, or one with --epsilon: which are unstable, under which stabilizers, from which
    layer? Writes report.html, report.md, report.json and figures. Each picture is kept as soon as
    it is done; the same command again goes on where it was stopped.
    """
    paths = images or []
    output = common.Output(quiet, as_json)
    with ending() as course:
        from captum_lrp_stab import by_name
        from captum_lrp_stab.cli.studying import study
        from captum_lrp_stab.propagation import forms
        from captum_lrp_stab.study import grid

        is_study = epsilon is not None or len(paths) > 1 or any(path.is_dir() for path in paths)
        chosen = stabilizer or list(names.DEFAULT_STABILIZERS)
        if epsilon is not None:
            chosen = grid.combine(stabilizer or grid.SWEPT, grid.epsilons(epsilon))
        for name in chosen:  # find wrong words before minutes of loading
            by_name.stabilizer_of(name)
        forms.form_of(form)
        by_name.dtype_of(dtype)
        treated = by_name.attention_of(attention)
        folder = out or (_MANY if is_study else _ONE)
        asked = Asked(model, weights, target, rules, chosen, form, treated, dtype, seed, folder)
        if is_study:
            if detect_anomaly:
                raise InputError(
                    "--detect-anomaly serves one picture; leave it out: a study says where "
                    "instability starts anyway"
                )
            study(paths, asked, fresh, output, course)
        else:
            if fresh:
                raise InputError(
                    "--fresh begins a study of many pictures again, and one picture always begins "
                    "anew; leave it out, or give a folder"
                )
            _one(paths[0] if paths else None, asked, detect_anomaly, output, course)


def _one(
    image: Path | None, asked: Asked, detect_anomaly: bool, output: common.Output, course: Course
) -> None:
    """Investigate one picture."""
    from captum_lrp_stab.study import investigation_report
    from captum_lrp_stab.study.investigation import investigate as run_investigation

    picture, title = common.picture_of(image)
    course.make_folder(asked.out)
    classifier = common.load(asked.model, asked.weights, asked.seed, output)
    course.now = COMPUTING
    with common.progress(len(asked.names), output) as step:
        investigation = run_investigation(
            classifier,
            picture,
            target=asked.target,
            rules=asked.rules,
            names=asked.names,
            form=asked.form,
            attention=asked.attention,
            dtype=asked.dtype,
            detect_anomaly=detect_anomaly,
            progress=step,
        )
    with written_whole(course, asked.out):
        paths = investigation_report.write(investigation, asked.out, title)

    def show(console: Console) -> None:
        _show(console, investigation, title)
        common.print_written(console, paths)

    output.deliver((asked.out / "report.json").read_text, show)


def _show(console: Console, investigation: "Investigation", picture: str) -> None:
    """Print the tables."""
    from captum_lrp_stab.study import investigation_report

    console.print(
        f"{investigation.model} ({investigation.weights}) on {picture}: {investigation.label}, "
        f"score {investigation.score:.4g}, probability {investigation.probability:.3g}; "
        f"{investigation.rules}, {investigation.form} form, {investigation.dtype}",
        markup=False,
    )
    for title, header, rows in investigation_report.tables(investigation):
        console.print(f"\n[bold]{title}[/bold]")
        common.print_table(console, header, rows, _WORDS, lambda row: "NO" in row)
    console.print(f"\n{investigation_report.LEGEND}", style="dim")
    for note in investigation_report.notes(investigation):
        console.print(f"- {note}", markup=False)
