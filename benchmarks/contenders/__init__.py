"""The contenders by name, ``library:rules``."""

import difflib
from dataclasses import dataclass

from benchmarks.contenders.autolrp import AutoLRP
from benchmarks.contenders.base import Explainer, NotInstalledError
from benchmarks.contenders.gradient import GradientTimesInput
from benchmarks.contenders.ours import Ours
from benchmarks.contenders.stock_captum import StockCaptum
from benchmarks.contenders.zennit import Zennit
from benchmarks.models import Subject
from captum_lrp_stab.names import PRESETS

__all__ = ["GRADIENT", "OURS", "Explainer", "Method", "NotInstalledError", "select"]

GRADIENT, OURS = "gradient", "ours"


@dataclass(frozen=True)
class Method:
    """A contender.

    Args:
        library: Whose it is.
        rules: Its rules by name.
        kind: What explains by it.
        matching: The rules under which this package computes the same, see ``contenders.ours``.
    """

    library: str
    rules: str
    kind: type[Explainer]
    matching: str

    @property
    def name(self) -> str:
        """``library:rules``, and ``gradient``."""
        return f"{self.library}:{self.rules}" if self.rules else self.library

    def build(self, subject: Subject) -> Explainer:
        """Return the explainer of a subject's model.

        Raises:
            NotInstalledError: The library is not installed.
        """
        return self.kind(subject, self.rules)


def _ours(rules: str) -> Method:
    return Method(OURS, rules, Ours, rules)


_UNIT = Method(GRADIENT, "", GradientTimesInput, "")
_USUAL = (
    *map(_ours, "epsilon gamma epsilon_gamma_box epsilon_plus epsilon_alpha2_beta1".split()),
    Method("captum", "epsilon", StockCaptum, "epsilon"),
    Method("captum", "gamma", StockCaptum, "captum_gamma"),
    Method("zennit", "epsilon", Zennit, "epsilon"),
    Method("zennit", "epsilon_gamma_box", Zennit, "epsilon_gamma_box"),
    Method("zennit", "epsilon_plus", Zennit, "epsilon_plus"),
    Method("zennit", "epsilon_alpha2_beta1", Zennit, "epsilon_alpha2_beta1"),
    Method("autolrp", "epsilon", AutoLRP, "epsilon"),
    Method("autolrp", "gamma", AutoLRP, "gamma"),
)


def select(names: tuple[str, ...] = (), rules: tuple[str, ...] = ()) -> list[Method]:
    """Return the gradient, and the contenders with one of these names and one of these rules.

    Args:
        names: ``library:rules`` or a library; empty for all.
        rules: Rules by name, presets of this package that are not measured as a rule included;
            empty for the usual ones.

    Raises:
        ValueError: A name is unknown.

    Example:
        >>> [method.name for method in select(("captum", "ours:epsilon"))]
        ['gradient', 'ours:epsilon', 'captum:epsilon', 'captum:gamma']
    """
    usual = {method.rules for method in _USUAL}
    further = [_ours(name) for name in PRESETS if name not in usual]
    known = [*_USUAL, *further]
    _check("method", names, {m.name for m in known} | {m.library for m in known} | {GRADIENT})
    _check("rules", rules, {m.rules for m in known})
    chosen = [
        m
        for m in known
        if (not names or m.name in names or m.library in names)
        and (m.rules in (rules or usual) or m.name in names)
    ]
    return [_UNIT, *chosen]


def _check(what: str, given: tuple[str, ...], known: set[str]) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=3) or sorted(known)
            raise ValueError(f"no {what} has the name {name!r}; give one of {', '.join(close)}")
