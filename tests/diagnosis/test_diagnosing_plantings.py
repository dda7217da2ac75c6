"""``diagnose`` finds what was planted, names its cause, and is silent on clean runs."""

import copy
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from captum_lrp_stab import diagnose
from captum_lrp_stab.diagnosis import Diagnosis
from captum_lrp_stab.ledger.locating import Trouble
from captum_lrp_stab.propagation import forms
from tests.helpers.planting_gardener import KINDS
from tests.helpers.planting_harm import Planting
from tests.helpers.plantings import clean_run, planting

pytestmark = pytest.mark.usefixtures("one_thread")

SOME, OTHERS = range(14), range(14, 200)  # 14 have every kind twice
CAUSES = {
    "exact zero": "exact zero",
    "near zero, positive": "near zero",
    "near zero, negative": "near zero",
    "cancellation": "cancellation",
    "overflow": "overflow",
    "underflow": "epsilon underflows",
    "sign flip": "pole",
}


@pytest.fixture(
    params=[
        pytest.param(SOME, id="some"),
        pytest.param(OTHERS, id="others", marks=pytest.mark.slow),
    ]
)
def seeds(request):
    return request.param


def diagnosed(case: Planting, model: nn.Module) -> Diagnosis:
    form = forms.form_of(case.form, case.stabilizer)
    return diagnose(model, case.x, case.target, case.rules, form=form)


@cache
def found(seed: int) -> Diagnosis:
    return diagnosed(planting(seed), planting(seed).model)


def test_the_origin_is_the_layer_and_the_neuron(seeds):
    right = 0
    for seed in seeds:
        case, origin = planting(seed), found(seed).origin
        assert origin is not None and origin.layer == case.layer, (seed, case.kind, origin)
        right += origin.neuron is not None and origin.neuron.index == case.index
    assert right >= 0.95 * len(seeds)


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_and_the_cause(kind, seeds):
    for seed in (s for s in seeds if KINDS[s % len(KINDS)] == kind):
        case, result = planting(seed), found(seed)
        assert result.origin is not None and result.cause is not None
        finite = result.origin.is_finite and all(R.isfinite().all() for R in result.relevances)
        assert result.verdict == ("unstable" if finite else "not finite"), seed
        assert result.cause.kind == CAUSES[kind], (seed, result.cause)
        assert result.cause.what and result.cause.remedy
        assert result.cause.remedy.lower() in result.explanation().lower()
        assert f"'{result.origin.name}'" in result.explanation()
        assert f"{result.verdict}: " in str(result) and case.layer in result.to_json()


def test_each_cause_has_a_remedy_of_its_own(seeds):
    remedies = {(found(s).cause.kind, found(s).cause.remedy) for s in seeds}
    assert {kind for kind, _ in remedies} == set(CAUSES.values())
    assert len({remedy for _, remedy in remedies}) == len(remedies) == len(set(CAUSES.values()))


def test_whether_the_dtype_is_the_cause(seeds):
    seen = Counter()
    for seed in seeds:
        case, here = planting(seed), found(seed)
        if case.x.dtype == torch.float64:
            assert here.dtype_is_cause is None  # there is nothing wider
            continue
        wide = replace(case, x=case.x.double())
        there = diagnosed(wide, copy.deepcopy(case.model).double())
        better = there.verdict == "stable" or "not finite" == here.verdict != there.verdict
        assert here.dtype_is_cause is better, (seed, case.kind)
        said = f"{str(case.x.dtype).removeprefix('torch.')} is the cause"
        assert (said in here.explanation()) == better
        seen[case.kind, better] += 1
    assert seen["underflow", True] and not seen["underflow", False]  # 0 in float16 alone
    assert seen["overflow", True] and not seen["overflow", False]
    assert seen["sign flip", False] or seeds is SOME  # the pole is where it is in any dtype


def test_clean_runs_raise_no_alarm_and_their_books_close(seeds):
    seen = Counter()
    large = range(10, 33, 11)  # torchvision's, which the slow ones have as well
    for seed in (s for s in seeds if s not in large):
        case = clean_run(seed)
        result = diagnosed(case, case.model)
        where = (seed, case.kind, case.architecture, case.form, result.explanation())
        assert result.verdict == "stable" and result.origin is None, where
        assert result.cause is None and not result.sees, where
        ledger = result.ledger
        double = case.x.dtype == torch.float64
        limit = (1e-10 if double else 2e-3) * abs(ledger.score)
        assert abs(ledger.elsewhere) + abs(ledger.shares.rounding) <= limit, (where, ledger)
        parts = ledger.inputs.total + ledger.shares.total + ledger.elsewhere
        assert parts == pytest.approx(ledger.score, rel=1e-9), where
        seen[case.x.dtype, case.form] += 1
    assert {form for _, form in seen} == set(forms.NAMES) and len({d for d, _ in seen}) == 2


@pytest.mark.slow
def test_without_the_planting_there_is_no_alarm_at_its_layer(seeds):
    for seed in seeds:
        case = planting(seed)
        assert case.clean is not None
        origin = diagnosed(case, case.clean).origin
        if origin is None or origin.layer != case.layer:
            continue
        # the stabilizer that the planting needs is there without it, and adds relevance of its own
        assert case.kind == "sign flip" and origin.trouble is Trouble.EXCESS, (seed, origin)
        assert origin.factor is None or origin.factor < 300, (seed, origin)
        planted = found(seed).origin
        assert planted is not None and planted.trouble is not Trouble.EXCESS
