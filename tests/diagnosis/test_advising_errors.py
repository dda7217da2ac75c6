"""Bad arguments of ``advise`` are errors, and nothing is left behind."""

import copy
import random

import pytest
import torch

from captum_lrp_stab import (
    EpsilonRule,
    presets,
)
from captum_lrp_stab.diagnosis import advise
from captum_lrp_stab.errors import InputError
from tests.helpers.advice import (
    mixed,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("tolerance", [0, -1e-3, float("nan"), "1e-3", True, None])
def test_a_wrong_tolerance(tolerance):
    model, x = mixed("last")
    with pytest.raises(InputError, match=r"tolerance is .*; give a positive number"):
        advise(model, x, 0, presets.epsilon(), tolerance=tolerance)


@pytest.mark.parametrize("threshold", [0, 1, float("nan"), "1000", True, None])
def test_a_wrong_threshold(threshold):
    model, x = mixed("last")
    with pytest.raises(InputError, match=r"threshold is .*; give a number above 1"):
        advise(model, x, 0, presets.epsilon(), threshold=threshold)


def test_a_wrong_form_and_a_wrong_input():
    model, x = mixed("last")
    with pytest.raises(InputError, match="no form has the name"):
        advise(model, x, 0, presets.epsilon(), form="forward")
    with pytest.raises(InputError):
        advise(model, x.long(), 0, presets.epsilon())


def test_everything_is_as_before():
    model, x = mixed("last")
    x.requires_grad_()
    model.head.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    state = {name: t.clone() for name, t in model.state_dict().items()}
    kept = x.detach().clone()
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    drawn = torch.get_rng_state(), random.getstate()
    rules = [(["first", "conv2d_0", "last", "head"], EpsilonRule, {"epsilon": 0.0})]
    copied = copy.deepcopy(rules)
    advice = advise(model, x, 1, rules)
    assert advice.changes and rules == copied
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[n], t) for n, t in state.items())
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())
    assert all(bool((p.grad == 1).all()) for p in model.parameters() if p.requires_grad)
    assert not model.head.weight.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert not any(hasattr(m, "rule") for m in model.modules())
    assert x.grad is None and x.requires_grad and torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    assert not any(R.requires_grad for R in advice.relevances)
