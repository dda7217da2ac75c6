"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from captum_lrp_stab.cli import names
from captum_lrp_stab.cli.names import completing, files

MODELS = f"{', '.join(names.OFFLINE)}, or any torchvision classifier."
STABILIZERS = f"Names: {', '.join(names.STABILIZERS)}."

ImageArgument = Annotated[
    Path | None,
    typer.Argument(
        help="An image file; without one, a photograph of scikit-image.", autocompletion=files
    ),
]
ModelOption = Annotated[str, typer.Option(help=MODELS, autocompletion=completing(names.models))]
ModelOrUsualOption = Annotated[
    str | None,
    typer.Option(
        help=MODELS,
        show_default=f"{names.OFFLINE[0]}; for stock Captum {names.OFFLINE[1]}",
        autocompletion=completing(names.models),
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        help="DEFAULT (ImageNet), none (random), or a file with a state dict.",
        autocompletion=completing(names.WEIGHTS),
    ),
]
TargetOption = Annotated[
    int | None, typer.Option(help="Class to explain.", show_default="the one the model finds")
]
RulesOption = Annotated[
    str,
    typer.Option(
        help=f"Rule preset: {', '.join(names.presets())}.",
        autocompletion=completing(names.presets),
    ),
]
FormOption = Annotated[
    str,
    typer.Option(
        help=f"How relevance is carried: {', '.join(names.FORMS)}; the last two divide without "
        "protection.",
        autocompletion=completing(names.FORMS),
    ),
]
AttentionOption = Annotated[
    str,
    typer.Option(
        help="attnlrp: softmax by its gradient, products halved; cp: attention weights constant.",
        autocompletion=completing(names.ATTENTION),
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help=f"Of model and input: {', '.join(names.DTYPES)}.",
        autocompletion=completing(names.DTYPES),
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of random weights.", min=0, max=2**63 - 1)]
OutOption = Annotated[Path, typer.Option(help="Folder of the report.", autocompletion=files)]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the content of the report's JSON file, and nothing else, to stdout."
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print nothing but errors (and JSON, with --json)."),
]
