"""Which of several layers, neurons and samples is named as the origin, and what it sees."""

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import EpsilonRule, ZeroRule, diagnose
from tests.helpers.locating import BAD, FUNCTIONS, GOOD, ONES, Between, linear, origin_of, two, zero

# which of several ---------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two residual branches, the upper one c, the lower one b."""

    def __init__(self, b: nn.Module, c: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = linear([1.0, 0.0], [0.0, 1.0]), b, c
        self.d = linear([1.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(x)
        return self.d(x + self.c(x))


def test_the_first_in_the_backward_direction() -> None:
    names = zero("a", "b", "c", "d")
    # what c gets is (1, 3) after b's branch, or (4, 3) behind the good one
    both = Branches(linear(*BAD), linear([3.0, -1.0], [1.0, 1.0])).eval()
    for form, first in (("relevance", "c"), ("modified-forward", "b")):
        assert origin_of(diagnose(both, ONES, 0, names, form=form)).name == first
    lower = Branches(linear(*BAD), linear(*GOOD)).eval()
    for form in ("relevance", "modified-forward"):
        assert origin_of(diagnose(lower, ONES, 0, names, form=form)).name == "b"
    rules = [(["a", "b", "d"], ZeroRule, {}), (["c"], EpsilonRule, {})]
    assert origin_of(diagnose(both, ONES, 0, rules, form="relevance")).name == "b"
    rules = [(["a", "d"], ZeroRule, {}), (["b", "c"], EpsilonRule, {})]
    assert diagnose(both, ONES, 0, rules, form="relevance").verdict == "stable"


def test_the_forward_pass_comes_first() -> None:
    """Of an overflow below and a division by 0 above, the overflow is the first."""
    model = nn.Sequential(
        linear([6e4, 6e4], [1.0, 1.0]), nn.Hardtanh(-2, 2), linear([1.0, -1.0]), nn.Flatten()
    )
    model = model.half().eval()
    rules = zero("0", "2")
    found = diagnose(model, ONES.half(), 0, rules, form="relevance")
    assert origin_of(found).name == "0" and origin_of(found).direction == "forward"


def test_the_sample_that_is_bad_is_named() -> None:
    model = two([1.0, -1.0], [1.0, 1.0])
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    found = diagnose(model, x, 0, zero("0", "1"), form="relevance")
    origin = origin_of(found)
    assert origin.neuron.index == (2, 0) and origin.input.index == (2, 0)
    assert origin.count == 2
    assert "(2, 0)" in found.explanation()
    assert found.relevances[0].isfinite().all(1).tolist() == [True, True, False, True]


def test_a_layer_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = linear([1.0, -1.0], [2.0, 0.0]), linear([1.0, 1.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(self.a(x)))

    # (3, 1) -> (2, 6) -> (-4, 4); (3, 3) -> (0, 6) -> (-6, 0): z is 0 in the first use
    model = Twice().eval()
    origin = origin_of(
        diagnose(model, torch.tensor([[3.0, 3.0]]), 0, zero("a", "c"), form="relevance")
    )
    # the second use has an output of 0 too, and is the first in the backward direction
    assert (origin.name, origin.layer, origin.use, origin.neuron.index) == ("a[1]", "a", 1, (0, 1))
    # (5, 3) -> (2, 10) -> (-8, 4) is fine
    fine = torch.tensor([[5.0, 3.0]])
    assert diagnose(model, fine, 0, zero("a", "c"), form="relevance").verdict == "stable"


# operations without a rule ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_without_a_rule(name) -> None:
    function, position = FUNCTIONS[name]
    model, x = Between(function).eval(), torch.tensor([[1.0, 2.0]])
    found = diagnose(model, x, 0, zero("a", "c"))
    origin = origin_of(found)
    assert found.verdict == "not finite"
    if name == "exp_0":
        assert origin.name == "exp_0" and origin.neuron.index == (0, 1)
    assert (origin.name, origin.direction, origin.count) == (name, "forward", 1)
    assert origin.neuron.index == (0, position)
    assert origin.stabilizer == ""
    assert found.sees == ("features 0 to 1",)
    assert found.dtype_is_cause is (name in ("exp_0", "mul_0"))


@pytest.mark.parametrize("name", ["log_0", "sqrt_0", "div_0"])
def test_what_is_undefined_is_no_overflow(name) -> None:
    """The logarithm of 0, the root of -1 and 3 / 0 are so in every dtype."""
    model = Between(FUNCTIONS[name][0]).eval()
    found = diagnose(model, torch.tensor([[1.0, 2.0]]), 0, zero("a", "c"))
    assert found.dtype_is_cause is False
    assert "leave the range" not in found.cause.what
    assert "wider dtype" not in found.cause.remedy


def test_an_activation_that_overflows() -> None:
    """x^2 hands relevance on as it is; its output is where infinity comes from."""
    model = Between(torch.square).eval()
    found = diagnose(model, torch.tensor([[1e25, 1.0]]), 0, zero("a", "c"))
    origin = origin_of(found)
    assert (origin.name, origin.direction) == ("square_0", "forward")


def test_what_reads_an_overflow_has_none_of_its_own() -> None:
    model = Between(lambda h: torch.exp(h * 20).mul(2)).eval()
    found = diagnose(model, torch.tensor([[1.0, 2.0]]), 0, zero("a", "c"))
    overflows = {record.name: record.overflow for record in found.layers}
    assert overflows["exp_0"] == 1 and overflows["mul_1"] == overflows["c"] == 0


def test_an_infinite_derivative() -> None:
    """The arc cosine of 1: its derivative is infinite, and what is below gets infinity times 3."""
    model = Between(lambda h: ((h - 2) * torch.tensor([1.0, 0.0])).acos()).eval()
    found = diagnose(model, torch.tensor([[1.0, 2.0]]), 0, zero("a", "c"))
    origin = origin_of(found)
    assert origin.direction == "backward" and origin.name in ("acos_0", "mul_0")
    assert origin.input.index == (0, 0)
    # the neuron that is shown is the one whose relevance is infinite, not the largest of the rest
    assert origin.neuron is None or origin.neuron.index == (0, 0)


# the part of the input ---------------------------------------------------------------------------


def test_the_receptive_field_in_words() -> None:
    conv, second = nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 1, 3, bias=False)
    conv.weight.data.fill_(0.1)
    second.weight.data.fill_(0.5)
    model = nn.Sequential(conv, second, nn.Flatten()).eval()
    x = torch.ones(2, 1, 9, 8)
    x[1, 0, 2:5, 3:6] = torch.tensor([[1.0, -1, 1], [-1, 0, -1], [1, -1, 1]])  # sums to 0
    found = diagnose(model, x, 2, [(["0", "1"], ZeroRule, {})], form="relevance")
    origin = origin_of(found)
    assert origin.name == "0" and origin.neuron.index[0] == 1 and origin.neuron.index[2:] == (2, 3)
    assert found.sees == ("rows 2 to 4, columns 3 to 5",)
    assert f"it sees {found.sees[0]}" in str(found)


def test_what_each_of_two_inputs_has_to_do_with_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = linear(*BAD), linear(*GOOD), linear([1.0, 1.0])

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(y))

    found = diagnose(Pair().eval(), (ONES, ONES), 0, zero("a", "b", "c"), form="relevance")
    assert origin_of(found).name == "a"
    assert found.sees == ("features 0 to 1", "nothing")
