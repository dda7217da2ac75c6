"""Bad input to ``compare`` is an error that says what to do, and nothing is left behind, ever."""

import math
import re
import sys
import threading
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from zennit.composites import EpsilonPlus

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, LayerLRP, ZeroRule, stabilizers
from captum_lrp_stab.errors import (
    InputError,
    LRPError,
    MissingExtraError,
    ModelError,
    ReferenceFailedError,
    RuleError,
    RuleMapError,
    StabilizerError,
)
from tests.helpers.compared import EPSILON, NAMED, VECTORS, asked, dense, every_named, fails, ones
from tests.helpers.networks import Residual, TwoInputs, build
from tests.helpers.random_maps import drawn
from tests.helpers.states import Trouble

PAIR = drawn(3, 4, seed=1), drawn(3, 3, seed=2)


@every_named
def test_what_the_errors_are_the_exception_to(reference) -> None:
    """The control of every test below: without the mistake there is no error."""
    assert asked(reference).verdict in ("equal", "known difference")
    assert asked().verdict == "different"


# What to compare with ---------------------------------------------------------------------------


UNKNOWN: dict[str, Any] = {
    "name": "lime",
    "nothing": None,
    "number": 3,
    "upper case": "ZENNIT",
    "class": LRP,
    "class of a composite": EpsilonPlus,
    "Captum's class": captum.attr.LRP,
    "Captum's instance": captum.attr.LRP(nn.Sequential(nn.Linear(6, 4))),
    "LayerLRP": LayerLRP(nn.Sequential(nn.Linear(6, 4)), "0"),
    "preset as a list": [(["0"], ZeroRule, {})],
    "tensor": torch.ones(3, 6),
}


@pytest.mark.parametrize("reference", UNKNOWN.values(), ids=[*UNKNOWN])
def test_unknown_references(reference) -> None:
    message = (
        rf"^reference is {re.escape(repr(reference))}; give one of zennit, captum, captum_driver, "
        r"float64, modified_forward, an LRP .*, a composite of zennit, or a function \(model, "
    )
    with pytest.raises(InputError, match=message):
        asked(reference)


def test_both_spellings_of_a_name() -> None:
    for name in ("captum_driver", "modified_forward"):
        assert asked(name).to_json() == asked(name.replace("_", "-")).to_json()


@pytest.fixture
def without_zennit(monkeypatch) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "zennit":
            monkeypatch.setitem(sys.modules, name, None)


def test_zennit_is_not_installed(without_zennit) -> None:
    with pytest.raises(MissingExtraError, match="pip install zennit") as info:
        asked("zennit")
    assert isinstance(info.value, ImportError)
    assert isinstance(info.value.__cause__, ImportError)


def test_other_references_need_no_zennit(without_zennit) -> None:
    model = dense()
    for reference in (*NAMED[1:], LRP(model, EPSILON), ones):
        assert asked(reference).verdict


# References that fail ---------------------------------------------------------------------------


def test_a_reference_that_raises() -> None:
    with pytest.raises(ReferenceFailedError, match=r"fails raised Trouble: of its own") as info:
        asked(fails)
    assert isinstance(info.value.__cause__, Trouble)
    assert isinstance(info.value, RuntimeError)


def test_a_reference_with_other_arguments() -> None:
    with pytest.raises(ReferenceFailedError, match=r"raised TypeError: .*argument") as info:
        asked(lambda model, inputs: inputs)
    assert isinstance(info.value.__cause__, TypeError)
    given: list[Any] = []

    def with_arguments(model: nn.Module, inputs: Any, target: Any, more: Any) -> Any:
        given.append(more)
        return ones(model, inputs, target)

    arguments = {"model": build(TwoInputs), "inputs": PAIR, "target": (1, 2)}
    asked(with_arguments, additional_forward_args=(0.5,), **arguments)
    assert given[0] == (0.5,)
    with pytest.raises(ReferenceFailedError, match="raised TypeError"):
        asked(ones, additional_forward_args=(0.5,), **arguments)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_no_failure(error) -> None:
    def interrupted(model: nn.Module, inputs: Any, target: Any) -> Any:
        raise error

    with pytest.raises(error):
        asked(interrupted)


def test_an_error_of_this_package_inside_a_reference() -> None:
    """It is the reference's own: the caller's target is right."""

    def out_of_range(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return LRP(model).attribute(x, target=99)

    with pytest.raises(ReferenceFailedError, match="out_of_range raised: target 99 does") as info:
        asked(out_of_range)
    assert isinstance(info.value.__cause__, InputError)


RETURNED: dict[str, tuple[Any, str]] = {
    "shape": (torch.ones(3, 5), r"gave relevance of shape \(3, 5\) .* input 0 of shape \(3, 6\)"),
    "one sample less": (torch.ones(2, 6), r"gave relevance of shape \(2, 6\) .* shape \(3, 6\)"),
    "scalar": (torch.tensor(1.0), r"gave relevance of shape \(\) "),
    "device": (torch.ones(3, 6, device="meta"), r"gave .* on meta for input 0 of shape .* on cpu"),
    "two": ((torch.ones(3, 6),) * 2, "gave 2 tensors of relevance for 1 inputs"),
    "none": ((), "gave 0 tensors of relevance for 1 inputs"),
    "nothing": (None, "returned a NoneType; it must return the relevance of the inputs, a tensor"),
    "list": ([torch.ones(3, 6)], "returned a list; it must return"),
    "array": (np.ones((3, 6)), "returned a ndarray; it must return"),
    "number": (1.0, "returned a float; it must return"),
    "layers alone": ({"0": torch.ones(3, 5)}, "returned a dict; it must return"),
    "layer without a tensor": ((torch.ones(3, 6), {"0": None}), "returned a NoneType"),
    "layer with a list": ((torch.ones(3, 6), {"0": [torch.ones(3, 5)]}), "returned a list"),
    "layer on another device": (
        (torch.ones(3, 6), {"0": torch.ones(3, 5, device="meta")}),
        "returned relevance of layer '0' of shape .* on meta; .*, on cpu",
    ),
    "sparse": (torch.ones(3, 6).to_sparse(), "returned a tensor of .*float32 and .*sparse_coo; "),
    "complex": (torch.ones(3, 6, dtype=torch.complex64), "returned a tensor of torch.complex64"),
    "integers": (torch.ones(3, 6).long(), "returned a tensor of torch.int64 .* floating point"),
}


@pytest.mark.parametrize(("value", "message"), RETURNED.values(), ids=[*RETURNED])
def test_what_a_reference_may_not_return(value, message) -> None:
    def returns(model: nn.Module, inputs: Any, target: Any) -> Any:
        return value

    with pytest.raises(InputError, match=f"^the reference returns {message}"):
        asked(returns)


def test_relevance_for_one_of_two_inputs() -> None:
    with pytest.raises(InputError, match="gave 1 tensors of relevance for 2 inputs"):
        asked(lambda *given: PAIR[0], model=build(TwoInputs), inputs=PAIR, target=(1, 2))
    swapped = r"shape \(3, 3\) .* for input 0 of shape \(3, 4\)"
    with pytest.raises(InputError, match=swapped):
        asked(lambda *given: PAIR[::-1], model=build(TwoInputs), inputs=PAIR, target=(1, 2))


def test_values_that_are_not_finite_are_no_error() -> None:
    def not_finite(model: nn.Module, x: Tensor, target: int) -> Tensor:
        return torch.full_like(x, math.nan)

    assert asked(not_finite).verdict == "reference not finite"


# What a reference cannot serve ------------------------------------------------------------------


class OfAUser(EpsilonRule):
    """A rule that zennit cannot know."""


def test_a_rule_without_a_counterpart_in_zennit() -> None:
    rules = [(["2"], OfAUser, {"epsilon": 0.1})]
    message = r"layer '2': OfAUser\(.*\) has no counterpart in zennit; compare with a callable"
    with pytest.raises(RuleError, match=message):
        asked("zennit", rules=rules)
    for reference in ("captum", "captum_driver", "float64"):
        assert asked(reference, rules=rules).verdict == "equal"


def test_a_stabilizer_without_a_counterpart_in_zennit() -> None:
    aware = stabilizers.RoundingAware()
    message = r"layer '0': .* RoundingAware\(factor=8.0\) needs the rounding error of each; "
    with pytest.raises(RuleError, match=message):
        asked("zennit", rules=[(["0"], GammaRule, {"stabilizer": aware})])
    with pytest.raises(RuleError, match=message):
        asked("zennit", stabilizer=aware)
    assert asked("captum_driver", stabilizer=aware).verdict == "equal"


def test_a_rule_of_captums_without_a_counterpart_in_zennit() -> None:
    model = dense()
    model[0].rule = captum_rules.GammaRule(0.3)
    message = r"layer '0': captum.GammaRule\(\) has no counterpart in zennit; compare with"
    with pytest.raises(RuleError, match=message):
        asked("zennit", model=model, rules=None)
    assert asked("float64", model=model, rules=None).verdict == "equal"


class Square(nn.Module):
    """What stock Captum knows nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()


@pytest.mark.parametrize("reference", ["captum", "captum_driver"])
def test_a_module_that_stock_captum_refuses(reference) -> None:
    model = nn.Sequential(dense(), Square())
    with pytest.raises(RuleMapError, match="'1' is a Square, for which stock Captum has no rule"):
        asked(reference, model=model)
    assert asked("float64", model=model).verdict == "equal"


def test_a_module_that_stock_captum_refuses_to_run_twice() -> None:
    images = drawn(2, 3, 8, 8)
    with pytest.raises(ReferenceFailedError, match=r"captum raised RuntimeError: .*more than once"):
        asked("captum", model=build(Residual), inputs=images)
    assert asked("float64", model=build(Residual), inputs=images).verdict == "equal"


@pytest.mark.parametrize("reference", ["captum", "captum_driver"])
def test_a_model_of_a_single_layer(reference) -> None:
    with pytest.raises(LRPError, match="single Linear"):
        asked(reference, model=build(lambda: nn.Linear(6, 4)))


def test_a_model_of_a_single_layer_elsewhere() -> None:
    for reference in ("zennit", "float64"):
        assert asked(reference, model=build(lambda: nn.Linear(6, 4))).verdict == "equal"


class PartlyFunctional(nn.Module):
    """A layer that is no module, between two that are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.first(x).relu(), self.weight).relu())


def test_a_functional_layer_with_a_rule_that_captum_has_too() -> None:
    rules = [(["linear_0"], GammaRule, {"gamma": 1.0})]
    assert asked("captum", model=build(PartlyFunctional), rules=rules).verdict == "different"


def test_a_model_that_cannot_be_copied() -> None:
    model = dense()
    model.lock = threading.Lock()
    message = "Sequential cannot be copied for the reference, .*: TypeError: cannot pickle"
    for reference in ("zennit", "captum", "captum_driver", "float64", ones):
        with pytest.raises(ModelError, match=message):
            asked(reference, model=model)
    # these run on the model as it is
    assert asked("modified_forward", model=model).verdict == "known difference"
    assert asked(LRP(model, EPSILON), model=model).verdict == "equal"


# What to compare --------------------------------------------------------------------------------


class Returning(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x


BAD: dict[str, tuple[dict[str, Any], type[LRPError], str]] = {
    "tolerance-negative": ({"tolerance": -1e-9}, InputError, "tolerance is -1e-09; give a number"),
    "tolerance-nan": ({"tolerance": math.nan}, InputError, "tolerance is nan; give a number >= 0"),
    "train": (
        {"model": nn.Sequential(nn.Linear(6, 4), nn.Dropout()).double()},
        ModelError,
        r"'1' \(Dropout\) in train mode .*; call model.eval\(\)",
    ),
    "model-function": ({"model": torch.relu}, ModelError, "explains a torch.nn.Module"),
    "model-tuple": ({"model": Returning()}, ModelError, "returns a tuple; .* wrap the model"),
    "input-nan": (
        {"inputs": torch.full((3, 6), math.nan).double()},
        InputError,
        r"input 0 has 18 non-finite values, the first \(nan\) at \(0, 0\); clean",
    ),
    "input-inf": ({"inputs": VECTORS / 0}, InputError, "input 0 has 18 non-finite values"),
    "input-integer": ({"inputs": VECTORS.long()}, InputError, "input 0 has dtype torch.int64"),
    "input-list": ({"inputs": [VECTORS]}, InputError, "inputs is a list; give a tensor or a tuple"),
    "input-number": ({"inputs": (VECTORS, 2)}, InputError, "input 1 is a int; give a tensor"),
    "target-missing": ({"target": None}, InputError, "target None leaves 4 values per sample"),
    "target-out-of-range": ({"target": 7}, InputError, "target 7 does not fit"),
    "target-text": ({"target": "cat"}, InputError, "target 'cat' does not fit"),
    "target-too-many": ({"target": [0, 1]}, InputError, r"target \[0, 1\] does not fit"),
    "rules-text": ({"rules": "epsilon"}, RuleMapError, "name_map is a str; give a list of"),
    "rules-name": ({"rules": [(["9"], ZeroRule, {})]}, RuleMapError, "names '9', .*are 0 ... 2"),
    "rules-value": (
        {"rules": [(["0"], GammaRule, {"gamma": -1})]},
        RuleMapError,
        r"entry 0 \(GammaRule\).*gamma is -1; give a finite number >= 0",
    ),
    "stabilizer-text": ({"stabilizer": "x"}, StabilizerError, "stabilizer is 'x'; give a number"),
    "stabilizer-negative": ({"stabilizer": -1.0}, StabilizerError, "epsilon is -1.0; give a fini"),
    "stabilizer-shape": (
        {"stabilizer": lambda z: z[:1]},
        StabilizerError,
        "it must keep shape, dtype and device",
    ),
    "attention": ({"attention": "lrp"}, RuleError, "attention is 'lrp'; give 'attnlrp' or 'cp'"),
    "form": ({"form": "forward"}, InputError, "no form has the name 'forward'; give gradient, "),
}


@pytest.mark.parametrize("reference", ["zennit", "captum", "float64", ones])
@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=[*BAD])
def test_bad_arguments(changes, error, message, reference) -> None:
    with pytest.raises(error, match=message):
        asked(reference, **changes)


@pytest.mark.parametrize("value", ["0.1", b"1", True, [0.1], torch.ones(2)], ids=repr)
def test_a_tolerance_that_is_no_number(value) -> None:
    with pytest.raises(InputError, match=rf"^tolerance is {re.escape(repr(value))}; give a number"):
        asked(tolerance=value)


@pytest.mark.parametrize("reference", ["zennit", "float64", ones])
def test_a_batch_of_no_samples_is_no_mistake(reference) -> None:
    comparison = asked(reference, inputs=VECTORS[:0])
    assert comparison.verdict == "equal"
    assert comparison.scores == ()
    assert comparison.relevances[0].shape == (0, 6)


@pytest.mark.parametrize("value", [0.0, 1, torch.tensor(1e-3)], ids=repr)
def test_every_other_tolerance_is_one(value) -> None:
    assert asked("float64", tolerance=value).verdict == "equal"


def test_nonfinite_parameters_are_told_by_the_result() -> None:
    """They are no error: what they do to each side is what is compared."""
    model = dense()
    model[0].weight.data[0, 0] = math.nan
    comparison = asked("float64", model=model)
    assert comparison.verdict == "reference not finite"
    assert (comparison.overall.nonfinite, comparison.overall.reference_nonfinite) == (18, 18)
