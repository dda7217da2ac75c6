"""Batches in smaller ones: what is refused, and how."""

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, LayerLRP, stabilizers
from captum_lrp_stab.errors import InputError, ModelError, NonFiniteRelevanceWarning
from tests.helpers.networks import build, cnn
from tests.helpers.several import assert_same, state

pytestmark = pytest.mark.usefixtures("one_thread")

N = 5
IMAGES = torch.randn(N, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [0, -1, True, False, 1.5, 2.0, "2", (2,)])
def test_a_size_that_is_none(size) -> None:
    model = build(cnn)
    calls = [
        lambda: LRP(model).attribute(IMAGES, 0, internal_batch_size=size),
        lambda: LRP(model).attribute_many(IMAGES, [0], internal_batch_size=size),
        lambda: LayerLRP(model, "3").attribute(IMAGES, 0, internal_batch_size=size),
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"internal_batch_size is .*number of samples >= 1"):
            call()


@pytest.mark.parametrize("target", [99, [0, 1, 2, 3, 99], [0] * (N - 1), torch.tensor([0, 1])])
def test_a_target_that_does_not_fit_leaves_no_trace(target) -> None:
    model = build(cnn)
    before = state(model)
    for size in (2, N):
        with pytest.raises(InputError, match="does not fit"):
            LRP(model).attribute(IMAGES, target, internal_batch_size=size)
    assert state(model) == before


@pytest.mark.parametrize("target", [[0, 1, 2], torch.tensor([0, 1, 2])])
def test_targets_of_too_few_samples(target) -> None:
    x, explainer = torch.cat([IMAGES, IMAGES[:1]]), LRP(build(cnn))
    with pytest.raises(InputError):
        explainer.attribute(x, target)
    with pytest.raises(InputError):
        explainer.attribute(x, target, internal_batch_size=3)


@pytest.mark.parametrize("inputs", [[IMAGES], (IMAGES, 3)])
def test_inputs_that_are_none(inputs) -> None:
    with pytest.raises(InputError):
        LRP(build(cnn)).attribute(inputs, 0, internal_batch_size=2)


@pytest.mark.parametrize("inputs", [3, None, (), (3, IMAGES)], ids=str)
def test_inputs_that_have_no_length(inputs) -> None:
    with pytest.raises(InputError):
        LRP(build(cnn)).attribute(inputs, 0)
    with pytest.raises(InputError):
        LRP(build(cnn)).attribute(inputs, 0, internal_batch_size=2)


def test_an_input_that_all_samples_share() -> None:
    class Shifted(nn.Sequential):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return super().forward(x + shift)

    model = build(lambda: Shifted(nn.Linear(4, 3)))
    inputs = torch.randn(4, 4).double(), torch.randn(1, 4).double()
    whole = LRP(model).attribute(inputs, 0)
    try:
        parts = LRP(model).attribute(inputs, 0, internal_batch_size=2)
    except InputError:
        return  # just as well
    assert_same(parts, whole)


def test_generators() -> None:
    explainer = LRP(build(cnn))
    whole = explainer.attribute_many(IMAGES, [0, 1], stabilizers=(s for s in (0.1, 0.2)))
    assert_same(
        explainer.attribute_many(IMAGES, (t for t in (0, 1)), internal_batch_size=2),
        [row[0] for row in explainer.attribute_many(IMAGES, [0, 1], rules=[None])],
    )
    given = {"stabilizers": (s for s in (0.1, 0.2)), "internal_batch_size": 2}
    assert_same(explainer.attribute_many(IMAGES, [0, 1], **given), whole)


class Trouble(Exception):
    """What goes wrong inside."""


def test_a_later_piece_that_fails_leaves_no_trace() -> None:
    def stabilizer(z: Tensor) -> Tensor:
        ran.append(len(z))
        if len(ran) > 1:
            raise Trouble
        return z + 1.0

    ran: list[int] = []
    model = build(cnn)
    before = state(model)
    rules = [(["3"], EpsilonRule, {"stabilizer": stabilizer})]
    with pytest.raises(Trouble):
        LRP(model, rules).attribute(IMAGES, 0, internal_batch_size=2)
    assert ran == [2, 2]
    assert state(model) == before


def test_a_layer_that_takes_no_part_is_an_error_still() -> None:
    model = build(cnn)
    model.add_module("spare", nn.Identity())
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    with pytest.raises(ModelError, match="'spare' takes no part"):
        LayerLRP(model, "spare").attribute(IMAGES, 0, internal_batch_size=2)


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("how", ["attribute", "attribute_many", "layer"])
def test_the_warning_points_at_the_users_line(how, size) -> None:
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-0.5, 0.0], [0.0, 1.0]]))
    x, kept = torch.ones(2, 2).double(), {"internal_batch_size": size}
    rules = [([""], EpsilonRule, {"epsilon": 0.0, "stabilizer": stabilizers.Additive(0.5)})]
    at_input = {"attribute_to_layer_input": True}
    with pytest.warns(NonFiniteRelevanceWarning) as caught:
        if how == "attribute":
            LRP(model, rules).attribute(x, 0, **kept)
        elif how == "attribute_many":
            LRP(model, rules).attribute_many(x, [0, 1], **kept)
        else:
            LayerLRP(model, "", rules).attribute(x, 0, **at_input, **kept)
    assert {w.filename for w in caught} == {__file__}
