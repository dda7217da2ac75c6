"""The stabilizers: worked examples, laws, every dtype, and any callable in their place."""

import math
from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zennit.core import Stabilizer as ZennitStabilizer

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, ZPlusRule
from captum_lrp_stab.errors import StabilizerError, StabilizerWarning
from captum_lrp_stab.rules.base import Rule
from captum_lrp_stab.stabilizers import (
    Additive,
    Clip,
    Identity,
    RootMeanSquare,
    RoundingAware,
    Signed,
    StabilizerLike,
    ensure,
)

Z = [-0.1, 5.0, -5.0, -10.0]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WITHOUT_A_LAYER = [
    *(Signed(0.1), Signed(0.1, relative=True), RootMeanSquare(0.1), Additive(0.1), Clip(0.1)),
    Identity(),
]
ALL = [*WITHOUT_A_LAYER, RoundingAware()]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SCALED = [Signed, Additive, Clip]


# Worked examples

EXAMPLES = [
    (Signed(0.1), [-0.2, 5.1, -5.1, -10.1]),
    (RootMeanSquare(0.1, per_sample=False), [0.5124, 5.6124, -4.3876, -9.3876]),
    (Additive(0.1), [0.0, 5.1, -4.9, -9.9]),
    (Clip(0.5), [-0.5, 5.0, -5.0, -10.0]),
    (Clip(0.1), [-0.1, 5.0, -5.0, -10.0]),
    (Identity(), [-0.1, 5.0, -5.0, -10.0]),
]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("stabilizer", "expected"), EXAMPLES, ids=repr)
def test_worked_example(stabilizer, expected, dtype) -> None:
    for shape in ((4,), (1, 4), (1, 2, 2)):
        s = stabilizer(torch.tensor(Z, dtype=dtype).reshape(shape))
        assert (s.dtype, tuple(s.shape)) == (dtype, shape)
        torch.testing.assert_close(
            s.flatten(), torch.tensor(expected, dtype=dtype), rtol=0, atol=5e-5
        )


@pytest.mark.parametrize("make", SCALED, ids=lambda cls: cls.__name__)
def test_the_sign_of_zero_is_plus_one(make) -> None:
    zeros = torch.tensor([0.0, -0.0], dtype=torch.float64)
    assert torch.equal(make(0.1)(zeros), torch.full_like(zeros, 0.1))


def test_quadratic_mean_per_sample_leaves_the_batch_out() -> None:
    z = torch.tensor([[3.0, -4.0], [300.0, 400.0]], dtype=torch.float64)
    both = RootMeanSquare(0.1)(z)
    alone = torch.cat([RootMeanSquare(0.1)(sample) for sample in z.split(1)])
    assert torch.equal(both, alone)
    rms = torch.tensor([[12.5], [125_000.0]], dtype=torch.float64).sqrt()
    torch.testing.assert_close(both, z + 0.1 * rms + 1e-9, rtol=1e-15, atol=0)
    whole = RootMeanSquare(0.1, per_sample=False)(z)
    assert not torch.allclose(whole[0], both[0])


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (2, 3, 4, 2)], ids=str)
def test_relative_signed_equals_zennit_norm_scale(shape) -> None:
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z.view(-1)[0] = 0
    expected = ZennitStabilizer(epsilon=0.1, norm_scale=True)(z)
    torch.testing.assert_close(Signed(0.1, relative=True)(z), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("clip", [False, True], ids=["Signed", "Clip"])
def test_signed_and_clip_equal_zennit(clip) -> None:
    z = torch.tensor([*Z, 0.0, 1e-9, -1e-9], dtype=torch.float64)
    ours = Clip(1e-6) if clip else Signed(1e-6)
    assert torch.equal(ours(z), ZennitStabilizer(epsilon=1e-6, clip=clip)(z))


# RoundingAware


@every_dtype
def test_rounding_aware_moves_rounding_noise_only(dtype) -> None:
    unit_roundoff = torch.finfo(dtype).eps / 2
    magnitude = torch.tensor([1.0, 1.0, 1.0, 1.0, 64.0], dtype=dtype)
    noise = 8 * unit_roundoff
    z = torch.tensor([noise, 0.5 * noise, -0.5 * noise, 0.0, -1.0], dtype=dtype)
    s = RoundingAware(8).stabilize(z, magnitude)
    expected = [noise, noise, -noise, noise, min(-1.0, -64 * noise)]
    assert torch.equal(s, torch.tensor(expected, dtype=dtype))


def test_rounding_aware_needs_a_layer() -> None:
    with pytest.raises(StabilizerError, match=r"sum of \|x w\|.*give it to a rule"):
        RoundingAware()(torch.ones(3))


# Half precision, and epsilons that do not work in a dtype


@every_dtype
@pytest.mark.parametrize("stabilizer", WITHOUT_A_LAYER, ids=repr)
def test_shape_dtype_and_input_are_kept(stabilizer, dtype) -> None:
    z = torch.tensor(Z, dtype=dtype).reshape(2, 2)
    kept = z.clone()
    stabilizer = RootMeanSquare(0.1, floor=0) if stabilizer == RootMeanSquare(0.1) else stabilizer
    s = stabilizer(z)
    assert (s.shape, s.dtype, s.device) == (z.shape, z.dtype, z.device)
    assert bool(torch.isfinite(s).all())
    assert torch.equal(z, kept)


SMALL = [Signed(1e-9), Signed(1e-9, relative=True), Additive(1e-9), Clip(1e-9), RootMeanSquare(0)]


@pytest.mark.parametrize("stabilizer", SMALL, ids=repr)
def test_epsilon_that_underflows_is_raised_and_said(stabilizer) -> None:
    z = torch.tensor([[0.0, 0.0], [0.0, -0.0]], dtype=torch.float16)
    with pytest.warns(StabilizerWarning, match=r"1e-09 is too small for torch.float16.*6.1e-05"):
        s = stabilizer(z)
    assert bool((s >= torch.finfo(torch.float16).tiny).all())
    assert bool(torch.isfinite(1 / s).all())


@every_dtype
@pytest.mark.parametrize("make", SCALED, ids=lambda cls: cls.__name__)
def test_smallest_normal_number_is_used_without_a_word(make, dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    s = make(tiny)(torch.zeros(3, dtype=dtype))
    assert torch.equal(s, torch.full_like(s, tiny))
    assert bool(torch.isfinite(1 / s).all())


@every_dtype
def test_relative_epsilon_works_where_the_sample_is_zero(dtype) -> None:
    z = torch.stack([torch.zeros(3), torch.ones(3)]).to(dtype)
    s = Signed(0.125, relative=True)(z)
    tiny = torch.finfo(dtype).tiny
    expected = torch.tensor([[tiny] * 3, [1.125] * 3], dtype=dtype)
    assert torch.equal(s, expected)


@pytest.mark.parametrize(
    "stabilizer", [Signed(0.5, relative=True), RootMeanSquare(0.5, floor=0)], ids=repr
)
def test_mean_square_does_not_overflow_in_float16(stabilizer) -> None:
    """300 squared is 90,000; the largest float16 is 65,504."""
    z = torch.full((2, 4), 300.0, dtype=torch.float16)
    assert torch.equal(stabilizer(z), torch.full_like(z, 450.0))


@pytest.mark.parametrize("make", SCALED, ids=lambda cls: cls.__name__)
def test_epsilon_beyond_the_dtype_is_an_error(make) -> None:
    with pytest.raises(StabilizerError, match=r"1e\+06 is infinite in torch.float16.*wider dtype"):
        make(1e6)(torch.ones(2, dtype=torch.float16))


# Laws


def denominators(width: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(width=width, allow_nan=False, allow_infinity=False), min_size=1)


LAWS = settings(deadline=None)
EPSILONS = st.floats(min_value=2.0**-126, max_value=2.0**100)


@LAWS
@given(z=st.one_of(denominators(16), denominators(32)), epsilon=EPSILONS)
@pytest.mark.parametrize("make", [Signed, Clip], ids=["Signed", "Clip"])
def test_denominators_stay_away_from_zero_on_their_side(make, z, epsilon) -> None:
    z_ = torch.tensor(z, dtype=torch.float64)
    s = make(epsilon)(z_)
    assert bool((s.abs() >= epsilon).all())
    assert bool(((s < 0) == (z_ < 0)).all())
    assert bool((s.abs() >= z_.abs()).all())
    assert bool(torch.isfinite(1 / s).all())


@LAWS
@given(z=denominators(16), epsilon=st.floats(min_value=2.0**-14, max_value=2.0**10, width=16))
@every_dtype
@pytest.mark.parametrize("make", [Signed, Clip], ids=["Signed", "Clip"])
def test_the_same_in_every_dtype(make, dtype, z, epsilon) -> None:
    z_ = torch.tensor(z, dtype=dtype)
    s = make(epsilon)(z_)
    assert bool((s.abs() >= torch.tensor(epsilon, dtype=dtype)).all())
    assert bool(((s < 0) == (z_ < 0)).all())


@LAWS
@given(z=denominators(64))
def test_identity_is_exact(z) -> None:
    z_ = torch.tensor(z, dtype=torch.float64)
    assert torch.equal(Identity()(z_), z_)


# As values


@pytest.mark.parametrize("stabilizer", ALL, ids=repr)
def test_stabilizers_are_values(stabilizer) -> None:
    arguments = {field.name: getattr(stabilizer, field.name) for field in fields(stabilizer)}
    twin = type(stabilizer)(**arguments)
    assert twin == stabilizer and hash(twin) == hash(stabilizer) and twin is not stabilizer
    assert [s for s in ALL if s == stabilizer] == [stabilizer]
    assert eval(repr(stabilizer)) == stabilizer
    for name in (*arguments, "other"):
        with pytest.raises(FrozenInstanceError):
            setattr(stabilizer, name, 1.0)


BAD_VALUES = {"negative": -1e-6, "nan": math.nan, "inf": math.inf, "text": "0.1", "bool": True}
PARAMETERS = {
    "epsilon": [*SCALED, RootMeanSquare],
    "floor": [lambda floor: RootMeanSquare(0.1, floor=floor)],
    "factor": [RoundingAware],
}


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=list(BAD_VALUES))
@pytest.mark.parametrize("name", PARAMETERS)
def test_bad_parameter(name, value) -> None:
    for make in PARAMETERS[name]:
        with pytest.raises(StabilizerError, match=rf"{name} is {value!r}; give a"):
            make(value)


def test_factor_of_zero() -> None:
    with pytest.raises(StabilizerError, match="factor is 0; give a finite number > 0"):
        RoundingAware(0.0)


@pytest.mark.parametrize("stabilizer", WITHOUT_A_LAYER, ids=repr)
def test_integers_are_no_denominators(stabilizer) -> None:
    with pytest.raises(StabilizerError, match=r"dtype torch.int64.*z.float\(\)"):
        stabilizer(torch.tensor([1, 2]))


def test_a_number_means_signed() -> None:
    assert ensure(0.5) == Signed(0.5) == EpsilonRule(stabilizer=0.5).stabilizer
    assert ensure(2) == Signed(2.0)


@pytest.mark.parametrize(
    "value", ["0.1", None, True, Signed], ids=["text", "None", "bool", "class"]
)
def test_neither_number_nor_callable(value) -> None:
    with pytest.raises(StabilizerError, match=r"give a number epsilon >= 0, an instance"):
        ensure(value)


# In rules


def relevance(rule: type[Rule], stabilizer: StabilizerLike) -> Tensor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    return LRP(net, [(["0", "2"], rule, {"stabilizer": stabilizer})]).attribute(x, target=1)


def write_in_place(z: Tensor) -> Tensor:
    z[z.abs() < 0.3] = 0.3
    return z


CALLABLES = {
    "function": (lambda z: torch.where(z < 0, z - 0.1, z + 0.1), Signed(0.1)),
    "zennit": (ZennitStabilizer(epsilon=0.1), Signed(0.1)),
    "module": (nn.Identity(), Identity()),
    "in-place": (write_in_place, lambda z: torch.where(z.abs() < 0.3, 0.3, z)),
}


@pytest.mark.parametrize("rule", [EpsilonRule, GammaRule, ZPlusRule], ids=lambda r: r.__name__)
@pytest.mark.parametrize(("given_", "equal"), CALLABLES.values(), ids=list(CALLABLES))
def test_any_callable_serves(rule, given_, equal) -> None:
    found = relevance(rule, given_)
    torch.testing.assert_close(found, relevance(rule, equal), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found, relevance(rule, 0.7), rtol=1e-3, atol=1e-5)
