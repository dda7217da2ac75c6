"""Rules broken on purpose: ``compare`` says "different", and names the layer.

A random network of a small zoo, with a random rule in each layer, gets a fault in one of them. The
right rules on the other side are zennit's, where zennit serves the network, and this package's.
"""

import pytest
import torch

from tests.helpers.faults import (
    FAULTS,
    FIRST,
    NETWORKS,
    RULES,
    assert_located,
    last_use,
    planted,
    scaled_by,
)

# Plantings --------------------------------------------------------------------------------------


FEW = (0, 1, 2, 3, 4, 5, 6, 7, 9, 12, 16, 18, 24, 27, 28, 48)  # of every kind: see below


seeds = pytest.mark.parametrize(
    "seed", [*FEW, *(pytest.param(s, marks=pytest.mark.slow) for s in range(50) if s not in FEW)]
)


@seeds
def test_a_planted_fault_is_found(seed: int) -> None:
    planting = planted(seed)
    for reference in planting.references():
        comparison = planting.compared(planting.broken, reference)
        assert_located(comparison, last_use(planting.network, planting.layer))


@seeds
def test_right_rules_are_equal(seed: int) -> None:
    planting = planted(seed)
    for reference in planting.references():
        comparison = planting.compared(planting.rules, reference)
        assert (comparison.verdict, comparison.first) == ("equal", None), str(comparison)


@seeds
def test_a_fault_below_rounding_is_none(seed: int) -> None:
    planting = planted(seed)
    rules = planting.with_faults({planting.layer: scaled_by(1e-15)})
    for reference in planting.references():
        comparison = planting.compared(rules, reference)
        assert (comparison.verdict, comparison.first) == ("equal", None), str(comparison)


def test_the_plantings_are_of_every_kind() -> None:
    """What chance left out would be missing from the tests above without a word."""
    plantings = [planted(seed) for seed in FEW]
    assert {p.network for p in plantings} == NETWORKS.keys()
    assert {p.fault for p in plantings} == FAULTS.keys()
    rules = {rule for p in plantings for (name,), rule, _ in p.rules if name == p.layer}
    assert rules == {rule for rule, _ in RULES + FIRST}
    assert sum(len(p.references()) == 2 for p in plantings) >= 8
    assert sum(p.inputs.dtype == torch.float32 for p in plantings) >= 4
