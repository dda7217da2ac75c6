"""The arguments and options that several commands share."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from captum_lrp_stab import names

# A function that torchvision lists as a model, below its decorators.
_MODEL = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)


def models() -> list[str]:
    """Return what ``zoo.names`` returns, read from torchvision's source: importing it is slow."""
    found = list(names.OFFLINE)
    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in Path(folder, "models").glob("*.py"):
            found += _MODEL.findall(path.read_text(encoding="utf-8"))
    return sorted(found)


def completing(known: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what completes a beginning to those of the names that begin like it.

    Example:
        >>> completing(("clip", "signed"))("s")
        ['signed']
    """

    def complete(incomplete: str) -> list[str]:
        return [
            name for name in (known() if callable(known) else known) if name.startswith(incomplete)
        ]

    return complete


files = completing(())
"""Completes nothing, which leaves it to the shell, and that completes the names of files."""

MODELS = f"{', '.join(names.OFFLINE)}, or any torchvision classifier."
STABILIZERS = f"Names: {', '.join(names.STABILIZERS)}."

ImageArgument = Annotated[
    Path | None,
    typer.Argument(
        help="An image file; without one, a photograph of scikit-image.", autocompletion=files
    ),
]
ModelOption = Annotated[str, typer.Option(help=MODELS, autocompletion=completing(models))]
ModelOrUsualOption = Annotated[
    str | None,
    typer.Option(
        help=MODELS,
        show_default=f"{names.OFFLINE[0]}; for stock Captum {names.OFFLINE[1]}",
        autocompletion=completing(models),
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        help="DEFAULT (ImageNet), none (random), or a file with a state dict.",
        autocompletion=completing(("DEFAULT", "none")),
    ),
]
TargetOption = Annotated[
    int | None, typer.Option(help="Class to explain.", show_default="the one the model finds")
]
RulesOption = Annotated[
    str,
    typer.Option(
        help=f"Rule preset: {', '.join(names.PRESETS)}.",
        autocompletion=completing(names.PRESETS),
    ),
]
FormOption = Annotated[
    str,
    typer.Option(
        help=f"How relevance is propagated: {', '.join(names.FORMS)}; the last two divide without "
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
        help=f"dtype of model and input: {', '.join(names.DTYPES)}.",
        autocompletion=completing(names.DTYPES),
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of random weights.", min=0, max=2**63 - 1)]
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

FINE, BAD, MISTAKE, INTERRUPTED = 0, 1, 2, 130  # the last: what a shell says of Ctrl-C

_ALWAYS = {
    FINE: "all is well",
    MISTAKE: "a mistake, or a file that cannot be read or written: one message on stderr",
    INTERRUPTED: "interrupted by Ctrl-C: the message says what is kept",
}


def epilog(examples: Sequence[str], statuses: Mapping[int, str]) -> str:
    """Return the examples and the exit statuses as Markdown.

    Args:
        examples: Arguments after the name of the program.
        statuses: What an exit status means for this command, where it is not what it always is.
    """
    meanings = sorted({**_ALWAYS, **statuses}.items())
    parts = [
        "**Examples**",
        *(f"- `captum-lrp-stab {example}`" for example in examples),
        "",  # ends the list also where typer joins paragraphs by single line breaks
        "**Exit status**",
        *(f"- {status}: {meaning}" for status, meaning in meanings),
    ]
    return "\n\n".join(parts)
