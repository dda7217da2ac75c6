"""Operations that relevance passes under their plain gradient: found, put in words, refused."""

from collections.abc import Iterable, Sequence

from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import FallbackError

_NAMED = 5
"""How many operations a message names."""


def of(operations: Iterable[Operation]) -> list[str]:
    """Return each operation that relevance passes under its plain gradient, in words."""
    return [o.describe_fallback() for o in operations if o.caveat]


def counted(fallbacks: Sequence[str]) -> str:
    """Return how many fallbacks there are, and the names of the first few.

    Example:
        >>> counted(["1 (Sigmoid: no LRP rule is known for this operation)"])
        '1 operation under its plain gradient: 1 (Sigmoid: no LRP rule is known for this operation)'
    """
    one = len(fallbacks) == 1
    what = "operation under its" if one else "operations under their"
    return f"{len(fallbacks)} {what} plain gradient: {_names(fallbacks)}"


def warning(fallbacks: Sequence[str]) -> str:
    """Return the warning of fallbacks, with the remedy."""
    one = len(fallbacks) == 1
    return (
        f"relevance passes {counted(fallbacks)}; there it need not be conserved: write "
        f"{'it' if one else 'them'} in operations that have a rule, or explain a value before; "
        "captum_lrp_stab.plan lists all, fallbacks='ignore' silences this warning, strict=True "
        "makes it an error"
    )


def warning_of_head(head: Operation) -> str:
    """Return the warning of an activation that makes the output, with the remedy."""
    remedy = "with skip_output_activation=True or" if not head.head else "by"
    return (
        f"the output is made by '{head.name}' ({head.kind}), through which relevance vanishes as "
        f"it saturates: explain what it reads, {remedy} a model that returns that; "
        "fallbacks='ignore' silences this warning, strict=True makes it an error"
    )


def refuse(fallbacks: Sequence[str]) -> None:
    """Raise FallbackError, naming the first few, unless there are none."""
    if fallbacks:
        raise FallbackError(
            f"{len(fallbacks)} operations would get their plain gradient: {_names(fallbacks)}; "
            "leave out strict=True to allow it"
        )


def _names(fallbacks: Sequence[str]) -> str:
    more = f" and {len(fallbacks) - _NAMED} more" if len(fallbacks) > _NAMED else ""
    return f"{', '.join(fallbacks[:_NAMED])}{more}"
