"""``captum-lrp-stab investigate`` of many pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from captum_lrp_stab.cli import common, options
from captum_lrp_stab.cli.ending import Course, written_whole
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.study import files, words
from captum_lrp_stab.study import report as study_report
from captum_lrp_stab.study.result import Study
from captum_lrp_stab.study.running import study_pictures

if TYPE_CHECKING:
    from captum_lrp_stab.cli.investigating import Asked


_LISTED = 10


def study(
    paths: list[Path], asked: "Asked", fresh: bool, output: common.Output, course: Course
) -> None:
    """Study many pictures."""
    if not paths:
        raise InputError("--epsilon is for a study of pictures; give image files or a folder")
    found = files.find(paths, leave_out=asked.out)
    course.make_folder(asked.out)
    again = "the same command without --fresh" if fresh else "the same command"
    begun = 0

    def stopped_after(done: int) -> str:
        return (
            f"stopped after {done} of {len(found)} pictures; what is finished is kept in "
            f"{asked.out}, and {again} goes on from there"
        )

    def count(name: str) -> None:
        nonlocal begun
        course.now = stopped_after(begun)
        begun += 1
        step(name)

    course.now = stopped_after(0)
    classifier = common.load(asked.model, asked.weights, asked.seed, output)
    with common.progress(len(found), output, long=True) as step:
        studied = study_pictures(
            classifier,
            found,
            asked.out,
            names=asked.names,
            rules=asked.rules,
            target=asked.target,
            form=asked.form,
            attention=asked.attention,
            dtype=asked.dtype,
            fresh=fresh,
            progress=count,
        )
    with written_whole(course, asked.out):
        written = study_report.write(studied, asked.out)

    def show(console: Console) -> None:
        _show(console, studied)
        common.print_written(console, written)

    output.deliver((asked.out / "report.json").read_text, show)
    if not studied.measured:
        raise typer.Exit(options.BAD)


def _show(console: Console, study: Study) -> None:
    """Print the table of the stabilizers, and the verdict below it."""
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
