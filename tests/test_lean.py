"""The few passes of ``lean`` against the formulas of ``kernel``: the same, wherever they serve."""

from typing import Any

import pytest
import short_ways as ways
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import LAYERS, RULES, seeded
from short_ways import distance
from torch import Tensor, nn

from captum_lrp_stab import (
    describe,
    lean,
)
from captum_lrp_stab.blocks import Buffer

EXTRA = {
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (4, 5, 5)),
    "strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 7, 6)),
    "pointwise": (lambda: nn.Conv2d(3, 5, 1), (3, 4, 4)),
}
INPUTS = ("mixed", "not negative", "zeros among them", "all zero", "not positive", "one sample")


def layer_of(name: str, dtype: torch.dtype) -> tuple[nn.Module, tuple[int, ...]]:
    if name in EXTRA:
        make, shape = EXTRA[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make().eval().to(dtype), shape
    return seeded(name, dtype)


def input_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = x.clamp(-2.9, 2.9)  # inside the box of the zB rule
    if kind == "not negative":
        x = x.abs()
    elif kind == "zeros among them":
        x = x.relu()
        x[1] = 0
    elif kind == "all zero":
        x = torch.zeros_like(x)
    elif kind == "not positive":
        x = -x.abs()
    elif kind == "one sample":
        x = x[:1]
    return x.to(dtype)


def compared(rule: Any, op: Any, x: Tensor, rectify: bool = False) -> tuple[Tensor | None, Tensor]:
    """What ``lean`` and what the kernel make of one layer, with all that can be known of it."""
    z = op.apply(x, op.weight, op.bias)
    c = torch.randn(z.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(z)
    if rectify:
        c = c * (z > 0)
    with torch.no_grad():
        expected = rule.coefficient(op, x, z, c)
        known = lean.Known(bool((x >= 0).all()), rectify)
        given_z, before = z.relu() if rectify else z, (x.clone(), c.clone())
        buffer = Buffer()
        found = lean.coefficient(rule, op, x, given_z, c, known, buffer)
        if found is not None:
            buffer.like(z).fill_(torch.nan)  # what is handed on must not lie there
    assert torch.equal(x, before[0]) and torch.equal(c, before[1])
    return found, expected


@pytest.mark.parametrize("name", [*LAYERS, *EXTRA])
def test_a_layer_under_every_rule_and_stabilizer(name, block) -> None:
    layer, shape = layer_of(name, torch.float64)
    served = 0
    for stabilizer in ("number", "identity", "clip", "rounding", "mean square", "additive"):
        for rule_name, pair in RULES.items():
            rule = pair.rule(stabilizer=ways.STABILIZERS[stabilizer])
            for kind in INPUTS if stabilizer == "number" and not block else INPUTS[:1]:
                x = input_of(kind, shape, torch.float64)
                op = describe.of_module(layer, x)
                for rectify in (False, True) if rule.is_elementwise else (False,):
                    found, expected = compared(rule, op, x, rectify)
                    if found is None:
                        continue
                    served += 1
                    what = rule_name, stabilizer, kind, rectify
                    assert found.shape == expected.shape, what
                    if not found.isfinite().all():
                        assert stabilizer == "rounding", what  # done again, by the kernel
                        continue
                    if rule.proportional:  # where x is 0 its coefficient says nothing
                        found, expected = found * x, expected * x
                    assert distance(found, expected) <= 1e-13, what
    assert served > 20


@pytest.mark.parametrize("name", [*LAYERS, *EXTRA])
def test_a_layer_in_single_precision_is_as_near_to_double(name) -> None:
    layer, shape = layer_of(name, torch.float64)
    for stabilizer in ("number", "clip", "additive"):
        for rule_name, pair in RULES.items():
            rule = pair.rule(stabilizer=ways.STABILIZERS[stabilizer])
            x = input_of("mixed", shape, torch.float64)
            _, exact = compared(rule, describe.of_module(layer.double(), x), x)
            single = x.float()
            found, expected = compared(rule, describe.of_module(layer.float(), single), single)
            if found is not None:  # near a pole of z + 0.1 both are rounded
                bound = max(1e-6, 4 * distance(expected, exact))
                assert distance(found, exact) <= bound, (rule_name, stabilizer)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rule=st.sampled_from(sorted(set(RULES) - {"w_square", "flat"})),
    stabilizer=st.sampled_from(["number", "0", "clip", "rounding"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    zeros=st.floats(0, 1),
    sign=st.sampled_from([-1, 0, 1]),
)
def test_any_dense_layer(seed, rule, stabilizer, shape, zeros, sign) -> None:
    """Property: the relevance of the layer's input is the same, however it is computed."""
    n, inputs, outputs = shape
    g = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(s, generator=g).double() for s in ((n, inputs), (outputs, inputs)))
    x = (x.abs() * sign if sign else x).clamp(-2.9, 3.4) * (
        torch.rand(x.shape, generator=g) > zeros
    )
    op = describe.BUILDERS[F.linear](x, w, torch.randn(outputs, generator=g).double())
    rule = RULES[rule].rule(stabilizer=ways.STABILIZERS[stabilizer])
    found, expected = compared(rule, op, x)
    if found is not None and expected.isfinite().all():
        scale = 1 + float(expected.abs().max())
        weight = x if rule.proportional else torch.ones_like(x)
        assert ((found - expected) * weight).abs().max() <= 1e-11 * scale
