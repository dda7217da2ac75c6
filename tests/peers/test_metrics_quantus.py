"""Quantus with our LRP as it is; its numbers against calculations by hand.

Quantus hands out arrays and wants arrays back, which the function ``explain`` below is for.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, presets, stabilizers
from tests.helpers.quantus_pictures import (
    PRESETS,
    QUIET,
    N,
    X,
    Y,
    explain,
    network,
)

quantus = pytest.importorskip("quantus")

pytestmark = [pytest.mark.quantus, pytest.mark.usefixtures("one_thread")]

RAW = {**QUIET, "normalise": False, "abs": False}


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5, bias=False))


def scores_of(model: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()[np.arange(N), Y]


# faithfulness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_pixel_flipping(preset) -> None:
    model = network()
    metric = quantus.PixelFlipping(features_in_step=8, perturb_baseline=0.0, **RAW)
    relevance = explain(model, X, Y, preset)
    found = metric(model, X, Y, a_batch=relevance, softmax=False)
    by_function = {"explain_func": explain, "explain_func_kwargs": {"rules": preset}}
    assert np.array_equal(metric(model, X, Y, softmax=False, **by_function), found)

    expected, flipped = [], X.copy().reshape(N, -1)
    order = np.argsort(-relevance.reshape(N, -1), axis=1)
    for step in range(24):
        for i in range(N):
            flipped[i, order[i, 8 * step : 8 * step + 8]] = 0
        expected.append(scores_of(model, flipped.reshape(X.shape)))
    assert np.allclose(found, np.stack(expected, axis=1), atol=1e-6)
    backwards = metric(model, X, Y, a_batch=-relevance, softmax=False)
    assert (np.mean(backwards, axis=1) > np.mean(found, axis=1)).all()  # the least relevant first


def test_pixel_flipping_of_a_linear_model_takes_off_the_relevance() -> None:
    model = network(linear)
    relevance = explain(model, X, Y, presets.zero())
    metric = quantus.PixelFlipping(perturb_baseline=0.0, **RAW)
    found = np.array(metric(model, X, Y, a_batch=relevance, softmax=False))
    falling = np.cumsum(-np.sort(-relevance.reshape(N, -1), axis=1), axis=1)
    assert np.allclose(found, scores_of(model, X)[:, None] - falling, atol=1e-5)
    shuffled = np.random.default_rng(1).permuted(relevance.reshape(N, -1), axis=1).reshape(X.shape)
    at_random = np.array(metric(model, X, Y, a_batch=shuffled, softmax=False))
    assert (at_random.mean(1) > found.mean(1) + 0.5).all()


def test_faithfulness_correlation() -> None:
    metric = quantus.FaithfulnessCorrelation(
        nr_runs=20, subset_size=16, perturb_baseline=0.0, return_aggregate=False, **RAW
    )

    def found(model: nn.Module, relevance: np.ndarray) -> np.ndarray:
        np.random.seed(0)
        return np.array(metric(model, X, Y, a_batch=relevance, softmax=False))

    model = network(linear)
    assert np.allclose(found(model, explain(model, X, Y, presets.zero())), 1, atol=1e-5)
    assert (found(model, np.random.default_rng(1).random(X.shape)) < 0.9).all()

    model = network()
    relevance = explain(model, X, Y, PRESETS[0])
    actual = found(model, relevance)
    np.random.seed(0)
    sums, falls = [], []
    for _ in range(20):
        removed = X.copy().reshape(N, -1)
        chosen = [np.random.choice(192, 16, replace=False) for _ in range(N)]
        for i in range(N):
            removed[i, chosen[i]] = 0
        sums.append([relevance[i].flatten()[chosen[i]].sum() for i in range(N)])
        falls.append(scores_of(model, X) - scores_of(model, removed.reshape(X.shape)))
    expected = [np.corrcoef(np.array(sums)[:, i], np.array(falls)[:, i])[0, 1] for i in range(N)]
    assert np.allclose(actual, expected, atol=1e-4)


# robustness --------------------------------------------------------------------------------------


def a_tenth_more(arr: np.ndarray, **options: Any) -> np.ndarray:
    return 1.1 * arr


def test_sensitivity_to_a_tenth_more_of_everything_is_a_tenth() -> None:
    """Without biases the relevance grows in proportion to the input."""
    model = network()
    metric = quantus.MaxSensitivity(nr_samples=1, perturb_func=a_tenth_more, **RAW)

    def found(rules: Any) -> list[float]:
        return metric(model, X, Y, explain_func=explain, explain_func_kwargs={"rules": rules})

    biased = found(presets.zero())
    for layer in (0, 3, 6):
        nn.init.zeros_(model[layer].bias)
    assert np.allclose(found(presets.zero()), 0.1, rtol=1e-3)
    assert not np.allclose(biased, 0.1, rtol=1e-3)
    moved = [(["0", "3", "6"], EpsilonRule, {"stabilizer": stabilizers.Additive(0.1)})]
    assert not np.allclose(found(moved), 0.1, rtol=1e-3)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_max_sensitivity(preset) -> None:
    model = network()
    moved: list[np.ndarray] = []

    def move(arr: np.ndarray, **options: Any) -> np.ndarray:
        moved.append(arr + np.random.default_rng(len(moved)).normal(0, 0.05, arr.shape))
        return moved[-1]

    metric = quantus.MaxSensitivity(nr_samples=3, perturb_func=move, **RAW)
    found = metric(model, X, Y, explain_func=explain, explain_func_kwargs={"rules": preset})

    def relevance(x: np.ndarray) -> Tensor:
        given = torch.tensor(x.reshape(X.shape), dtype=torch.float64)
        explainer = LRP(copy.deepcopy(model).double(), preset, optimize=False)
        return explainer.attribute(given, target=torch.tensor(Y)).flatten(1)

    original = relevance(X)
    each = [(relevance(x) - original).norm(dim=1) / original.norm(dim=1) for x in moved]
    assert len(each) == 3
    assert np.allclose(found, torch.stack(each).amax(0), rtol=1e-3)
    assert not np.allclose(found, torch.stack(each).amin(0), rtol=1e-3)


# randomisation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_parameter_randomisation(preset) -> None:
    """Layer after layer of one copy gets new weights: an explainer that is kept follows them."""
    model = network()
    kept: dict[int, LRP] = {}
    calls: list[tuple[np.ndarray, dict[str, Tensor]]] = []

    def follow(model: nn.Module, inputs: Any, targets: Any, **options: Any) -> np.ndarray:
        explainer = kept.setdefault(id(model), LRP(model, preset, cache_bytes=2**20))
        found = explainer.attribute(torch.as_tensor(inputs), target=torch.as_tensor(targets))
        fresh = LRP(copy.deepcopy(model), preset, optimize=False)
        expected = fresh.attribute(torch.as_tensor(inputs), target=torch.as_tensor(targets))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)
        calls.append((found.numpy(), copy.deepcopy(model.state_dict())))
        return found.numpy()

    state = copy.deepcopy(model.state_dict())
    found = quantus.MPRT(**QUIET)(model, X, Y, explain_func=follow)
    assert list(found) == ["original", "6", "3", "0"]
    assert len(kept) == 2  # the model, and the copy whose layers are changed in place
    assert all(len(one._store) for one in kept.values()) == (preset is PRESETS[2])
    original = np.abs(calls[0][0]).reshape(N, -1)
    states = [weights for _, weights in calls[-4:]]
    for before, after, layer in zip(states, states[1:], ("6", "3", "0"), strict=False):
        assert not torch.equal(before[f"{layer}.weight"], after[f"{layer}.weight"])
    for (relevance, _), scores in zip(calls[-3:], list(found.values())[1:], strict=True):
        pairs = zip(original, np.abs(relevance).reshape(N, -1), strict=True)
        expected = [stats.spearmanr(*pair)[0] for pair in pairs]
        assert np.allclose(scores, expected, atol=1e-4)
        assert max(scores) < 0.95
    assert np.allclose(found["original"], 1)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_an_explanation_of_the_model_before_is_found_out() -> None:
    """The control: one that does not look at the model it is given stays the same, 1."""
    model = network()
    explainer = LRP(model, PRESETS[0])

    def stale(model: nn.Module, inputs: Any, targets: Any, **options: Any) -> np.ndarray:
        x, y = torch.as_tensor(inputs), torch.as_tensor(targets)
        return explainer.attribute(x, target=y).numpy()

    for scores in quantus.MPRT(**QUIET)(model, X, Y, explain_func=stale).values():
        assert np.allclose(scores, 1)


# complexity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_sparseness_and_complexity(preset) -> None:
    model = network()
    relevance = explain(model, X, Y, preset)
    parts = np.abs(relevance.astype(np.float64)).reshape(N, -1)
    parts /= parts.sum(1, keepdims=True)
    entropy = -(parts * np.log(parts + 1e-300)).sum(1)
    differences = np.abs(parts[:, :, None] - parts[:, None, :])
    gini = differences.sum((1, 2)) / (2 * 192 * parts.sum(1))
    given: dict[str, Any] = {"explain_func": explain, "explain_func_kwargs": {"rules": preset}}
    assert np.allclose(quantus.Complexity(**QUIET)(model, X, Y, **given), entropy, rtol=1e-4)
    assert np.allclose(quantus.Sparseness(**QUIET)(model, X, Y, **given), gini, rtol=1e-4)
    even = quantus.Sparseness(**QUIET)(model, X, Y, a_batch=1 + 0.01 * np.sign(relevance))
    assert (np.array(even) < 0.1 * gini).all()


# axioms ------------------------------------------------------------------------------------------


def test_completeness() -> None:
    """Quantus compares for equality; with whole numbers the sum has no rounding."""
    model = network()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        whole = torch.randint(-2, 3, parameter.shape, generator=generator).float()
        parameter.data = torch.zeros_like(whole) if name.endswith("bias") else whole
    x = np.round(4 * X)
    metric = quantus.Completeness(perturb_baseline=0.0, **RAW)

    def is_complete(rules: Any) -> bool:
        given = {"explain_func": explain, "explain_func_kwargs": {"rules": rules}}
        found = metric(model, x, Y, softmax=False, **given)
        assert len(set(found)) == 1
        return bool(found[0])

    assert is_complete(presets.zero())
    assert not is_complete(presets.epsilon(0.25))
    nn.init.ones_(model[0].bias)
    assert not is_complete(presets.zero())
    relevance = explain(model, x, Y, presets.zero())
    absorbed = scores_of(model, x) - scores_of(model, 0 * x) - relevance.sum((1, 2, 3))
    assert (np.abs(absorbed) > 1).all()
