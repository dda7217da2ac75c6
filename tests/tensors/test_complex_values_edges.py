"""What surrounds complex values: parts, segments, records, errors, agreement."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, compare, diagnose, presets
from captum_lrp_stab.comparison.agreement import agreement, relative_difference
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.propagation.checks import coarsest_dtype
from captum_lrp_stab.rules.affine import Dense
from tests.helpers.agreement import drawn
from tests.helpers.complex_networks import Weights, as_complex, drawn_model, in_float64, linear
from tests.helpers.networks import build

Z = presets.zero()


def test_parts_segments_and_several_targets() -> None:
    model, x = in_float64(Weights), drawn(2, 4)
    whole = [LRP(model, Z).attribute(x, target=t) for t in (0, 1)]
    parted = LRP(model, Z, checkpoint=["layer"]).attribute(x, target=0)
    torch.testing.assert_close(parted, whole[0])
    many = LRP(model, Z).attribute_many(x, [0, 1])
    torch.testing.assert_close(many, whole)

    class Parts(Weights):
        def forward(self, x: Tensor) -> Tensor:
            z, _ = self.layer(as_complex(self.body(x))).split([4, 1], -1)
            return self.head(F.pad(torch.view_as_real(z).flatten(-2), (0, 2)))

    read, unread = LayerLRP(in_float64(Parts), "split_0", Z).attribute(x, target=0)
    assert read.dtype is unread.dtype is torch.float64
    assert unread.shape == (2, 1) and not unread.any()


def test_a_record_names_the_complex_number() -> None:
    class Model(Weights):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(self.layer(as_complex(self.body(x)))).flatten(-2)

    model, x = in_float64(Model), drawn(1, 4)
    for form in forms.NAMES:
        found = diagnose(model, x, 9, presets.epsilon(1e-12), form=form, threshold=1.0001)
        (record,) = (layer for layer in found.layers if layer.name == "layer")
        assert record.shape == (1, 5) and record.strongest.index == (0, 4)
    z = torch.tensor(0.0)
    with pytest.warns(Warning, match="not finite"):
        LRP(nn.Sequential(model, Scaled(z.log()))).attribute(x, target=0)


class Scaled(nn.Module):
    """A complex factor and back."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return (torch.complex(x, x) * self.factor).imag


def test_a_complex_output_is_no_score() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return as_complex(self.body(x))

    model, x = build(Model), drawn(2, 4)
    for call in (
        lambda: LRP(model).attribute(x, target=0),
        lambda: diagnose(model, x, 0),
        lambda: compare(model, x, 0, Z, "float64"),
    ):
        with pytest.raises(ModelError, match=r"returns complex numbers .* abs\(\), real or imag"):
            call()


def test_parameters_that_are_not_finite_are_named() -> None:
    model = drawn_model(Weights)
    with torch.no_grad():
        model.layer.weight[0, 0] = complex("nan")
    with pytest.raises(ModelError, match=r"'layer\.weight' has 1 non-finite"):
        LRP(model).attribute(drawn(2, 4).float(), target=0)


def test_the_coarsest_dtype_counts_complex_weights() -> None:
    model = drawn_model(Weights)
    for real in (model.body, model.head):
        real.double()
    assert coarsest_dtype(model, (drawn(2, 4),)) is torch.float32


def test_agreement_sees_imaginary_parts() -> None:
    a, b = torch.tensor([1 + 1j, 2 + 0j]), torch.tensor([1 + 1j, 2 + 3j])
    assert relative_difference([a], [b]) == pytest.approx(3 / 13**0.5)
    assert agreement([a], [b]).relative_l2 == relative_difference([a], [b])


def test_vjp_of_complex_weights_is_autograds() -> None:
    weight, x, c = (
        torch.complex(drawn(*shape), drawn(*shape, seed=1)) for shape in ((3, 5), (2, 5), (2, 3))
    )
    op, point = Dense(weight, None), x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(op.apply(point, weight, None), point, c)
    torch.testing.assert_close(op.vjp(c, x, weight), expected)
