"""Grids of epsilons, and which stabilizers they give."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_lrp_stab.errors import InputError, StabilizerError
from captum_lrp_stab.study.grid import combine, epsilons, parted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-9:1e-1:9", "1e-9 1e-8 1e-7 1e-6 1e-5 1e-4 1e-3 0.01 0.1".split()),
        ("1e-6:1:2", ["1e-6", "1"]),
        ("1:100:3", ["1", "10", "100"]),
        ("0.1:1:3", ["0.1", "0.316228", "1"]),
        ("0.1", ["0.1"]),
        ("1e-3,1e-1, 1e-3", ["1e-3", "0.1"]),
        ("0.12345678", ["0.12345678"]),
        ("1.5e-07, 100, 25000, 1.23456789e-30", ["1.5e-7", "100", "25000", "1.23456789e-30"]),
        ("1e10:1e12:3", ["1e10", "1e11", "1e12"]),
    ],
)
def test_grids(text: str, expected: list[str]) -> None:
    assert epsilons(text) == expected


@given(
    st.floats(1e-30, 1e3),
    st.floats(1.01, 1e20),
    st.integers(2, 50),
)
def test_a_grid_has_both_ends_and_equal_ratios(low: float, ratio: float, count: int) -> None:
    high = low * ratio
    try:
        found = [float(value) for value in epsilons(f"{low!r}:{high!r}:{count}")]
    except InputError as error:
        assert "too close together" in str(error)
        assert ratio ** (1 / (count - 1)) < 1.00001
        return
    assert (found[0], found[-1], len(found)) == (low, high, count)
    assert found == sorted(set(found))
    step = math.log(ratio) / (count - 1)
    for a, b in pairwise(found):
        assert math.log(b / a) == pytest.approx(step, abs=2.1e-5)


@given(st.text("0123456789.:,e-+ naif", max_size=16))
def test_any_text_is_a_grid_or_a_clear_error(text: str) -> None:
    try:
        found = epsilons(text)
    except InputError as error:
        assert repr(text) in str(error)
    else:
        assert found and all(0 < float(value) < math.inf for value in found)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "'' is not a number"),
        ("1e-9:1e-1", "has 2 parts"),
        ("1:2:3:4", "has 4 parts"),
        ("1e-1:1e-9:9", "give the smaller one first"),
        ("1:1:2", "give the smaller one first"),
        ("0:1:3", "0 is not a positive number"),
        ("-1", "-1 is not a positive number"),
        ("nan:1:3", "nan is not a positive number"),
        ("1:inf:3", "inf is not a positive number"),
        ("1:2:1", "asks for 1 numbers"),
        ("1:2:1000000", "give 2 to 1000"),
        ("1:2:2.5", "'2.5' is no number of epsilons"),
        ("1:1.0000001:9", "too close together"),
        ("a,b", "'a' is not a number"),
        ("0.1,,1", "'' is not a number"),
    ],
)
def test_wrong_grids(text: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        epsilons(text)
    assert part in str(caught.value)


def test_names_with_an_epsilon_of_their_own_are_run_once() -> None:
    grid = epsilons("1e-3:1e-1:3")
    names = ["clip:0.5", "none", "signed", "rounding"]
    assert combine(names, grid) == [
        *("clip:0.5", "none"),
        *("signed:1e-3", "signed:0.01", "signed:0.1"),
        "rounding:8",
    ]


def test_equal_stabilizers_are_run_once() -> None:
    assert combine(["signed:0.1", "signed", "signed:1e-1"], ["0.1", "1"]) == [
        "signed:0.1",
        "signed:1",
    ]
    assert combine(["signed", "signed:1e-6", "none", "none"]) == ["signed:1e-6", "none"]


def test_a_grid_for_nobody_and_unknown_names() -> None:
    with pytest.raises(InputError, match="every stabilizer has one of its own or takes none"):
        combine(["none", "signed:0.1"], ["0.1"])
    with pytest.raises(StabilizerError, match=r"'sined' has no known name.*did you mean signed"):
        combine(["sined"], ["0.1"])


def test_parts_of_a_name() -> None:
    assert [parted(n) for n in ("signed:0.1", "none", "rounding:8")] == [
        ("signed", 0.1),
        ("none", None),
        ("rounding", None),
    ]
