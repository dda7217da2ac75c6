"""Every form of target, with numbers of numpy in place of Python's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, compare, diagnose, visualize
from captum_lrp_stab.errors import InputError, TargetError, TargetIndexError
from captum_lrp_stab.propagation.targets import in_captums_form
from tests.helpers.networks import build

X = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Grid(nn.Module):
    """Scores of shape (N, 2, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).unflatten(1, (2, 5))


def flat() -> nn.Module:
    return build(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))


def grid() -> nn.Module:
    return build(Grid)


read_only = np.array([3, 0, 2])
read_only.flags.writeable = False
TUPLES = [(1, 3), (0, 0), (1, 1)]
# a network, what is given, and the form of Captum's that it means
FORMS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "int64": (flat, np.int64(3), 3),
    "uint8": (flat, np.uint8(3), 3),
    "negative": (flat, np.int32(-2), -2),
    "array of no dimension": (flat, np.array(3), 3),
    "array of one": (flat, np.array([3]), torch.tensor([3])),
    "array": (flat, np.array([3, 0, 2]), torch.tensor([3, 0, 2])),
    "array of int32": (flat, np.array([3, 0, 2], dtype=np.int32), torch.tensor([3, 0, 2])),
    "array run backwards": (flat, np.array([2, 0, 3])[::-1], torch.tensor([3, 0, 2])),
    "array in steps": (flat, np.arange(5)[::2], torch.tensor([0, 2, 4])),
    "array read only": (flat, read_only, torch.tensor([3, 0, 2])),
    "argmax": (flat, np.array([[0, 9, 1], [9, 0, 1], [0, 1, 9]]).argmax(1), [1, 0, 2]),
    "list of int64": (flat, [np.int64(3), np.int64(0), np.int64(2)], [3, 0, 2]),
    "list of an array": (flat, list(np.array([3, 0, 2])), [3, 0, 2]),
    "list of several kinds": (flat, [np.int64(3), 0, np.uint8(2)], [3, 0, 2]),
    "list of arrays of no dimension": (flat, [np.array(3), np.array(0), np.array(2)], [3, 0, 2]),
    "list of a tensor": (flat, list(torch.tensor([3, 0, 2])), [3, 0, 2]),
    "list of tuples of one": (flat, [(np.int64(3),), (0,), (np.int64(2),)], [(3,), (0,), (2,)]),
    "tuple": (grid, (np.int64(1), np.int64(3)), (1, 3)),
    "tuple of several kinds": (grid, (1, np.array(3)), (1, 3)),
    "list of tuples": (grid, [(np.int64(1), 3), (0, np.int64(0)), (1, 1)], TUPLES),
    "list of rows": (grid, list(np.array(TUPLES)), TUPLES),
    "list of rows of a tensor": (grid, list(torch.tensor(TUPLES)), TUPLES),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_as_with_pythons_numbers(name: str) -> None:
    make, given, meant = FORMS[name]
    lrp = LRP(make())
    expected = lrp.attribute(X, target=meant)
    relevance, delta = lrp.attribute(X, target=given, return_convergence_delta=True)
    assert torch.equal(relevance, expected) and delta.shape == (3,)
    (many,) = lrp.attribute_many(X, [given])
    torch.testing.assert_close(many, expected)
    in_pieces = lrp.attribute(X, target=given, internal_batch_size=2)
    torch.testing.assert_close(in_pieces, expected)
    layer = LayerLRP(lrp.model, "first" if make is grid else "0")
    assert torch.equal(layer.attribute(X, target=given), layer.attribute(X, target=meant))


@pytest.mark.parametrize("name", FORMS)
def test_a_target_is_left_as_it_is(name: str) -> None:
    make, given, _ = FORMS[name]
    before = repr(given)
    LRP(make()).attribute(X, target=given)
    assert repr(given) == before
    changed = in_captums_form(given)
    if isinstance(changed, Tensor):
        changed.add_(1)
    assert repr(given) == before


def test_several_targets_as_an_array() -> None:
    lrp = LRP(flat())
    found = lrp.attribute_many(X, np.array([3, 0]))
    assert len(found) == 2
    torch.testing.assert_close(found[0], lrp.attribute(X, target=3))
    torch.testing.assert_close(found[1], lrp.attribute(X, target=0))


@pytest.mark.parametrize("reference", ["zennit", "captum", "captum_driver", "float64"])
@pytest.mark.parametrize(
    "target", [np.int64(3), np.array([3, 0, 2]), [np.int64(3), np.int64(0), np.int64(2)]], ids=str
)
def test_comparisons(target: Any, reference: str) -> None:
    assert compare(flat(), X, target, None, reference).verdict == "equal"


def test_diagnosis_and_figures() -> None:
    model = flat()
    assert diagnose(model, X, np.array([3, 0, 2])).verdict == "stable"
    conv = build(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()))
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    shown = [
        visualize.rules_by_stabilizers(conv, x, target, {"epsilon": None}, {"clip": 1e-3})
        for target in (np.array([1, 2]), [1, 2])
    ]
    titles = [[axes.get_title() for axes in figure.axes] for figure in shown]
    assert titles[0] == titles[1]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (np.int64(5), TargetIndexError),
        (np.array([5, 0, 0]), TargetIndexError),
        ([np.int64(5), 0, 0], TargetIndexError),
        (np.float64(1), TargetError),
        (np.array([3, 0]), TargetError),
        (np.zeros((3, 2), int), TargetError),
        ([np.float64(1), 0, 0], TargetError),
        ([[1], [0], [2]], TargetError),
        ([torch.tensor(1.0), 0, 0], TargetError),
    ],
    ids=str,
)
def test_what_does_not_fit(target: Any, kind: type[InputError]) -> None:
    with pytest.raises(kind, match=r"(?s)target .* does not fit the model's output of shape"):
        LRP(flat()).attribute(X, target=target)


@pytest.mark.parametrize("size", [None, 2], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    "target",
    [
        np.array([1.0, 0.0, 2.0]),
        np.array([True, False, True]),
        np.array(["cat", "dog", "cat"]),
        np.array([None, 1, 2]),
    ],
    ids=str,
)
def test_arrays_without_whole_numbers(target: Any, size: int | None) -> None:
    with pytest.raises(TargetError, match=r"target array\(.* has dtype .*; give whole numbers"):
        LRP(flat()).attribute(X, target=target, internal_batch_size=size)
