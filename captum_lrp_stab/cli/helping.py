"""What stands at the end of each command's help: examples and exit statuses."""

from collections.abc import Mapping, Sequence

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
