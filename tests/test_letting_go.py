"""A model is freed with its last reference, without the garbage collector."""

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, LayerLRP, compare, diagnose, plan, presets
from captum_lrp_stab.errors import NotDifferentiableError
from captum_lrp_stab.stabilizers import Clip
from tests.helpers.networks import Shortcut


def differentiated(relevance: Tensor) -> None:
    """Meet the error that says that there is no derivative."""
    with pytest.raises(NotDifferentiableError):
        relevance.sum().backward()


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


WAYS: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "plan": plan,
    "attribute": lambda m, x: LRP(m, presets.epsilon_plus()).attribute(x, target=1),
    "optimize=False": lambda m, x: LRP(m, optimize=False).attribute(x, target=1),
    "first layer": lambda m, x: LRP(m, presets.epsilon_plus_flat()).attribute(x, target=1),
    "without a head": lambda m, x: LRP(m, skip_output_activation=True).attribute(x, target=1),
    "in pieces": lambda m, x: LRP(m).attribute(x, target=1, internal_batch_size=1),
    "layers in pieces": lambda m, x: LayerLRP(m, None).attribute(x, 1, internal_batch_size=1),
    "differentiated": lambda m, x: differentiated(LRP(m).attribute(x.requires_grad_(), target=1)),
    "attribute_many": lambda m, x: LRP(m).attribute_many(x, [0, 1], stabilizers=[1e-6, Clip(0.1)]),
    "layer": lambda m, x: LayerLRP(m, m.conv).attribute(x, target=1),
    "diagnose": lambda m, x: diagnose(m, x, target=1),
    "relevance form": lambda m, x: diagnose(m, x, target=1, form="relevance"),
    "modified forward": lambda m, x: diagnose(m, x, target=1, form="modified-forward"),
    "compare": lambda m, x: compare(m, x, target=1, reference="float64"),
}


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_freed(way) -> None:
    model, x = Shortcut().eval(), torch.randn(2, 2, 5, 5)
    references = [weakref.ref(model), *map(weakref.ref, model.parameters()), weakref.ref(x)]
    WAYS[way](model, x)
    assert all(r() is not None for r in references)  # the control
    del model, x
    assert all(r() is None for r in references)
