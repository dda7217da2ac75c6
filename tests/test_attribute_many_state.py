"""``attribute_many`` leaves nothing behind, whether it succeeds or fails."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from captum_lrp_stab import LRP, EpsilonRule, FlatRule, GammaRule, presets
from captum_lrp_stab.errors import RuleError, RuleMapError
from captum_lrp_stab.fast import factor_cache
from captum_lrp_stab.propagation import gradient_form as seeing
from tests.helpers.networks import Residual, build, cnn
from tests.helpers.several import Several, state

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
BOX = (-6.0, 6.0)
SHARED = [presets.epsilon(0.1), presets.epsilon_gamma_box(*BOX), presets.epsilon_alpha2_beta1()]


class Trouble(Exception):
    """What goes wrong inside."""


class FailsTheSecondTime:
    """A stabilizer that raises in the second turn."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 4:  # three layers
            raise Trouble
        return z + 0.1


def test_model_and_inputs_are_as_before() -> None:
    model = build(Several)
    model.last.train()
    model.last.weight.grad = torch.ones_like(model.last.weight)
    model.first.bias.requires_grad_(False)
    x = IMAGES.clone().requires_grad_()
    x.grad = torch.ones_like(x)
    before, version = state(model), x._version
    explainer = LRP(model)
    for given in ({"rules": SHARED}, {"stabilizers": [0.1, 0.2]}, {"internal_batch_size": 1}):
        found = explainer.attribute_many(x, [0, [1, 2]], **given)
        assert len(found) == 2
        assert state(model) == before
    with pytest.raises(Trouble):
        explainer.attribute_many(x, [0, 1, 2], stabilizers=[FailsTheSecondTime()])
    with pytest.raises(RuleError, match="linear_7"):
        explainer.attribute_many(x, [0], rules=[None, [(["linear_7"], EpsilonRule, {})]])
    with pytest.raises(RuleMapError, match="'none'"):
        explainer.attribute_many(x, [0], rules=[None, [(["none"], EpsilonRule, {})]])
    assert state(model) == before
    assert x.requires_grad
    assert x._version == version
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.is_grad_enabled()


@pytest.fixture
def kept(monkeypatch) -> list[weakref.ref]:
    """References to what layers keep for other backward passes."""
    made: list[weakref.ref] = []

    class Watched(factor_cache.Memo):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(seeing, "Memo", Watched)
    return made


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("given", [{}, {"rules": SHARED}, {"stabilizers": [0.1, 0.2]}])
def test_nothing_is_kept_after_the_call(kept, given, fails) -> None:
    model = build(lambda: Residual(inplace=True))
    activations: list[weakref.ref] = []
    handle = model.shared.register_forward_hook(
        lambda module, inputs, output: activations.append(
            weakref.ref(output.untyped_storage() and output.grad_fn)
        )
    )
    gc.disable()
    try:
        targets = [0, 1, 99] if fails else [0, 1]
        try:
            LRP(model).attribute_many(IMAGES, targets, **given)
        except ValueError as error:
            assert fails, error
    finally:
        gc.enable()
        handle.remove()
    assert len(kept) >= 4
    assert len(activations) == 2
    assert [ref for ref in (*kept, *activations) if ref() is not None] == []


def test_the_first_pass_is_let_go_of_before_separate_ones(kept) -> None:
    model = build(cnn)
    alive: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, inputs: alive.append(sum(ref() is not None for ref in kept))
    )
    rules = [presets.epsilon(0.1), [(["3"], FlatRule, {})]]
    LRP(model).attribute_many(IMAGES, [0, 1], rules=rules)
    hook.remove()
    assert len(alive) == 4
    assert alive == [0, 0, 0, 0]


def test_threads() -> None:
    model = build(lambda: Residual(inplace=True))
    explainer = LRP(model)
    expected = explainer.attribute_many(IMAGES, [0, 1], rules=SHARED)

    def run(_: int) -> bool:
        found = explainer.attribute_many(IMAGES, [0, 1], rules=SHARED)
        pairs = zip(found, expected, strict=True)
        return all(torch.equal(a, b) for f, e in pairs for a, b in zip(f, e, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(12)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode) -> None:
    model = build(Residual)
    expected = LRP(model).attribute_many(IMAGES, [0, 1], rules=SHARED)
    with mode():
        found = LRP(model).attribute_many(IMAGES.clone(), [0, 1], rules=SHARED)
        pieces = LRP(model).attribute_many(IMAGES.clone(), [0, 1], internal_batch_size=1)
    for row, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(row, other, strict=True))
    assert len(pieces) == 2


def test_what_is_kept_does_not_grow_with_the_sets_of_rules(monkeypatch) -> None:
    """About twice the memory of a single attribution, says the documentation."""
    made: list[factor_cache.Memo] = []

    class Watched(factor_cache.Memo):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(seeing, "Memo", Watched)
    sizes = []
    for count in (2, 8):
        made.clear()
        rules = [[(["0", "3"], GammaRule, {"gamma": 0.1 * k})] for k in range(1, count + 1)]
        LRP(build(cnn)).attribute_many(IMAGES, [0, 1], rules=rules)
        sizes.append(sum(t.numel() for memo in made for t in memo.kept.values()))
    assert 0 < sizes[1] <= 2 * sizes[0]
