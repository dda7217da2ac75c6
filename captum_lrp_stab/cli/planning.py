"""``captum-lrp-stab plan``."""

from typing import Annotated

import torch
import typer

from captum_lrp_stab import choices, zoo
from captum_lrp_stab.cli import common
from captum_lrp_stab.planning import Plan
from captum_lrp_stab.planning import plan as make_plan


def plan(
    model: Annotated[str, typer.Argument(help=common.MODELS)],
    rules: common.RulesOption = "epsilon",
    attention: common.AttentionOption = "attnlrp",
    merge_batch_norm: Annotated[
        bool, typer.Option(help="Treat a batch norm as one layer with the layer before it.")
    ] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if an operation would get its plain gradient.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="List only the operations with a rule.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what each operation of a model will get: rule, stabilizer, merged batch norm, fallback.

    A plan needs no weights: it is made by one forward pass with random ones.

    For example: `captum-lrp-stab plan vit_b_16 --rules epsilon_plus --attention cp`

    `captum-lrp-stab plan resnet50 --layers --json`
    """
    with common.one_message():
        treated = choices.attention_of(attention)
        classifier = zoo.load(model, "none")
        preset = choices.preset_of(rules, classifier.preprocessing)
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
    if as_json:
        print(planned.to_json())
        return
    print(planned)
    print(
        f"\n{len(planned.rows)} operations, {len(planned.layers)} with a rule, "
        f"{len(planned.fallbacks)} with their plain gradient"
    )
