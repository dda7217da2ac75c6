"""The example of a user's own rule and stabilizer: its formula, its contracts, its picture."""

import re
import runpy
import sys

import pytest
import torch

from captum_lrp_stab.rules.affine import Dense
from captum_lrp_stab.rules.standard import Group, Term
from captum_lrp_stab.testing import assert_rule_contract, assert_stabilizer_contract
from tests.helpers.repository import EXAMPLES

EXAMPLE = EXAMPLES / "own_rule.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_rule_is_its_formula(example: dict, with_bias: bool) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(5, 6).double(), torch.randn(3, 6).double()
    bias = torch.randn(5).double() if with_bias else None
    R = torch.randn(3, 5).double()
    op = Dense(weight, bias)
    z = op.apply(x, weight, bias)

    sizes = (x[:, None] * weight).abs()
    total = sizes.sum(2) + (bias.abs() if with_bias else 0)
    expected = (sizes / total[..., None] * R[..., None]).sum(1)

    rule = example["AbsoluteRule"](0)
    torch.testing.assert_close(rule.relevance(op, x, z, R), expected)
    torch.testing.assert_close(x * rule.coefficient(op, x, z, R / z), expected)


def test_the_contract_finds_a_wrong_rule(example: dict) -> None:
    class Wrong(example["AbsoluteRule"]):
        def groups(self, op, x):
            op.weight.mul_(1.1)  # a rule never writes to the weights
            return (Group((Term(op.weight, op.bias),)),)

    with pytest.raises(AssertionError):
        assert_rule_contract(Wrong())


def test_the_contract_finds_a_wrong_stabilizer() -> None:
    with pytest.raises(AssertionError):
        assert_stabilizer_contract(lambda z: z.sum())


def test_it_runs_and_makes_its_picture(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "keep their contracts" in printed
    assert (tmp_path / "own_rule.png").stat().st_size > 20_000
    found = re.findall(r"^(.+): score (\S+), sum of relevance (\S+)$", printed, re.MULTILINE)
    assert [name for name, _, _ in found] == ["by size", "z+", "epsilon"]
    for _, score, total in found:
        assert 0 < float(total) < float(score)  # the biases absorb the rest
