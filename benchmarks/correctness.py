"""Is it right? A fast method that computes something else is not fast.

Each contender's relevance is compared with that of this package in float64 under the matching
rules, on the same numbers: the parameters and inputs as the contender's dtype rounds them. For this
package alone that would be circular, so its float64 result is also compared with zennit's composite
of the same name in float64; that says nothing where zennit's own row is wrong. Beside it stands the
sum of relevance over the score, as it is and as in float64: where biases take relevance, the sum is
not the score for anybody.

The tolerance lets pass what is known and small: rounding (1e-6 in float32), and zennit's stabilizer
at additions and its eps in merged batch norms (some 1e-4, see ``docs/parity.md``).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.contenders import GRADIENT, OURS, Method, NotInstalledError, select
from benchmarks.contenders.gradient import GradientTimesInput
from benchmarks.contenders.ours import Ours
from benchmarks.models import Subject
from benchmarks.timing import quiet

OK, WRONG, DIFFERENT = "ok", "wrong", "different"
REFUSED, NOT_INSTALLED = "refused", "not installed"

TOLERANCE = {"float32": 1e-2, "bfloat16": 0.3}
"""The relative L2 difference from float64 above which a result is wrong."""
ROUNDING = 3.0
"""So many times the difference of the gradient itself is right in any case: rounding alone decides
some maxima and ReLUs otherwise, most of all under random weights."""


@dataclass(frozen=True)
class Correctness:
    """What one contender's relevance is worth.

    Args:
        verdict: ``OK``, ``WRONG``, ``DIFFERENT`` (beyond the tolerance, on purpose), ``REFUSED`` or
            ``NOT_INSTALLED``.
        note: Why.
        relative_l2: Difference from the float64 reference over the norm of that.
        sum_over_score: Sum of relevance over the score.
        expected_sum_over_score: The same of the reference.
        independent_l2: For this package: difference of its own float64 result from zennit's.
    """

    verdict: str
    note: str = ""
    relative_l2: float | None = None
    sum_over_score: float | None = None
    expected_sum_over_score: float | None = None
    independent_l2: float | None = None


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over that of the expected, in float64."""
    a, e = actual.double().cpu(), expected.double().cpu()
    return float((a - e).norm() / e.norm())


def judge(difference: float, dtype: str, gradients: float = 0.0) -> str:
    """Return whether a result at this difference is right; NaN is not.

    Args:
        difference: Relative L2, from float64.
        dtype: What was computed in.
        gradients: The difference of gradient x input on the same model.

    Example:
        >>> judge(1e-5, "float32"), judge(0.1, "float32"), judge(float("nan"), "float32")
        ('ok', 'wrong', 'wrong')
    """
    return OK if difference <= max(TOLERANCE[dtype], ROUNDING * gradients) else WRONG


def in_words(error: Exception) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:157]}{'...' if len(text) > 157 else ''}"


class Checker:
    """Checks contenders on one input of a model, and keeps the references.

    Args:
        subject: The model in the dtype and on the device that is timed.
        dtype: That dtype by name.
    """

    def __init__(self, subject: Subject, dtype: str) -> None:
        self.dtype = dtype
        self.inputs = subject.inputs(1)
        self.target = subject.targets(self.inputs)
        with torch.no_grad():
            self.score = float(subject.model(self.inputs)[0, self.target])
        self._subject = subject.to(torch.float64)
        self._exact = self.inputs.double().cpu(), self.target.cpu()
        exact, rounded = (
            GradientTimesInput(of).attribute(*given)
            for of, given in ((self._subject, self._exact), (subject, (self.inputs, self.target)))
        )
        self._gradients = relative_l2(rounded, exact)
        self._references: dict[str, Tensor] = {}
        self._independent: dict[str, float | None] = {}

    def check(self, method: Method, relevance: Tensor, known: str = "") -> Correctness:
        """Return what the relevance of the one input is worth.

        Args:
            method: Whose it is.
            relevance: What it says.
            known: What it means to do otherwise on this model.
        """
        expected = self.reference(method)
        difference = relative_l2(relevance, expected)
        own = self.independent(method.rules) if method.library == OURS else None
        verdict, note = judge(difference, self.dtype, self._gradients), ""
        if not math.isfinite(difference):
            note = "not finite"
        elif verdict == WRONG and known:
            verdict, note = DIFFERENT, known
        return Correctness(
            verdict,
            note,
            difference,
            float(relevance.double().sum()) / self.score,
            float(expected.sum()) / self.score,
            own,
        )

    def reference(self, method: Method) -> Tensor:
        """Return the relevance in float64 under the rules that match a contender's."""
        name = method.matching
        if name not in self._references:
            is_gradient = method.library == GRADIENT
            explainer = (
                GradientTimesInput(self._subject) if is_gradient else Ours(self._subject, name)
            )
            with quiet():
                self._references[name] = explainer.attribute(*self._exact)
        return self._references[name]

    def independent(self, rules: str) -> float | None:
        """Return how far our float64 result is from zennit's, None if zennit cannot say."""
        if rules not in self._independent:
            self._independent[rules] = self._from_zennit(rules)
        return self._independent[rules]

    def _from_zennit(self, rules: str) -> float | None:
        methods = {m.name: m for m in select(("zennit",))}
        method = methods.get(f"zennit:{rules}")
        if method is None:
            return None
        try:
            explainer = method.build(self._subject.copied())
            with quiet():
                explainer.prepare()
                theirs = explainer.attribute(*self._exact)
        except NotInstalledError:
            return None
        except Exception:  # that it fails is told in zennit's own row
            return None
        return relative_l2(self.reference(method), theirs)
