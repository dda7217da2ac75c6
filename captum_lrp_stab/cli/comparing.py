"""``captum-lrp-stab compare``."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from captum_lrp_stab import choices, comparison, forms, zoo
from captum_lrp_stab.cli import common
from captum_lrp_stab.comparison import Comparison, report
from captum_lrp_stab.comparison.references import NAMES, reference_of
from captum_lrp_stab.prepared import prepare
from captum_lrp_stab.report import make_folder

_WORDS = ("layer", "rule")
_SHOWN = (*_WORDS, "rel. L2", "cosine", "top 1%", "sum", "reference")


def compare(
    image: common.ImageArgument = None,
    reference: Annotated[
        str, typer.Option(help=f"What to compare with: {', '.join(NAMES)}.")
    ] = "zennit",
    model: common.ModelOption = zoo.LITE0,
    weights: common.WeightsOption = "DEFAULT",
    target: common.TargetOption = None,
    rules: common.RulesOption = "epsilon_gamma_box",
    stabilizer: Annotated[
        str | None,
        typer.Option(
            help="Stabilizer of every rule, on both sides, as name or name:epsilon. Names: "
            f"{', '.join(choices.STABILIZERS)}.",
            show_default="each rule's own",
        ),
    ] = None,
    form: common.FormOption = "gradient",
    attention: common.AttentionOption = "attnlrp",
    merge_batch_norm: Annotated[
        bool | None,
        typer.Option(
            help="Treat a batch norm as one layer with the layer before it.",
            show_default="as the reference does",
        ),
    ] = None,
    dtype: common.DtypeOption = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest relative L2 difference that counts as equal.",
            show_default="from dtype and depth",
        ),
    ] = None,
    seed: common.SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("lrp-comparison"),
) -> None:
    """Compare the relevance of one picture with another implementation's, layer by layer.

    Do the two agree? If not: what is the first layer at which they part, and is it rounding, a
    known difference of meaning, or something else? Writes comparison.json and comparison.png. Exit
    status 1 if the verdict is "different".

    For example: `captum-lrp-stab compare`

    `captum-lrp-stab compare cat.jpg --reference captum --model vgg16 --weights vgg16.pth`

    `captum-lrp-stab compare --reference float64 --dtype float16`
    """
    with common.one_message():
        chosen, treated = reference_of(reference), choices.attention_of(attention)
        stabilize = None if stabilizer is None else choices.stabilizer_of(stabilizer)
        forms.form_of(form)
        choices.dtype_of(dtype)
        picture, title = common.picture_of(image)
        make_folder(out)  # or fail now, not after minutes of work
        classifier = common.load(model, weights, seed)
        ready = prepare(classifier, picture, dtype, target)
        with common.progress(None) as step, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compared = comparison.compare(
                ready.model,
                ready.x,
                ready.target,
                choices.preset_of(rules, classifier.preprocessing),
                chosen,
                stabilizer=stabilize,
                tolerance=tolerance,
                attention=treated,
                merge_batch_norm=merge_batch_norm,
                form=form,
                progress=step,
            )
        said = tuple(dict.fromkeys(str(warning.message) for warning in caught))
        about = report.About(ready, title, rules, form, stabilizer, said)
        paths = report.write(compared, about, out)
    _show(compared, about)
    print(f"written: {', '.join(map(str, paths))}")
    if compared.verdict == "different":
        raise typer.Exit(1)


def _show(compared: Comparison, about: report.About) -> None:
    """Print the table, and the verdict below it, where it is seen."""
    console = common.console()
    console.print(about.sentence(compared), markup=False)
    header, rows = compared.table(every=False)
    shown = [
        [cell for name, cell in zip(header, row, strict=True) if name in _SHOWN] for row in rows
    ]
    first = compared.first.name if compared.first is not None else None
    console.print()
    common.print_table(console, _SHOWN, shown, _WORDS, lambda row: row[0] == first, unbroken=True)
    console.print(f"\n{report.LEGEND}", style="dim")
    console.print(f"\n[bold]{compared.verdict}[/bold]")
    warned = (f"- warning: {warning}" for warning in about.warnings)
    for line in (compared.explanation, *compared.notes(), *warned):
        console.print(line, markup=False)
