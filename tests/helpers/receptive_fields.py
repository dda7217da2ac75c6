"""Receptive fields by perturbing each element of the input and looking at the neuron."""

import torch
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.diagnosis.receptive_field import Box, receptive_field
from tests.helpers.networks import build


class Net(nn.Module):
    """A forward pass given as a function of the module and the inputs."""

    def __init__(self, function, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def net(function, **modules: nn.Module) -> Net:
    return build(lambda: Net(function, **modules))


def picture(*shape: int) -> Tensor:
    return torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def field(model, inputs, layer, index, use=0, extra=None):
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    random = torch.get_rng_state()
    boxes = receptive_field(model, inputs, extra, rule_set_of(model, None), layer, index, use)
    assert torch.equal(torch.get_rng_state(), random)
    return boxes


def values_of(model: nn.Module, inputs, layer: str | None, use: int) -> Tensor:
    """The output of one run of a module, or of the model."""
    seen: list[Tensor] = []
    module = model if layer is None else model.get_submodule(layer)
    # a copy, because what follows may write over it
    handle = module.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    with torch.no_grad():
        model(*(x.clone() for x in inputs))
    handle.remove()
    return seen[use]


def perturbed(model, inputs, layer: str | None, index, use=0, batched=True):
    """The oracle: the bounding boxes of what changes the neuron when it alone is changed."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    assert index[0] == 0 and all(len(x) == 1 for x in inputs)
    before = values_of(model, inputs, layer, use)[index]
    boxes = []
    for position, x in enumerate(inputs):
        count, change = x.numel(), torch.zeros(x.shape[1:], dtype=torch.bool)
        for size in (50.0, -50.0, 0.3):
            rows = [y.expand(count, *y.shape[1:]) for y in inputs]
            rows[position] = x + size * torch.eye(count, dtype=x.dtype).reshape(-1, *x.shape[1:])
            chunks = [rows] if batched else zip(*(y.split(1) for y in rows), strict=True)
            outputs = torch.cat([values_of(model, chunk, layer, use) for chunk in chunks])
            after = outputs[(slice(None), *index[1:])]
            different = (after - before).abs() > 1e-9 * (1 + before.abs())
            change |= different.reshape(x.shape[1:])
        boxes.append(bounding(change))
    return tuple(boxes)


def bounding(places: Tensor) -> Box | None:
    at = places.nonzero()
    return Box(tuple(at.amin(0).tolist()), tuple((at.amax(0) + 1).tolist())) if len(at) else None


def is_inside(inner: Box | None, outer: Box | None) -> bool:
    if inner is None or outer is None:
        return inner is None
    starts = all(o <= i for i, o in zip(inner.start, outer.start, strict=True))
    return starts and all(o >= i for i, o in zip(inner.stop, outer.stop, strict=True))


# geometry ----------------------------------------------------------------------------------------
