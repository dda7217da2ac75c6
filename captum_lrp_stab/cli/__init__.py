"""The command ``captum-lrp-stab``, one module for each of its subcommands.

A mistake of the user's ends with one message on stderr and exit status 2. Results go to stdout,
progress to stderr. What is slow to import, such as PyTorch, is imported when a command runs, so
that help, completion and most usage errors do not wait for it.
"""

import sys
from typing import Annotated

import typer

from captum_lrp_stab._version import __version__
from captum_lrp_stab.cli import comparing, diagnosing, investigating, options, planning
from captum_lrp_stab.cli.ending import tell

app = typer.Typer(
    name="captum-lrp-stab",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog=options.epilog(
        ("investigate", "diagnose cat.jpg", "compare --help", "--install-completion"),
        {options.BAD: "the finding is bad, in a way that the command's own help names"},
    ),
)
app.command(epilog=investigating.EPILOG)(investigating.investigate)
app.command(epilog=comparing.EPILOG)(comparing.compare)
app.command(epilog=diagnosing.EPILOG)(diagnosing.diagnose)
app.command(epilog=planning.EPILOG)(planning.plan)


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
    try:
        app(prog_name=app.info.name)
    except OSError as error:  # of --install-completion, where there is no home, or of the help
        tell(f"error: {error}", "red")
        sys.exit(options.MISTAKE)
