"""``captum-lrp-stab plan``."""

from typing import Annotated

import typer
from rich.console import Console

from captum_lrp_stab.cli import common, options
from captum_lrp_stab.cli.ending import COMPUTING, ending
from captum_lrp_stab.cli.options import completing, models

EPILOG = options.epilog(
    (
        "plan resnet18",
        "plan vit_b_16 --rules epsilon_plus --attention cp",
        "plan resnet50 --layers --json",
        "plan swin_t --strict --quiet && echo 'every operation has a rule'",
    ),
    {options.FINE: "the plan is made; with --strict: no operation gets its plain gradient"},
)


def plan(
    model: Annotated[str, typer.Argument(help=options.MODELS, autocompletion=completing(models))],
    rules: options.RulesOption = "epsilon",
    attention: options.AttentionOption = "attnlrp",
    merge_batch_norm: Annotated[
        bool, typer.Option(help="Treat a batch norm as one layer with the layer before it.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if an operation would get its plain gradient.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="List only the operations with a rule.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")
    ] = False,
    quiet: options.QuietOption = False,
) -> None:
    """List what each operation of a model will get: rule, stabilizer, merged batch norm, fallback.

    A plan needs no weights: it is made by one forward pass with random ones.
    """
    output = common.Output(quiet, as_json)
    with ending() as course:
        import torch

        from captum_lrp_stab import by_name, zoo
        from captum_lrp_stab.planning import Plan
        from captum_lrp_stab.planning import plan as make_plan

        treated = by_name.attention_of(attention)
        classifier = zoo.load(model, "none")
        course.now = COMPUTING
        preset = by_name.preset_of(rules, *classifier.preprocessing.bounds)
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

        def show(console: Console) -> None:
            text = (
                f"{planned}\n\n{len(planned.rows)} operations, {len(planned.layers)} with a rule, "
                f"{len(planned.fallbacks)} with their plain gradient"
            )
            console.print(text, markup=False, soft_wrap=True)

        output.deliver(planned.to_json, show)
