"""What a layer reads whose rule gives relevance: it must run in relevance form (``mixed_form``)."""

from collections.abc import Iterable
from dataclasses import dataclass

from captum_lrp_stab import operations
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.sites import Operation, Site


@dataclass(frozen=True)
class Stretch:
    """Operations of a pass, by their ordinals."""

    direct: frozenset[int]  # layers whose rule gives relevance
    below: frozenset[int]  # what the input of these is made of


def stretch_of(planned: Iterable[Operation], sites: Iterable[Site]) -> Stretch | None:
    """Return the stretch below layers that read no input of the model, None if there are none.

    Args:
        planned: The operations of a pass, with their nodes of the graph.
        sites: The layers of the pass whose rule is not proportional to their input.

    Raises:
        RuleError: An operation of the stretch has no LRP rule.
    """
    deep = [site for site in sites if not site.reads_input]
    if not deep:
        return None
    below: set[int] = set()
    for site in deep:
        nodes = set(operations.graph(site.x))
        for function in operations.custom_functions(nodes):
            raise RuleError(
                f"{_why(site)}, where the custom autograd function {function.__name__} has none; "
                "move the rule to a layer below it, or take a proportional one such as EpsilonRule"
            )
        for operation in planned:
            if operation.nodes is None or not any(node in nodes for node in operation.nodes):
                continue
            if operation.fallback:
                raise RuleError(
                    f"{_why(site)}, where operation {operation.describe_fallback()} has no rule; "
                    "move the rule to a layer below it, or take a proportional one such as "
                    "EpsilonRule"
                )
            below |= operation.ordinals
    direct = frozenset().union(*(site.operation.ordinals for site in sites))
    return Stretch(direct, frozenset(below))


def _why(site: Site) -> str:
    rule = next(rule for rule in site.rules if not rule.proportional)
    return (
        f"{type(rule).__name__} on layer '{site.name}': the rule gives relevance that is not "
        "proportional to the layer's input, so what that input is made of runs in relevance form"
    )
