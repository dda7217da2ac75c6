"""``captum-lrp-stab diagnose``."""

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from captum_lrp_stab import choices, diagnosis, forms, zoo
from captum_lrp_stab.cli import common
from captum_lrp_stab.comparison.report import About
from captum_lrp_stab.diagnosis import report, stock
from captum_lrp_stab.diagnosis.advising import check_tolerance
from captum_lrp_stab.diagnosis.locating import THRESHOLD, check_threshold
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.prepared import prepare
from captum_lrp_stab.report import make_folder

_WORDS = ("layer", "rule")
_SHOWN = ("layer", "rule", "amplified", "received", "handed down", "bias", "stabilizer", "zero")
_FORMS = (*forms.NAMES, stock.NAME)


def diagnose(
    image: common.ImageArgument = None,
    model: common.ModelOption = zoo.LITE0,
    weights: common.WeightsOption = "DEFAULT",
    target: common.TargetOption = None,
    rules: common.RulesOption = "lrp_tutorial",
    stabilizer: Annotated[
        str | None,
        typer.Option(
            help="In the place of every rule's stabilizer, as name or name:epsilon. Names: "
            f"{', '.join(choices.STABILIZERS)}.",
            show_default="that of each rule",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help=f"How relevance is carried: {', '.join(_FORMS)}; {stock.NAME} is stock Captum "
            "with our rules."
        ),
    ] = "gradient",
    attention: common.AttentionOption = "attnlrp",
    dtype: common.DtypeOption = "float32",
    threshold: Annotated[
        float, typer.Option(help="How many times a layer may amplify relevance.")
    ] = THRESHOLD,
    advice: Annotated[
        bool, typer.Option(help="Look for the least change that helps, if something is wrong.")
    ] = True,
    tolerance: Annotated[
        float, typer.Option(help="How far from float64 the advice may leave relevance.")
    ] = 1e-3,
    sweep: Annotated[
        str | None, typer.Option(help="Sensitivity to a parameter: epsilon or gamma.")
    ] = None,
    seed: common.SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("lrp-diagnosis"),
) -> None:
    """Find where relevance is lost, amplified or destroyed on its way, why, and what to change.

    Writes report.html, report.md, report.json and figures. Exit status 1 if relevance is unstable
    or not finite.

    For example: `captum-lrp-stab diagnose`

    `captum-lrp-stab diagnose cat.jpg --stabilizer none --form relevance`

    `captum-lrp-stab diagnose cat.jpg --model vgg16 --weights vgg16.pth --sweep epsilon`
    """
    with common.one_message():
        stabilize = None if stabilizer is None else choices.stabilizer_of(stabilizer)
        treated = choices.attention_of(attention)
        if form not in _FORMS:
            raise InputError(f"no form has the name {form!r}; give {', '.join(_FORMS)}")
        if sweep not in (None, "epsilon", "gamma"):
            raise InputError(f"sweep is {sweep!r}; give epsilon or gamma")
        if sweep is not None and stabilizer is not None:
            raise InputError("a sweep sets the stabilizers itself; give --sweep or --stabilizer")
        choices.dtype_of(dtype)
        check_threshold(threshold)
        check_tolerance(tolerance)
        picture, title = common.picture_of(image)
        make_folder(out)  # or fail now, not after minutes of work
        classifier = common.load(model, weights, seed)
        ready = prepare(classifier, picture, dtype, target)
        preset = choices.preset_of(rules, classifier.preprocessing)
        with common.progress(None) as step:
            step("diagnosis")
            found = diagnosis.diagnose(
                ready.model,
                ready.x,
                ready.target,
                preset,
                form=form,
                stabilizer=stabilize,
                attention=treated,
                threshold=threshold,
            )
            advised = None
            if advice and found.verdict != "stable" and form != stock.NAME:
                step("advice")
                advised = diagnosis.advise(
                    ready.model,
                    ready.x,
                    ready.target,
                    preset,
                    tolerance=tolerance,
                    form=form,
                    stabilizer=stabilize,
                    attention=treated,
                    threshold=threshold,
                )
            swept = None
            if sweep is not None:
                swept = diagnosis.sweep(
                    ready.model,
                    ready.x,
                    ready.target,
                    preset,
                    cast(Literal["epsilon", "gamma"], sweep),
                    form="gradient" if form == stock.NAME else form,
                    attention=treated,
                    progress=step,
                )
        about = About(ready, title, rules, form, stabilizer, found.warnings)
        findings = report.Findings(about, found, advised, swept)
        paths = report.write(findings, out)
    _show(findings)
    print(f"written: {', '.join(map(str, paths))}")
    if found.verdict != "stable":
        raise typer.Exit(1)


def _show(findings: report.Findings) -> None:
    """Print the ledger, and the verdict below it, where it is seen."""
    console, found, about = common.console(), findings.diagnosis, findings.about
    ready = about.ready
    console.print(
        f"{ready.classifier.name} ({ready.classifier.weights}) on {about.picture}: {ready.label}, "
        f"score {ready.score:.4g}; {about.rules}"
        + (f", stabilizer {about.stabilizer}" if about.stabilizer else "")
        + f", {found.form} form, {found.dtype}",
        markup=False,
    )
    header, rows = found.table(every=False)
    places = [header.index(name) for name in _SHOWN]
    origin = None if found.origin is None else found.origin.name
    console.print()
    shown = [[row[i] for i in places] for row in rows]
    common.print_table(console, _SHOWN, shown, _WORDS, lambda row: row[0] == origin, unbroken=True)
    console.print(f"\n[bold]{found.verdict}[/bold]")
    lines = [found.explanation(), *(f"The neuron sees {part}." for part in found.sees)]
    lines += [f"warning: {warning}" for warning in found.warnings]
    if findings.advice is not None:
        lines.append(f"Advice: {findings.advice}")
    if findings.sweep is not None:
        lines.append(f"{findings.sweep.parameter}: {findings.sweep.explanation()}")
    for line in lines:
        console.print(line, markup=False)
