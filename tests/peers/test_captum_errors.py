"""A mistake that Captum raises an exception of its own choice for is one of that type here too.

Each is made with both. Where Captum only stumbles over a value it did not look at (an
``AttributeError`` of None, of a tuple, of a function) there is no type to keep.
"""

import pickle
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

import captum_lrp_stab
from captum_lrp_stab import errors
from captum_lrp_stab.errors import (
    InputTypeError,
    LRPError,
    ModelTypeError,
    RuleTypeError,
    TargetError,
    TargetIndexError,
    UnreachedError,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor \\d+ has a dtype of:UserWarning",
    "ignore:.*torch.jit.script",
)
X = torch.tensor([[0.5, 1.0, 0.25], [1.0, 0.125, 0.75]])
Attribution = Any  # the module captum.attr, or this package


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


class Grid(nn.Module):
    """Scores of shape (N, 2, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(len(x), 2, 4)


class Unused(nn.Module):
    """A layer that takes no part, and an output that depends on no input where it is asked for."""

    def __init__(self, is_constant: bool = False) -> None:
        super().__init__()
        self.layer, self.unused, self.is_constant = nn.Linear(3, 2), nn.Linear(3, 2), is_constant

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.ones_like(x) if self.is_constant else x)


def with_rule(rule: Any, name: str = "0") -> Callable[[Attribution], Any]:
    def construct(attribution: Attribution) -> Any:
        model = nn.Sequential(net(), nn.Linear(2, 2)) if name == "inner" else net()
        module = model[0] if name == "inner" else model.get_submodule(name)
        module.rule = rule
        return attribution.LRP(model)

    return construct


def to(target: Any, model: Callable[[], nn.Module] = net) -> Callable[[Attribution], Any]:
    return lambda attribution: attribution.LRP(model()).attribute(X.clone(), target=target)


def of(inputs: Callable[[], Any]) -> Callable[[Attribution], Any]:
    return lambda attribution: attribution.LRP(net()).attribute(inputs(), target=0)


def of_layer(make: Callable[[], tuple[nn.Module, Any]]) -> Callable[[Attribution], Any]:
    return lambda attribution: attribution.LayerLRP(*make()).attribute(X.clone(), target=0)


def unused() -> tuple[nn.Module, nn.Module]:
    model = Unused()
    return model, model.unused


MISTAKES: dict[str, tuple[Callable[[Attribution], Any], type[LRPError]]] = {
    "rule: a number": (with_rule(1), RuleTypeError),
    "rule: a name": (with_rule("epsilon"), RuleTypeError),
    "rule: the class": (with_rule(captum_rules.EpsilonRule), RuleTypeError),
    "rule: on a ReLU": (with_rule(1, "1"), RuleTypeError),
    "rule: on a module of modules": (with_rule(1, "inner"), RuleTypeError),
    "rule: on the model": (with_rule(1, ""), RuleTypeError),
    "model: the class": (lambda a: a.LRP(nn.Linear), ModelTypeError),
    "model: scripted": (to(0, lambda: torch.jit.script(net())), ModelTypeError),
    "model: scripted in part": (
        to(0, lambda: nn.Sequential(torch.jit.script(net()))),
        ModelTypeError,
    ),
    "model: constant": (to(0, lambda: Unused(is_constant=True)), UnreachedError),
    "layer: unused": (of_layer(unused), UnreachedError),
    "target: none": (to(None), TargetError),
    "target: out of range": (to(2), TargetIndexError),
    "target: out of range below": (to(-3), TargetIndexError),
    "target: a fraction": (to(1.0), TargetError),
    "target: a name": (to("cat"), TargetError),
    "target: a dict": (to({"cat": 1}), TargetError),
    "target: too few": (to([1]), TargetError),
    "target: too many": (to([1, 0, 1]), TargetError),
    "target: empty": (to([]), TargetError),
    "target: fractions": (to([1.0, 0.0]), TargetError),
    "target: names": (to(["cat", "dog"]), TargetError),
    "target: nothing for each": (to([None, None]), TargetError),
    "target: one out of range": (to([2, 0]), TargetIndexError),
    "target: ints and tuples": (to([0, (1,)]), TargetError),
    "target: a tensor of three": (to(torch.tensor([0, 1, 1])), TargetError),
    "target: a tensor of two dimensions": (to(torch.zeros(2, 2, dtype=torch.long)), TargetError),
    "target: a tensor of a fraction": (to(torch.tensor(1.0)), TargetError),
    "target: a tensor of fractions": (to(torch.tensor([0.0, 1.0])), TargetIndexError),
    "target: a tensor out of range": (to(torch.tensor([2, 1])), TargetIndexError),
    "target: one number out of range": (to(torch.tensor(2)), TargetIndexError),
    "target: more indices than dimensions": (to((0, 1)), TargetError),
    "target: fewer indices than dimensions": (to(0, Grid), TargetError),
    "target: a list of these": (to([0, 1], Grid), TargetError),
    "target: a tensor of these": (to(torch.tensor([0, 1]), Grid), TargetError),
    "target: an index out of range": (to((0, 4), Grid), TargetIndexError),
    "target: an index that is a fraction": (to((0, 1.0), Grid), TargetIndexError),
    "target: too few tuples": (to([(0, 1)], Grid), TargetError),
    "target: a tuple out of range": (to([(0, 1), (0, 4)], Grid), TargetIndexError),
    "inputs: None": (of(lambda: None), InputTypeError),
    "inputs: a number": (of(lambda: 1.0), InputTypeError),
    "inputs: a list": (of(lambda: [X.clone()]), InputTypeError),
    "inputs: an array": (of(lambda: X.numpy()), InputTypeError),
    "inputs: a tuple of arrays": (of(lambda: (X.numpy(),)), InputTypeError),
    "inputs: a tuple with None": (of(lambda: (X.clone(), None)), InputTypeError),
    "inputs: an empty tuple": (of(lambda: ()), InputTypeError),
    "inputs: whole numbers": (of(lambda: X.long()), InputTypeError),
    "inputs: a picture": (of(lambda: X.to(torch.uint8)), InputTypeError),
    "inputs: a mask": (of(lambda: X > 0.5), InputTypeError),
}
# what comes from the model, or is inherited, as it is
THE_SAME: dict[str, Callable[[Attribution], Any]] = {
    "inputs: of another shape": of(lambda: torch.rand(2, 5)),
    "inputs: of another dtype": of(lambda: X.double()),
    "inputs: too many": of(lambda: (X.clone(), X.clone())),
    "further arguments": lambda a: a.LRP(net()).attribute(X.clone(), 0, (1,)),
    "an unknown argument": lambda a: a.LRP(net()).attribute(X.clone(), 0, nothing=1),
    "futures": lambda a: a.LRP(net()).attribute_future(),
    "futures of a layer": lambda a: a.LayerLRP(net(), "0").attribute_future(),
}


def raised(mistake: Callable[[Attribution], Any], attribution: Attribution) -> Exception:
    with pytest.raises(Exception) as info:
        mistake(attribution)
    return info.value


@pytest.mark.parametrize("name", MISTAKES)
def test_the_type_is_captums_too(name: str) -> None:
    mistake, kind = MISTAKES[name]
    theirs, ours = raised(mistake, captum.attr), raised(mistake, captum_lrp_stab)
    assert isinstance(ours, type(theirs)) and isinstance(ours, LRPError)
    assert type(ours) is kind and isinstance(ours, ValueError)


@pytest.mark.parametrize("name", THE_SAME)
def test_what_is_not_ours_stays_as_it_is(name: str) -> None:
    theirs, ours = (raised(THE_SAME[name], a) for a in (captum.attr, captum_lrp_stab))
    assert type(ours) is type(theirs) and str(ours) == str(theirs)


@pytest.mark.parametrize("name", errors.__dict__)
def test_errors_survive_another_process(name: str) -> None:
    kind = getattr(errors, name)
    if isinstance(kind, type) and issubclass(kind, (LRPError, errors.LRPWarning)):
        copied = pickle.loads(pickle.dumps(kind("why")))
        assert type(copied) is kind and str(copied) == "why"


def test_what_captum_refuses_and_we_serve() -> None:
    """Each is on the migration page."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid())
    model.add_module("unused", nn.Flatten())
    with pytest.raises(TypeError):
        captum.attr.LRP(model).attribute(X.clone(), target=0)
    assert captum_lrp_stab.LRP(model, fallbacks="ignore").attribute(X, target=0).shape == X.shape
