"""The few passes of ``lean`` against the formulas of ``kernel``: the same, wherever they serve."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_lrp_stab import stabilizers
from captum_lrp_stab.dispatch.layer_use import Turn
from captum_lrp_stab.fast import coefficients
from captum_lrp_stab.fast.factor_cache import Memo
from captum_lrp_stab.rules import affine_builders
from captum_lrp_stab.tensors import blocks
from captum_lrp_stab.tensors.blocks import Buffer
from tests.helpers import short_ways as ways
from tests.helpers.layers import LAYERS, RULES, seeded
from tests.helpers.short_ways import distance

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


def compared(
    rule: Any, op: Any, x: Tensor, after: str = "", memo: Memo | None = None, scale: float = 1.0
) -> tuple[Tensor | None, Tensor]:
    """What ``lean`` and what the kernel make of one layer, with all that can be known of it.

    Args:
        rule: The rule.
        op: The layer.
        x: Its input.
        after: Whether a ReLU has ``cut`` the coefficient, or ``rectified`` the output as well.
        memo: Of an earlier pass.
        scale: Of the coefficient.
    """
    z = op.apply(x, op.weight, op.bias)
    c = torch.randn(z.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    c = (c * scale).to(z)
    if after:
        c = c * (z > 0)
    with torch.no_grad():
        expected = rule.coefficient(op, x, z, c)
        known = coefficients.Known(bool((x >= 0).all()), bool(after), after == "rectified")
        given_z = z.relu() if known.rectified else z
        given = x, given_z, c, op.weight
        before = [t.clone() for t in given]
        buffer = Buffer()
        found = coefficients.coefficient(
            rule, op, x, given_z, c, known, coefficients.Tools(buffer, memo)
        )
        if found is not None:
            buffer.like(z).fill_(torch.nan)  # what is handed on must not lie there
    assert all(map(torch.equal, given, before))
    return found, expected


@pytest.mark.parametrize("name", [*LAYERS, *EXTRA])
def test_a_layer_under_every_rule_and_stabilizer(name) -> None:
    assert_as_the_kernel(name, INPUTS)


@pytest.mark.parametrize("name", ["linear", "conv2d", "batch_norm3d", "pointwise"])
def test_a_layer_in_blocks(name, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "_SIZE", 7)
    assert_as_the_kernel(name, INPUTS[:2])


def assert_as_the_kernel(name: str, inputs: Sequence[str]) -> None:
    """Assert that each rule and stabilizer that is served is so with the kernel's result."""
    layer, shape = layer_of(name, torch.float64)
    served = 0
    for stabilizer in ("number", "identity", "clip", "mean square", "additive"):
        for rule_name, pair in RULES.items():
            rule = pair.rule(stabilizer=ways.STABILIZERS[stabilizer])
            for kind in inputs if stabilizer == "number" else inputs[:1]:
                x = input_of(kind, shape, torch.float64)
                op = affine_builders.of_module(layer, x)
                several = stabilizer in ("number", "clip") and kind in INPUTS[:2]
                known = ("", "cut", "rectified") if several else ("",)
                for after in known if rule.is_elementwise else known[:1]:
                    found, expected = compared(rule, op, x, after)
                    if found is None:
                        continue
                    served += 1
                    what = rule_name, stabilizer, kind, after
                    assert found.shape == expected.shape, what
                    if rule.proportional:  # where x is 0 its coefficient says nothing
                        found, expected = found * x, expected * x
                    assert distance(found, expected) <= 1e-13, what
    assert served > 20


@pytest.mark.parametrize("after", ["", "rectified"])
@pytest.mark.parametrize("several", [False, True], ids=["one rule", "two rules"])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_what_a_memo_keeps_serves_again(name, several, after) -> None:
    layer, shape = layer_of(name, torch.float64)
    kept = set()
    for rule_name, pair in RULES.items():
        rule, other = (pair.rule(stabilizer=s) for s in (0.1, stabilizers.Clip(0.2)))
        memo = Memo((rule, other) if several else (rule,), Turn())
        for kind in INPUTS[:2]:
            x = input_of(kind, shape, torch.float64)
            op = affine_builders.of_module(layer, x)
            memo.kept.clear()
            for one in (rule, rule, other) if several else (rule, rule):
                found, expected = compared(one, op, x, after, memo)
                kept.update((rule_name,) if memo.kept else ())
                if found is not None:
                    weight = x if one.proportional else 1
                    assert distance(found * weight, expected * weight) <= 1e-13, (rule_name, kind)
    assert {"gamma", "alpha2-beta1", "z_plus"} <= kept
    assert ("epsilon" in kept) != several  # its denominators are z, its factors are not


def test_rules_that_are_left_to_the_kernel() -> None:
    layer, shape = layer_of("conv2d", torch.float64)
    x = input_of("mixed", shape, torch.float64)
    op = affine_builders.of_module(layer, x)
    for rule_name in ("gamma", "alpha2-beta1", "z_box"):
        for stabilizer in ("rounding", "callable", "subclass"):
            rule = RULES[rule_name].rule(stabilizer=ways.STABILIZERS[stabilizer])
            assert compared(rule, op, x)[0] is None


@pytest.mark.parametrize("name", [*LAYERS, *EXTRA])
def test_a_layer_in_single_precision_is_as_near_to_double(name) -> None:
    layer, shape = layer_of(name, torch.float64)
    for stabilizer in ("number", "additive"):
        for rule_name, pair in RULES.items():
            rule = pair.rule(stabilizer=ways.STABILIZERS[stabilizer])
            x = input_of("mixed", shape, torch.float64)
            _, exact = compared(rule, affine_builders.of_module(layer.double(), x), x)
            single = x.float()
            found, expected = compared(
                rule, affine_builders.of_module(layer.float(), single), single
            )
            if found is not None:  # near a pole of z + 0.1 both are rounded
                bound = max(1e-6, 4 * distance(expected, exact))
                assert distance(found, exact) <= bound, (rule_name, stabilizer)


@pytest.mark.parametrize("size", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("rule", ["gamma", "alpha2-beta1", "epsilon"])
def test_small_coefficients_of_large_values_in_half_precision(rule, size) -> None:
    """The coefficient over the denominator would be below what float16 has."""
    g = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=g) for shape in ((8, 64), (32, 64)))
    x, w = (x * size).half(), (w / 8).half()
    rule = RULES[rule].rule(stabilizer=1e-3)
    ops = {
        t: affine_builders.BUILDERS[F.linear](x.to(t), w.to(t))
        for t in (torch.float16, torch.double)
    }
    exact = compared(rule, ops[torch.double], x.double(), scale=1e-4)[1]
    found, expected = compared(rule, ops[torch.float16], x, scale=1e-4)
    assert distance(found, exact) <= 2 * distance(expected, exact) <= 1e-2


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
    op = affine_builders.BUILDERS[F.linear](x, w, torch.randn(outputs, generator=g).double())
    rule = RULES[rule].rule(stabilizer=ways.STABILIZERS[stabilizer])
    found, expected = compared(rule, op, x)
    if found is not None and expected.isfinite().all():
        scale = 1 + float(expected.abs().max())
        weight = x if rule.proportional else torch.ones_like(x)
        assert ((found - expected) * weight).abs().max() <= 1e-11 * scale
