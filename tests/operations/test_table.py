"""The table of operations: each name is one of torch's, and each has one way to propagate."""

import warnings
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import get_overridable_functions

from captum_lrp_stab.dispatch import homogeneous, max_pools, treatments, without_rule
from captum_lrp_stab.operations import activations, gates
from captum_lrp_stab.operations.table import KINDS, Kind, canonical_name, kind_of, names_of
from captum_lrp_stab.rules import contractions, sums

WAYS = [
    field.name for field in fields(Kind)[1 : [field.name for field in fields(Kind)].index("fact")]
]


def test_each_operation_is_propagated_through_in_one_way() -> None:
    for kind in KINDS.values():
        ways = [way for way in WAYS if getattr(kind, way)]
        assert len(ways) <= 1, (kind.name, ways)


def test_each_name_is_that_of_a_function() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        overridable = [f for fs in get_overridable_functions().values() for f in fs]
    functions = [f for f in overridable if getattr(f, "__self__", None).__class__ is not property]
    known = {canonical_name(f) for f in functions}
    spaces = (Tensor, torch, F, torch._C._nn, torch.ops.aten, torch.ops.torchvision)
    known |= {name.strip("_") for space in spaces for name in dir(space)}
    assert names_of(*WAYS) - known <= {"sparse_mm"}  # of torch.sparse


@pytest.mark.parametrize("way", [way for way in WAYS if way != "normalises"])
def test_each_way_has_a_treatment(way: str) -> None:
    assert treatments._BY_TRAIT[way]
    assert treatments._BY_TRAIT.keys() <= set(WAYS)


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("activation", activations.SLOPES),
        ("linear_in_one", without_rule.LINEAR_IN_ONE),
        ("reduces", without_rule._REDUCTION),
        ("saturates", gates._BOUNDS),
        ("contracts", contractions._READERS),
    ],
)
def test_what_else_is_said_of_an_operation_is_said_of_all_of_its_kind(trait, values) -> None:
    assert values.keys() == names_of(trait)


def test_what_is_said_of_some_is_said_of_the_right_ones() -> None:
    assert homogeneous._ORDER.keys() <= names_of("homogeneous")
    assert max_pools.POOLS.keys() <= names_of("selects")
    assert names_of("product", "quotient") & sums.NAMES <= names_of("scales")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        (torch.Tensor.__iadd__, "add"),
        (torch.Tensor.__radd__, "add"),
        (torch.Tensor.__rsub__, "rsub"),
        (torch.relu_, "relu"),
        (torch.ops.aten.add.Tensor, "add"),
        (torch.special.expit, "expit"),
        (torch.linalg.vector_norm, "vector_norm"),
        (torch.ops.aten.view_copy.default, "view"),
        (torch.Tensor.T.__get__, "T"),
    ],
)
def test_every_spelling_is_one_operation(spelling, name: str) -> None:
    assert canonical_name(spelling) == name and kind_of(spelling) is KINDS[name]


def test_of_a_function_made_in_a_call_nothing_is_kept() -> None:
    x = torch.ones(1)

    def relu(t: Tensor) -> Tensor:
        return t * x

    assert kind_of(relu) is KINDS["relu"]
    assert kind_of(lambda t: t * x).name == "<lambda>"
