"""What users hold can be copied, pickled and printed, and works in a spawned worker."""

import copy
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, GammaRule, LayerFilter, LayerLRP, ZBoxRule, attach_rules
from tests.helpers import held

HELD = held.by_name()
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HELD)
def test_a_copy_is_the_same(name: str, way: str) -> None:
    one = HELD[name]
    other = WAYS[way](one)
    assert type(other) is type(one) and repr(other) == repr(one)
    if isinstance(one, LRP):
        x = torch.rand(2, 3)
        assert torch.equal(other.attribute(x, target=1), one.attribute(x, target=1))


@pytest.mark.parametrize("name", HELD)
def test_no_address_is_printed(name: str) -> None:
    assert not re.search(r"0x[0-9a-f]{6}", f"{HELD[name]!r} {HELD[name]}")


def test_a_spawned_worker() -> None:
    x = torch.rand(2, 3)
    lrp = HELD["LRP"]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:  # a Pool waits for ever for what does not unpickle
        assert list(pool.map(repr, HELD.values())) == list(map(repr, HELD.values()))
        relevance = pool.submit(LRP.attribute, lrp, x, target=1).result()
    assert torch.equal(relevance, lrp.attribute(x, target=1))


def test_a_bound_with_a_graph() -> None:
    """A tensor that is no leaf can be copied by nobody."""
    scale = torch.ones(3, requires_grad=True)
    rule = copy.deepcopy(ZBoxRule(-scale, scale * 2))
    assert torch.equal(rule.high, torch.full((3,), 2.0)) and not rule.high.requires_grad


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda m: LRP(m, [(["0", "2"], GammaRule, {"gamma": 0.5})], attention="cp"),
            "LRP(Sequential, rules=[2 x GammaRule(gamma=0.5, stabilizer=Signed(epsilon=1e-06, "
            "relative=False), bias='scaled')], attention='cp', merge_batch_norm=True, "
            "strict=False, nonfinite='warn', fallbacks='warn', skip_output_activation=False)",
        ),
        (lambda m: LRP(m), "LRP(Sequential, rules=None, attention='attnlrp', ..."),
        (lambda m: LayerLRP(m, m[1]), "LayerLRP(Sequential, rules=None, layer='1', ..."),
        (
            lambda m: LayerLRP(m, [m[1], "3"]),
            "LayerLRP(Sequential, rules=None, layer=['1', '3'], ...",
        ),
        (lambda m: LayerLRP(m, None), "LayerLRP(Sequential, rules=None, layer=None, ..."),
        (
            lambda m: LayerFilter(m, (nn.Linear, nn.ReLU)),
            "LayerFilter(Sequential, target_types=(Linear, ReLU,))",
        ),
        (lambda m: attach_rules(m, [(["0"], GammaRule, {})]), "AttachedRules({'0': GammaRule(..."),
    ],
    ids=["options", "LRP", "layer", "layers", "every layer", "filter", "attached"],
)
def test_what_is_printed(make: Any, text: str) -> None:
    begin, dots, _ = text.partition("...")
    printed = repr(make(layers()))
    assert printed.startswith(begin) if dots else printed == text


def test_printing_reads_nothing_that_may_be_wrong() -> None:
    model = layers()
    lrp, layer = LRP(model), LayerLRP(model, model[1])
    model[0].rule = "none"
    layer.layer = nn.Tanh()
    assert "rules=None" in repr(lrp) and "layer=Tanh()" in repr(layer)
    assert isinstance(model(torch.rand(1, 3)), Tensor)
