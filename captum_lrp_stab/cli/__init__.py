"""The command ``captum-lrp-stab``, one module for each of its subcommands.

A mistake of the user's ends with one message on stderr and exit status 2. Results go to stdout,
progress to stderr.
"""

from typing import Annotated

import typer

from captum_lrp_stab._version import __version__
from captum_lrp_stab.cli.comparing import compare
from captum_lrp_stab.cli.diagnosing import diagnose
from captum_lrp_stab.cli.investigating import investigate
from captum_lrp_stab.cli.planning import plan

app = typer.Typer(
    name="captum-lrp-stab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _command in (investigate, compare, diagnose, plan):
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"captum-lrp-stab {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Layer-wise relevance propagation with injectable stabilizers, for Captum."""


def main() -> None:
    """Run the command."""
    app()
