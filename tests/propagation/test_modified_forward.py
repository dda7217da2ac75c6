"""The modified forward pass, by hand."""

import pytest
import torch
from torch import nn

from captum_lrp_stab import FlatRule, ZBoxRule, stabilizers
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.ledger.locating import locate
from captum_lrp_stab.ledger.watching import Collector, records_of
from captum_lrp_stab.stabilizers import Signed
from tests.helpers import networks
from tests.helpers.studies import random_input, run


def test_the_stabilizer_changes_the_output() -> None:
    layer = networks.build(lambda: nn.Linear(4, 3))
    x = random_input(2, 4)
    z = layer(x).detach()
    done = run(layer, x, "modified-forward", stabilizer=stabilizers.Additive(0.5))
    factor = (z / (z + 0.5))[:, 1]
    torch.testing.assert_close(done.score, z[:, 1] * factor)
    torch.testing.assert_close(done.relevances[0], x * layer.weight[1].detach() * factor[:, None])


def test_bounds_collect_relevance_too() -> None:
    layer = networks.build(lambda: nn.Linear(4, 3, bias=False))
    low, high = torch.full((1, 4), -1.5).double(), torch.full((1, 4), 2.0).double()
    x = random_input(5, 4)
    rules = {"": ZBoxRule(low, high, stabilizer=Signed(0.3))}
    done = run(layer, x, "modified-forward", rules)
    w = layer.weight[1].detach()
    terms = x * w - low * w.clamp(min=0) - high * w.clamp(max=0)
    d = terms.sum(1, keepdim=True)
    torch.testing.assert_close(done.relevances[0], terms * (x @ w)[:, None] / (d + 0.3 * d.sign()))


def test_0_over_0_is_nan_in_the_forward_pass() -> None:
    layer = nn.Linear(2, 2, bias=False)
    collector = Collector()
    done = run(layer, torch.zeros(1, 2), "modified-forward", observer=collector)
    assert done.score.isnan().all()
    origin = locate(records_of(collector, (), done.operations, torch.float32))
    assert origin is not None
    assert (origin.name, origin.direction, origin.count) == ("", "forward", 2)


def test_a_merged_batch_norm_is_traced_once() -> None:
    model = networks.build(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    )
    collector = Collector()
    x = random_input(1, 3, 4, 4)
    done = run(model, x, "modified-forward", stabilizer=Signed(1e-9), observer=collector)
    assert [operation.name for operation, _ in collector.found] == ["3", "0"]
    records = records_of(collector, (), done.operations, torch.float32)
    assert [(record.name, record.batch_norm) for record in records] == [("0", "1"), ("3", "")]


def test_a_merged_batch_norm_is_one_layer() -> None:
    model = networks.build(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    x = random_input(2, 4)
    z = model(x)[:, 1].detach()
    done = run(model, x, "modified-forward", stabilizer=stabilizers.Additive(0.5))
    torch.testing.assert_close(done.score, z * z / (z + 0.5))


def test_an_overflow_of_the_gradient_is_located() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1e200)
        model[1].weight.fill_(1e200)
    collector = Collector()
    x = torch.full((1, 1), 1e-200, dtype=torch.float64)
    done = run(model, x, "modified-forward", stabilizer=Signed(0.0), target=0, observer=collector)
    assert done.score.isfinite().all()
    assert not done.is_finite
    origin = locate(records_of(collector, (), done.operations, torch.float64))
    assert origin is not None
    assert (origin.name, origin.direction) == ("0", "backward")


def test_rules_without_a_coefficient_serve_the_first_layer_only() -> None:
    model = networks.build(lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    with pytest.raises(RuleError, match="FlatRule on layer '1'"):
        run(model, random_input(1, 4), "modified-forward", {"1": FlatRule()})
