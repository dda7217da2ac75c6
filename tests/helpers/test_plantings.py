"""Every planting does harm at its place, and nothing else does; clean runs do none."""

import math
from collections import Counter
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import EpsilonRule, plan
from captum_lrp_stab.comparison.recording import Uses
from captum_lrp_stab.propagation import forms
from tests.helpers.planted_networks import ARCHITECTURES
from tests.helpers.planting_gardener import KINDS
from tests.helpers.planting_harm import ALONE, HARM, Harm, Planting, exact, harm, watched
from tests.helpers.plantings import PRESETS, TORCHVISION, clean_run, planting

pytestmark = pytest.mark.usefixtures("one_thread")

SOME, OTHERS = range(14), range(14, 200)  # 14 have every kind twice
ORDINARY = 300  # what no layer does to the sum of |relevance| without a planting; seen: 110


@pytest.fixture(
    params=[
        pytest.param(SOME, id="some"),
        pytest.param(OTHERS, id="others", marks=pytest.mark.slow),
    ]
)
def seeds(request):
    return request.param


@cache
def harm_of(seed: int) -> Harm:
    return harm(planting(seed), planting(seed).model)


def growths(case: Planting, model: nn.Module) -> dict[str, float]:
    """What each layer does to the sum of |relevance|, in order of execution."""
    rows = plan(model, case.x, case.rules).layers
    probes = {row.name: (Uses(row.name, False), Uses(row.name, True)) for row in rows}
    done = case.run(model, tuple(probe for pair in probes.values() for probe in pair))
    assert done.is_finite or case.clean is not None
    sums = {
        name: [sum(total(use.relevance) for use in probe.reached) for probe in pair]
        for name, pair in probes.items()
    }
    return {name: below / above for name, (above, below) in sums.items() if above}


def total(relevances: list[Tensor] | None) -> float:
    return sum(float(R.double().abs().sum()) for R in relevances or [])


@pytest.mark.parametrize("kind", KINDS)
def test_each_planting_does_harm_at_its_place(kind, seeds):
    for seed in (s for s in seeds if KINDS[s % len(KINDS)] == kind):
        case = planting(seed)
        found = harm_of(seed)
        where = f"{seed}: {case.kind} in {case.architecture}, {case.form}: {found}"
        assert found.place == case.index, where
        assert found.growth > HARM and found.second <= ALONE, where
        assert found.forward or math.isfinite(found.given), where
        # what the layer is given is as in an ordinary run
        clean = harm(case, case.clean)
        assert clean.finite and not clean.forward and clean.growth < ORDINARY, where
        assert found.forward or 1e-2 < found.given / clean.given < 1e4, where


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_the_first_that_relevance_meets_harm_at(kind, seeds):
    for seed in (s for s in seeds if KINDS[s % len(KINDS)] == kind):
        case = planting(seed)
        if harm_of(seed).forward:
            continue
        found = growths(case, case.model)
        names = list(found)
        above = names[names.index(case.layer) + 1 :]
        assert all(found[name] < ORDINARY for name in above), (seed, found)
        assert not found[case.layer] < HARM, (seed, found)  # or NaN


def test_a_forward_overflow_is_finite_in_float64(seeds):
    seen = 0
    for seed in seeds:
        case = planting(seed)
        if case.kind != "overflow" or not harm_of(seed).forward:
            continue
        with watched(case, case.model) as values:
            case.run(case.model)
        x, z = values[-2:]
        true = exact(case, case.model, x).z
        assert not z[case.index].isfinite() and true.isfinite().all()
        assert true[case.index].abs() > torch.finfo(z.dtype).max
        seen += 1
    assert seen >= max(1, len(seeds) // 20)


@pytest.mark.slow
def test_every_kind_is_planted_in_every_architecture():
    cases = [planting(seed) for seed in (*SOME, *OTHERS)]
    assert len({(case.kind, case.architecture) for case in cases}) == len(KINDS) * 5
    assert Counter(case.architecture for case in cases) == {name: 40 for name in ARCHITECTURES}
    by_form = Counter(case.form for case in cases)
    assert set(by_form) == set(forms.NAMES) and min(by_form.values()) >= 40
    assert len({(case.architecture, case.layer) for case in cases}) >= 50
    assert len({case.index for case in cases}) >= 150


def test_the_plan_lists_the_layer_and_its_output(seeds):
    for case in map(planting, seeds):
        rows = {row.name: row for row in plan(case.model, case.x, case.rules).layers}
        shape = rows[case.layer].shape
        assert len(shape) == len(case.index)
        assert all(0 <= i < n for i, n in zip(case.index, shape, strict=True))


@pytest.mark.slow
def test_clean_runs_do_no_harm():
    seen = Counter()
    for seed in (*SOME, *OTHERS):
        case = clean_run(seed)
        seen.update([case.kind, case.architecture, case.form])
        found = growths(case, case.model)  # asserts that all is finite
        assert max(found.values()) < ORDINARY, (seed, case.kind, case.architecture, found)
    assert set(seen) == {*PRESETS, *ARCHITECTURES, *TORCHVISION, *forms.NAMES}


def test_a_seed_is_a_planting_and_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    cases = [(planting.__wrapped__(seed), planting(seed)) for seed in (3, 12)]
    clean = [clean_run(7), clean_run(7)]
    assert torch.equal(before, torch.random.get_rng_state())
    for one, other in [*cases, clean]:
        assert (one.layer, one.index, one.form) == (other.layer, other.index, other.form)
        pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
        assert torch.equal(one.x, other.x) and all(torch.equal(a, b) for a, b in pairs)


def test_harm_by_hand():
    layer = nn.Linear(2, 2, bias=False).eval()
    layer.weight = nn.Parameter(torch.tensor([[3.0, -1.0], [1.0, 1.0]]))
    x, rules = torch.ones(1, 2), [(["0"], EpsilonRule, {"epsilon": 0.0})]
    model = nn.Sequential(layer)
    case = Planting("by hand", "", model, x, 0, rules, "gradient", None, "0", (0, 0), model)
    # z = (2, 2), R = (2, 0), contributions 3 and -1: 4 in sum
    assert harm(case, model) == (False, 2.0, 2.0, (0, 0), 0.0, True)
