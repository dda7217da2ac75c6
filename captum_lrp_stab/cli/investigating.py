"""``captum-lrp-stab investigate``."""

from pathlib import Path
from typing import Annotated

import typer

from captum_lrp_stab import choices, forms, report, zoo
from captum_lrp_stab.cli import common
from captum_lrp_stab.investigation import Investigation
from captum_lrp_stab.investigation import investigate as run_investigation

_WORDS = ("stabilizer", "finite", "", "channel")


def investigate(
    image: common.ImageArgument = None,
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
    form: common.FormOption = "gradient",
    attention: common.AttentionOption = "attnlrp",
    dtype: common.DtypeOption = "float32",
    detect_anomaly: Annotated[
        bool, typer.Option("--detect-anomaly", help="Ask autograd where NaN arises, too.")
    ] = False,
    seed: common.SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("lrp-investigation"),
) -> None:
    """Study what each stabilizer makes of the relevance of one picture.

    Is it finite, and if not, in which layer did the first NaN or Inf arise? How large are its
    extremes, and where do they sit? Writes report.json, report.md and heatmaps.png.

    For example: `captum-lrp-stab investigate`

    `captum-lrp-stab investigate cat.jpg --stabilizer none --stabilizer additive:0.1`

    `captum-lrp-stab investigate cat.jpg --model vgg16 --weights vgg16.pth --form modified-forward`
    """
    with common.one_message():
        names = stabilizer or list(choices.DEFAULT_STABILIZERS)
        _check(names, form, dtype)
        treated = choices.attention_of(attention)
        picture, title = common.picture_of(image)
        report.make_folder(out)  # or fail now, not after minutes of work
        classifier = common.load(model, weights, seed)
        with common.progress(len(names)) as step:
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
        paths = report.write(investigation, out, title)
    _show(investigation, title)
    print(f"written: {', '.join(map(str, paths))}")


def _check(names: list[str], form: str, dtype: str) -> None:
    """Find wrong words before minutes of loading."""
    for name in names:
        choices.stabilizer_of(name)
    forms.form_of(form)
    choices.dtype_of(dtype)


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
