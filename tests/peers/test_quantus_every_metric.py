"""Every metric of Quantus takes our LRP, and the ways to hand it over."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from captum_lrp_stab import LRP, attach_rules, presets
from tests.helpers.networks import Residual

quantus = pytest.importorskip("quantus")

from tests.helpers.quantus_pictures import (  # noqa: E402  # which needs Quantus
    PRESETS,
    QUIET,
    Flat,
    N,
    X,
    Y,
    explain,
    network,
    small,
    summed,
)

pytestmark = [pytest.mark.quantus, pytest.mark.usefixtures("one_thread")]

# all of them -------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "Faithfulness Correlation": {"nr_runs": 10, "subset_size": 16, "return_aggregate": False},
    "Faithfulness Estimate": {"features_in_step": 16},
    "Pixel-Flipping": {"features_in_step": 16},
    "Region Segmentation": {"patch_size": 4, "regions_evaluation": 3},
    "Monotonicity-Arya": {"features_in_step": 16},
    "Monotonicity-Nguyen": {"features_in_step": 16, "nr_samples": 3},
    "Selectivity": {"patch_size": 4},
    "SensitivityN": {"features_in_step": 16, "n_max_percentage": 0.5},
    "ROAD": {"percentages": [10, 50]},
    "Infidelity": {"n_perturb_samples": 3, "perturb_patch_sizes": [4]},
    "Sufficiency": {},
    "Continuity Test": {"nr_steps": 3},
    "Local Lipschitz Estimate": {"nr_samples": 3},
    "Max-Sensitivity": {"nr_samples": 3},
    "Avg-Sensitivity": {"nr_samples": 3},
    "Consistency": {},
    "Relative Input Stability": {"nr_samples": 3},
    "Relative Output Stability": {"nr_samples": 3},
    "Relative Representation Stability": {"nr_samples": 3},
    "Pointing Game": {},
    "Top-K Intersection": {"k": 8},
    "Relevance Mass Accuracy": {},
    "Relevance Rank Accuracy": {},
    "Attribution Localisation ": {},
    "AUC": {},
    "Sparseness": {},
    "Complexity": {},
    "Effective Complexity": {},
    "MPRT": {},
    "Efficient MPRT": {},
    "Random Logit": {"num_classes": 5},
    "Completeness": {},
    "NonSensitivity": {},
    "InputInvariance": {},
}
COARSE = {  # yes or no, or a count, which another rule need not change
    "Monotonicity-Arya",
    "Sufficiency",
    "Consistency",
    "Pointing Game",
    "Top-K Intersection",
    "Relevance Rank Accuracy",
    "Effective Complexity",
    "Completeness",
    "NonSensitivity",
    "InputInvariance",
    "ROAD",
}
CLASSES = {
    name: metric for family in quantus.AVAILABLE_METRICS.values() for name, metric in family.items()
}


LEFT_OUT = {
    "Focus": "wants mosaics of pictures",
    "IROF": "takes no pictures of several channels, and np.trapz, which NumPy 2.4 has not",
    "Smooth MPRT": "calls its own gradient whatever explain_func is",
}


def test_every_metric_is_tried() -> None:
    assert CLASSES.keys() - SETTINGS.keys() <= LEFT_OUT.keys()


def numbers(scores: Any) -> list[float]:
    if isinstance(scores, dict):
        return numbers(list(scores.values()))
    if np.ndim(scores):
        return [number for part in scores for number in numbers(part)]
    return [float(scores)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning:quantus")
@pytest.mark.filterwarnings("ignore::UserWarning:quantus")
@pytest.mark.parametrize("name", SETTINGS)
def test_lrp_0_scores_as_input_x_gradient(name) -> None:
    """The oracle for the whole way: on a ReLU network the two methods are one."""
    if name not in CLASSES:
        pytest.skip("not in this version of Quantus")
    model, x = network(), X
    if name == "ROAD":  # takes no pictures of several channels
        model, x = network(lambda: nn.Sequential(nn.Conv2d(1, 3, 1), *small())), X[:, :1]
    state = copy.deepcopy(model.state_dict())
    masks = np.zeros((N, 1, 8, 8), dtype=bool)
    masks[:, :, 1:5, 2:6] = True

    def scores(function: Callable[..., Any], **given: Any) -> list[float]:
        np.random.seed(0)
        torch.manual_seed(0)
        metric = CLASSES[name](**QUIET, **SETTINGS[name])
        how = {"explain_func": function, "explain_func_kwargs": given}
        return numbers(metric(model, x, Y, a_batch=None, s_batch=masks, **how))

    ours = scores(summed, rules=presets.zero())
    captums = scores(quantus.explain, method="InputXGradient")
    assert len(ours) == len(captums) >= 1
    assert np.allclose(ours, captums, rtol=1e-3, atol=1e-4, equal_nan=True)
    if name not in COARSE:
        other = scores(summed, rules=presets.epsilon_plus_flat())
        assert not np.allclose(ours, other, rtol=2e-2, atol=1e-4)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ways in -----------------------------------------------------------------------------------------


def test_evaluate_takes_functions_and_arrays() -> None:
    model = network()
    preset = PRESETS[1]
    found = quantus.evaluate(
        metrics={
            "flipping": quantus.PixelFlipping(features_in_step=16, **QUIET),
            "sparseness": quantus.Sparseness(**QUIET),
        },
        xai_methods={"function": explain, "array": explain(model, X, Y, preset)},
        model=model,
        x_batch=X,
        y_batch=Y,
        explain_func_kwargs={"rules": preset},
    )
    assert np.shape(found["array"]["flipping"]) == (N, 12)
    for metric in ("flipping", "sparseness"):
        assert np.array_equal(found["function"][metric], found["array"][metric])


def test_the_name_lrp_is_stock_captum(monkeypatch) -> None:
    """Quantus looks the method's name up in its own module: ours is another ``explain_func``."""
    model = network(Residual)
    given = {"method": "LRP", "reduce_axes": ()}
    with pytest.raises(RuntimeError, match="used more than once"):  # by stock Captum
        quantus.explain(model, X, Y, **given)
    from quantus.functions import explanation_func

    monkeypatch.setattr(explanation_func, "LRP", LRP)
    found = quantus.explain(model, X, Y, xai_lib_kwargs={"rules": PRESETS[1]}, **given)
    assert np.array_equal(found, explain(model, X, Y, PRESETS[1]))


def test_stock_captum_with_our_rules_by_name() -> None:
    """``attach_rules`` around a metric, for those that explain the model itself."""
    model = network(Flat)
    given = {"explain_func_kwargs": {"method": "LRP", "reduce_axes": ()}}
    metric = quantus.PixelFlipping(features_in_step=16, **QUIET)
    stock = metric(model, X, Y, explain_func=quantus.explain, **given)
    with attach_rules(model, PRESETS[1](model)):
        found = metric(model, X, Y, explain_func=quantus.explain, **given)
        # a copy, such as this metric makes, is one without rules
        randomised = quantus.MPRT(**QUIET)(model, X, Y, explain_func=quantus.explain, **given)
    ours = {"explain_func": explain, "explain_func_kwargs": {"rules": PRESETS[1]}}
    assert np.allclose(found, metric(model, X, Y, **ours), atol=1e-6)
    assert not np.allclose(stock, found, atol=1e-6)
    expected = quantus.MPRT(**QUIET)(model, X, Y, **ours)
    assert not np.allclose(randomised["features.0"], expected["features.0"], atol=1e-2)
