"""``captum-lrp-stab diagnose``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console

from captum_lrp_stab import names
from captum_lrp_stab.cli import common, options
from captum_lrp_stab.cli.ending import COMPUTING, ending
from captum_lrp_stab.cli.options import completing
from captum_lrp_stab.errors import InputError

if TYPE_CHECKING:
    from captum_lrp_stab.diagnosis import report

EPILOG = options.epilog(
    (
        "diagnose",
        "diagnose cat.jpg --stabilizer none --form relevance",
        "diagnose cat.jpg --model vgg16 --weights vgg16.pth --sweep epsilon",
        "diagnose cat.jpg --quiet || echo unstable",
    ),
    {
        options.FINE: "relevance is stable",
        options.BAD: "relevance is unstable or not finite",
    },
)
_WORDS = ("layer", "rule")
_SHOWN = ("layer", "rule", "amplified", "received", "propagated", "bias", "stabilizer", "zero")
_FORMS = (*names.FORMS, names.STOCK)


def diagnose(
    image: options.ImageArgument = None,
    model: options.ModelOrUsualOption = None,
    weights: options.WeightsOption = "DEFAULT",
    target: options.TargetOption = None,
    rules: options.RulesOption = "lrp_tutorial",
    stabilizer: Annotated[
        str | None,
        typer.Option(
            help="In the place of every rule's stabilizer, as name or name:epsilon. "
            f"{options.STABILIZERS}",
            show_default="that of each rule",
            autocompletion=completing(names.STABILIZERS),
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help=f"How relevance is propagated: {', '.join(_FORMS)}; {names.STOCK} is stock Captum "
            "with our rules.",
            autocompletion=completing(_FORMS),
        ),
    ] = "gradient",
    attention: options.AttentionOption = "attnlrp",
    dtype: options.DtypeOption = "float32",
    threshold: Annotated[
        float, typer.Option(help="How many times a layer may amplify relevance.")
    ] = names.THRESHOLD,
    advice: Annotated[
        bool, typer.Option(help="Look for the least change that helps, if something is wrong.")
    ] = True,
    tolerance: Annotated[
        float, typer.Option(help="How far from float64 the advice may leave relevance.")
    ] = 1e-3,
    sweep: Annotated[
        str | None,
        typer.Option(
            help=f"Sensitivity to a parameter: {' or '.join(names.SWEPT)}.",
            autocompletion=completing(names.SWEPT),
        ),
    ] = None,
    seed: options.SeedOption = 0,
    out: options.OutOption = Path("lrp-diagnosis"),
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Find where relevance is lost, amplified or destroyed on its way, why, and what to change.

    Writes report.html, report.md, report.json and figures.
    """
    output = common.Output(quiet, as_json)
    with ending() as course:
        from captum_lrp_stab import by_name, diagnosis
        from captum_lrp_stab.comparison.report import About
        from captum_lrp_stab.diagnosis import report
        from captum_lrp_stab.diagnosis.advising import check_tolerance
        from captum_lrp_stab.ledger.locating import check_threshold
        from captum_lrp_stab.zoo.prediction import prepare

        stabilize = None if stabilizer is None else by_name.stabilizer_of(stabilizer)
        treated = by_name.attention_of(attention)
        if form not in _FORMS:
            raise InputError(f"no form has the name {form!r}; give {', '.join(_FORMS)}")
        if sweep not in (None, *names.SWEPT):
            raise InputError(f"sweep is {sweep!r}; give {' or '.join(names.SWEPT)}")
        if sweep is not None and stabilizer is not None:
            raise InputError("a sweep sets the stabilizers itself; give --sweep or --stabilizer")
        by_name.dtype_of(dtype)
        check_threshold(threshold)
        check_tolerance(tolerance)
        picture, title = common.picture_of(image)
        course.make_folder(out)
        name = common.model_of(model, form == names.STOCK, output)
        classifier = common.load(name, weights, seed, output)
        course.now = COMPUTING
        ready = prepare(classifier, picture, dtype, target)
        preset = by_name.preset_of(rules, *classifier.preprocessing.bounds)
        asked = ready.model, ready.x
        shared: dict[str, Any] = {"target": ready.target, "rules": preset, "attention": treated}
        changed = {"form": form, "stabilizer": stabilize, "threshold": threshold, **shared}
        with common.progress(None, output) as step:
            step("diagnosis")
            found = diagnosis.diagnose(*asked, **changed)
            advised = swept = None
            if advice and found.verdict != "stable" and form != names.STOCK:
                step("advice")
                advised = diagnosis.advise(*asked, tolerance=tolerance, **changed)
            if sweep is not None:
                shared["form"] = "gradient" if form == names.STOCK else form
                parameter = cast(Literal["epsilon", "gamma"], sweep)
                swept = diagnosis.sweep(*asked, parameter=parameter, progress=step, **shared)
        about = About(ready, title, rules, form, stabilizer, found.warnings)
        findings = report.Findings(about, found, advised, swept)
        with course.writing(out):
            paths = report.write(findings, out)

        def show(console: Console) -> None:
            _show(console, findings)
            common.print_written(console, paths)

        output.deliver((out / "report.json").read_text, show)
        if found.verdict != "stable":
            raise typer.Exit(options.BAD)


def _show(console: Console, findings: "report.Findings") -> None:
    """Print the ledger, and the verdict below it, where it is seen."""
    found, about = findings.diagnosis, findings.about
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
    bad = [index for index, row in enumerate(shown) if row[0] == origin]
    common.print_table(console, _SHOWN, shown, _WORDS, bad)
    console.print(f"\n{found.headline()}", markup=False, style="bold")
    lines = [found.explanation(), *(f"The neuron sees {part}." for part in found.sees)]
    lines += [f"warning: {warning}" for warning in found.warnings]
    if findings.advice is not None:
        lines.append(f"Advice: {findings.advice}")
    if findings.sweep is not None:
        lines.append(f"{findings.sweep.parameter}: {findings.sweep.explanation()}")
    for line in lines:
        console.print(line, markup=False)
