"""``captum-lrp-stab investigate``: one picture in detail, or many in numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from captum_lrp_stab import choices, forms, report, zoo
from captum_lrp_stab.cli import common
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.investigation import Investigation
from captum_lrp_stab.investigation import investigate as run_investigation
from captum_lrp_stab.rule_set import Attention
from captum_lrp_stab.study import files, grid, words
from captum_lrp_stab.study import report as study_report
from captum_lrp_stab.study.result import Study
from captum_lrp_stab.study.running import study_pictures

_WORDS = ("stabilizer", "finite", "", "channel")
_ONE, _MANY = Path("lrp-investigation"), Path("lrp-study")
_INTERRUPTED = 130  # what a shell says of a command stopped by Ctrl-C
_LISTED = 10


@dataclass(frozen=True)
class _Options:
    model: str
    weights: str
    target: int | None
    rules: str
    names: list[str]
    form: str
    attention: Attention
    dtype: str
    seed: int
    out: Path


def investigate(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, and folders of them; without any, a photograph of scikit-image.",
            show_default=False,
        ),
    ] = None,
    model: common.ModelOption = zoo.LITE0,
    weights: common.WeightsOption = "DEFAULT",
    target: common.TargetOption = None,
    rules: common.RulesOption = "lrp_tutorial",
    stabilizer: Annotated[
        list[str] | None,
        typer.Option(
            help="Stabilizer as name or name:epsilon, may be repeated. Names: "
            f"{', '.join(choices.STABILIZERS)}.",
            show_default=", ".join(choices.DEFAULT_STABILIZERS),
        ),
    ] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Run each stabilizer that has no epsilon of its own at each of these: "
            "LOW:HIGH:N, a number, or numbers with commas between. Without --stabilizer: "
            f"{', '.join(grid.SWEPT)}.",
            show_default=False,
        ),
    ] = None,
    form: common.FormOption = "gradient",
    attention: common.AttentionOption = "attnlrp",
    dtype: common.DtypeOption = "float32",
    detect_anomaly: Annotated[
        bool, typer.Option("--detect-anomaly", help="Ask autograd where NaN arises, too.")
    ] = False,
    seed: common.SeedOption = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure pictures again that are done already.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the report.", show_default=f"{_ONE}, or {_MANY} of many pictures"
        ),
    ] = None,
) -> None:
    """Study what each stabilizer makes of the relevance of one picture, or of many.

    One picture: is relevance finite, and if not, in which layer did the first NaN or Inf arise?
    How large are its extremes, and where do they sit? Writes report.json, report.md and
    heatmaps.png.

    Many pictures, or one with --epsilon: which are unstable, under which stabilizers, from which
    layer? Writes report.html, report.md, report.json and figures. Each picture is kept as soon as
    it is done; the same command again goes on where it was stopped. Exit status 1 if no picture
    could be measured.

    For example: `captum-lrp-stab investigate`

    `captum-lrp-stab investigate cat.jpg --stabilizer none --stabilizer additive:0.1`

    `captum-lrp-stab investigate cat.jpg --model vgg16 --weights vgg16.pth --form modified-forward`

    `captum-lrp-stab investigate photographs --form relevance --epsilon 1e-9:1e-1:9`
    """
    paths = images or []
    is_study = epsilon is not None or len(paths) > 1 or any(path.is_dir() for path in paths)
    with common.one_message():
        names = stabilizer or list(choices.DEFAULT_STABILIZERS)
        if epsilon is not None:
            names = grid.combine(stabilizer or grid.SWEPT, grid.epsilons(epsilon))
        _check(names, form, dtype)
        treated = choices.attention_of(attention)
        folder = out or (_MANY if is_study else _ONE)
        options = _Options(model, weights, target, rules, names, form, treated, dtype, seed, folder)
        if is_study:
            _many(paths, options, detect_anomaly, fresh)
        else:
            _one(paths[0] if paths else None, options, detect_anomaly, fresh)


def _check(names: list[str], form: str, dtype: str) -> None:
    """Find wrong words before minutes of loading."""
    for name in names:
        choices.stabilizer_of(name)
    forms.form_of(form)
    choices.dtype_of(dtype)


def _one(image: Path | None, options: _Options, detect_anomaly: bool, fresh: bool) -> None:
    """Investigate one picture."""
    if fresh:
        raise InputError(
            "--fresh begins a study of many pictures again, and one picture always begins anew; "
            "leave it out, or give a folder"
        )
    picture, title = common.picture_of(image)
    report.make_folder(options.out)  # or fail now, not after minutes of work
    classifier = common.load(options.model, options.weights, options.seed)
    with common.progress(len(options.names)) as step:
        investigation = run_investigation(
            classifier,
            picture,
            target=options.target,
            rules=options.rules,
            names=options.names,
            form=options.form,
            attention=options.attention,
            dtype=options.dtype,
            detect_anomaly=detect_anomaly,
            progress=step,
        )
    paths = report.write(investigation, options.out, title)
    _show(investigation, title)
    print(f"written: {', '.join(map(str, paths))}")


def _many(paths: list[Path], options: _Options, detect_anomaly: bool, fresh: bool) -> None:
    """Study many pictures."""
    if detect_anomaly:
        raise InputError(
            "--detect-anomaly serves one picture; leave it out: a study says where instability "
            "starts anyway"
        )
    if not paths:
        raise InputError("--epsilon is for a study of pictures; give image files or a folder")
    found = files.find(paths, leave_out=options.out)
    report.make_folder(options.out)
    begun = 0

    def count(name: str) -> None:
        nonlocal begun
        begun += 1
        step(name)

    try:
        classifier = common.load(options.model, options.weights, options.seed)
        with common.progress(len(found), long=True) as step:
            study = study_pictures(
                classifier,
                found,
                options.out,
                names=options.names,
                rules=options.rules,
                target=options.target,
                form=options.form,
                attention=options.attention,
                dtype=options.dtype,
                fresh=fresh,
                progress=count,
            )
        begun += 1
        written = study_report.write(study, options.out)
    except KeyboardInterrupt:
        again = "the same command without --fresh" if fresh else "the same command"
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False).print(
            f"stopped after {max(begun - 1, 0)} of {len(found)} pictures; what is finished is kept "
            f"in {options.out}, and {again} goes on from there"
        )
        raise typer.Exit(_INTERRUPTED) from None
    _show_study(study)
    print(f"written: {', '.join(map(str, written))}")
    if not study.measured:
        raise typer.Exit(1)


def _show(investigation: Investigation, picture: str) -> None:
    """Print the tables."""
    console = common.console()
    console.print(
        f"{investigation.model} ({investigation.weights}) on {picture}: {investigation.label}, "
        f"score {investigation.score:.4g}, probability {investigation.probability:.3g}; "
        f"{investigation.rules}, {investigation.form} form, {investigation.dtype}",
        markup=False,
    )
    for title, header, rows in report.tables(investigation):
        console.print(f"\n[bold]{title}[/bold]")
        common.print_table(console, header, rows, _WORDS, lambda row: "NO" in row)
    console.print(f"\n{report.LEGEND}", style="dim")
    for note in report.notes(investigation):
        console.print(f"- {note}", markup=False)


def _show_study(study: Study) -> None:
    """Print the table of the stabilizers, and the verdict below it."""
    console = common.console()
    settings = study.settings
    console.print(
        f"{settings['model']} ({settings['weights']}) on {len(study.records)} pictures; "
        f"{settings['rules']}, {settings['form']} form, {settings['dtype']}\n",
        markup=False,
    )
    bad = {summary.name for summary in study.summaries() if not summary.is_stable}
    header, rows = words.follow_up(study)
    for title, chosen, named in (
        ("Stability", words.STABILITY, (header[0], header[-1])),
        ("Size", words.SIZE, (header[0],)),
    ):
        console.print(f"[bold]{title}[/bold]")
        cells = [tuple(row[header.index(name)] for name in chosen) for row in rows]
        common.print_table(console, chosen, cells, named, lambda row: row[0] in bad, unbroken=True)
    legend = study_report.FOLLOW_UP_LEGEND.format(threshold=settings["threshold"])
    console.print(f"{legend}\n", style="dim")
    console.print(words.verdict(study), markup=False, style="bold")
    notes = [
        f"{record.picture} was not measured: {record.error}"
        for record in study.records
        if record.error is not None
    ]
    for note in (*notes[:_LISTED], *words.warnings(study)[:_LISTED]):
        console.print(f"- {note}", markup=False)
    if len(notes) > _LISTED:
        console.print(f"- {len(notes) - _LISTED} more could not be measured: see the report")
