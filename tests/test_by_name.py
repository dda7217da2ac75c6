"""Stabilizers, presets and dtypes by name."""

import pytest
import torch

from captum_lrp_stab import ZBoxRule, by_name
from captum_lrp_stab.errors import InputError, RuleMapError, StabilizerError
from captum_lrp_stab.names import PRESETS
from captum_lrp_stab.stabilizers import Clip, Identity, RoundingAware, Signed
from captum_lrp_stab.zoo import Preprocessing
from tests.helpers.studies import classifier


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Identity()),
        ("signed", Signed(1e-6)),
        ("signed:0.5", Signed(0.5)),
        ("relative:0.1", Signed(0.1, relative=True)),
        ("clip:1e-3", Clip(1e-3)),
        ("rounding", RoundingAware(8.0)),
        ("rounding:2", RoundingAware(2.0)),
    ],
)
def test_stabilizers_by_name(text: str, expected: object) -> None:
    assert by_name.stabilizer_of(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sined:1", "did you mean signed"),
        ("signed:much", "'much' is not a number"),
        ("signed:", "'' is not a number"),
        ("signed:-1", r"stabilizer 'signed:-1': epsilon is -1.0; give a finite number >= 0"),
        ("clip:nan", "give a finite number"),
        ("none:1", "none takes no epsilon"),
        ("", "has no known name"),
    ],
)
def test_unknown_stabilizers(text: str, message: str) -> None:
    with pytest.raises(StabilizerError, match=message):
        by_name.stabilizer_of(text)


def test_every_preset_by_name() -> None:
    preprocessing = classifier().preprocessing
    assert {"lrp_tutorial", "zero", "epsilon_gamma_box"} <= set(PRESETS)
    for name in PRESETS:
        assert by_name.preset_of(name, *preprocessing.bounds).name == name


def test_the_box_has_the_bounds_of_the_pixels() -> None:
    preprocessing = Preprocessing(4, 4, (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))
    model = classifier().model
    (_, rule, parameters), *_ = by_name.preset_of("lrp_tutorial", *preprocessing.bounds)(model)
    assert rule is ZBoxRule
    expected = torch.tensor([-5.0, -2.0, -0.6]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(parameters["low"], expected)
    torch.testing.assert_close(
        parameters["high"], torch.tensor([5.0, 3.0, 1.4]).reshape(1, 3, 1, 1)
    )


def test_unknown_preset_and_dtype() -> None:
    with pytest.raises(RuleMapError, match=r"'lrp_tutorail'.*did you mean lrp_tutorial"):
        by_name.preset_of("lrp_tutorail", *classifier().preprocessing.bounds)
    with pytest.raises(InputError, match="'int8'; give one of float16"):
        by_name.dtype_of("int8")
