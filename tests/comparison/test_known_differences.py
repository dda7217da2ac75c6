"""Each known difference of meaning, provoked: ``compare`` names it, and nothing else.

Every case comes with its controls: without the difference the two sides are equal, and with a
fault on top it explains nothing.
"""

from dataclasses import replace

import pytest

from captum_lrp_stab import LRP, GammaRule, compare
from captum_lrp_stab.comparison.known_differences import KNOWN
from captum_lrp_stab.stabilizers import Additive
from tests.helpers.difference_cases import CASES, SIGN_OF_STABILIZER
from tests.helpers.faults import InGradientForm, NegatedRelevance, normed
from tests.helpers.known_cases import (
    APART,
    CONVOLUTIONS,
    GAMMA,
    IMAGES,
    TARGET,
    assert_known,
    exact_norms,
    merged_in_zennit,
    rules,
)
from tests.helpers.layers import relative_error
from tests.helpers.networks import build
from tests.helpers.zennit_version import leaving_eps

cases = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[leaving_eps] if name.startswith("merged eps") else [])
        for name in CASES
    ],
)


@cases
def test_a_known_difference_is_named(name: str) -> None:
    case = CASES[name]()
    assert_known(case.compared(), case.names)


@cases
def test_without_the_difference_the_two_are_equal(name: str) -> None:
    case = CASES[name]()
    for changes, left in case.without:
        assert_known(replace(case, **changes).compared(), left)


@cases
def test_a_fault_on_top_is_not_explained_away(name: str) -> None:
    case = CASES[name]()
    broken = case.broken()
    relevances = (LRP(case.model, r).attribute(case.inputs, 1) for r in (case.rules, broken.rules))
    assert relative_error(*relevances) > 1e-3
    comparison = broken.compared()
    assert comparison.verdict == "different", str(comparison)
    # what else lies between the two may be named, but is not all; gamma's bias is part of "weights"
    named = {d.name for d in comparison.differences} - {"gamma's bias"}
    assert named <= set(case.names)


@pytest.mark.parametrize("fault", [NegatedRelevance, InGradientForm])
def test_the_bias_share_explains_no_other_fault(fault: type) -> None:
    case = replace(CASES["bias share, by hand"](), fault=fault)
    assert case.broken().compared().verdict == "different"


def test_a_stabilizer_at_additions_is_not_named_where_there_are_none() -> None:
    """A fault in gradient form is no such thing, though the relevance form does not have it."""
    case = merged_in_zennit()
    exact = replace(case, model=exact_norms(case.model), fault=InGradientForm).broken()
    assert exact.compared().verdict == "different"


def test_every_known_difference_has_a_case() -> None:
    assert {name for make in CASES.values() for name in make().names} == {d.name for d in KNOWN}


IN_FLOAT32 = [  # larger than rounding there
    "gamma's bias, Captum",
    "unsigned epsilon, by hand",
    "score, zennit",
    "quadratic mean, LRP",
    "bias share, by hand",
    "weights, Captum's gamma",
    "doubled, Captum",
    "doubled, zennit",
    "batch norm apart, LRP",
    "rewritten, gamma",
    "gamma's bias and sign, LRP",
    "score and gamma's bias, LRP",
]


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_it_is_named_in_float32_too(name: str) -> None:
    case = CASES[name]().in_float32()
    comparison = case.compared()
    assert_known(comparison, case.names)
    assert "in float64" in comparison.explanation
    assert comparison.dtype == "float32"


@pytest.mark.parametrize("name", ["max pools, Captum", "merged eps, zennit"])
def test_a_difference_below_rounding_is_none(name: str) -> None:
    assert_known(CASES[name]().in_float32().compared(), ())


def test_three_differences_at_once_are_all_named() -> None:
    model, given = build(normed, 1), rules(CONVOLUTIONS, GammaRule, stabilizer=0.1)
    theirs = rules(CONVOLUTIONS, GammaRule, stabilizer=Additive(0.1), bias="captum")
    reference = LRP(model, theirs, merge_batch_norm=False)
    assert_known(
        compare(model, IMAGES, TARGET, given, reference), (GAMMA, SIGN_OF_STABILIZER, APART)
    )
