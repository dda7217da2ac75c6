"""``captum-lrp-stab compare``."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from captum_lrp_stab import names
from captum_lrp_stab.cli import common, options
from captum_lrp_stab.cli.ending import COMPUTING, ending
from captum_lrp_stab.cli.options import completing

if TYPE_CHECKING:
    from captum_lrp_stab.comparison import Comparison
    from captum_lrp_stab.comparison.report import About


EPILOG = options.epilog(
    (
        "compare",
        "compare cat.jpg --reference captum --model vgg16 --weights vgg16.pth",
        "compare --reference float64 --dtype float16",
        "compare cat.jpg --json > comparison.json",
    ),
    {
        options.FINE: "the verdict is equal, rounding, known difference or reference not finite",
        options.BAD: "the verdict is different",
    },
)
_WORDS = ("layer", "rule")
_SHOWN = (*_WORDS, "rel. L2", "cosine", "top 1%", "sum", "reference")


def compare(
    image: options.ImageArgument = None,
    reference: Annotated[
        str,
        typer.Option(
            help=f"What to compare with: {', '.join(names.REFERENCES)}.",
            autocompletion=completing(names.REFERENCES),
        ),
    ] = "zennit",
    model: options.ModelOrUsualOption = None,
    weights: options.WeightsOption = "DEFAULT",
    target: options.TargetOption = None,
    rules: options.RulesOption = "epsilon_gamma_box",
    stabilizer: Annotated[
        str | None,
        typer.Option(
            help="Stabilizer of every rule, on both sides, as name or name:epsilon. "
            f"{options.STABILIZERS}",
            show_default="each rule's own",
            autocompletion=completing(names.STABILIZERS),
        ),
    ] = None,
    form: options.FormOption = "gradient",
    attention: options.AttentionOption = "attnlrp",
    merge_batch_norm: Annotated[
        bool | None,
        typer.Option(
            help="Treat a batch norm as one layer with the layer before it.",
            show_default="as the reference does",
        ),
    ] = None,
    dtype: options.DtypeOption = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest relative L2 difference that counts as equal.",
            show_default="from dtype and depth",
        ),
    ] = None,
    seed: options.SeedOption = 0,
    out: options.OutOption = Path("lrp-comparison"),
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Compare the relevance of one picture with another implementation's, layer by layer.

    Do the two agree? If not: what is the first layer at which they part, and is it rounding, a
    known difference of meaning, or something else? Writes comparison.json and comparison.png.
    """
    output = common.Output(quiet, as_json)
    with ending() as course:
        from captum_lrp_stab import by_name, comparison
        from captum_lrp_stab.comparison import report
        from captum_lrp_stab.comparison.captum_reference import CaptumReference
        from captum_lrp_stab.comparison.references import reference_of
        from captum_lrp_stab.propagation import forms
        from captum_lrp_stab.zoo.prediction import prepare

        chosen, treated = reference_of(reference), by_name.attention_of(attention)
        stabilize = None if stabilizer is None else by_name.stabilizer_of(stabilizer)
        forms.form_of(form)
        by_name.dtype_of(dtype)
        picture, title = common.picture_of(image)
        course.make_folder(out)
        name = common.model_of(model, isinstance(chosen, CaptumReference), output)
        classifier = common.load(name, weights, seed, output)
        course.now = COMPUTING
        ready = prepare(classifier, picture, dtype, target)
        with common.progress(None, output) as step, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compared = comparison.compare(
                ready.model,
                ready.x,
                ready.target,
                by_name.preset_of(rules, *classifier.preprocessing.bounds),
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
        with course.writing(out):
            paths = report.write(compared, about, out)

        def show(console: Console) -> None:
            _show(console, compared, about, report.LEGEND)
            common.print_written(console, paths)

        output.deliver(lambda: paths[0].read_text("utf-8"), show)
        if compared.verdict == "different":
            raise typer.Exit(options.BAD)


def _show(console: Console, compared: "Comparison", about: "About", legend: str) -> None:
    """Print the table, and the verdict below it, where it is seen."""
    console.print(about.sentence(compared), markup=False)
    header, rows = compared.table(every=False)
    shown = [
        [cell for name, cell in zip(header, row, strict=True) if name in _SHOWN] for row in rows
    ]
    first = compared.first.name if compared.first is not None else None
    console.print()
    bad = [index for index, row in enumerate(shown) if row[0] == first]
    common.print_table(console, _SHOWN, shown, _WORDS, bad)
    console.print(f"\n{legend}", style="dim")
    console.print(f"\n[bold]{compared.verdict}[/bold]")
    warned = (f"- warning: {warning}" for warning in about.warnings)
    for line in (compared.explanation, *compared.notes(), *warned):
        console.print(line, markup=False)
