"""Known differences on whole networks, and who is right by dense oracles."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import EpsilonRule, compare, presets
from tests.helpers import dense_formulas as dense
from tests.helpers.faults import InGradientForm, faulty
from tests.helpers.known_cases import DOUBLED, IMAGES, MERGED, TARGET, assert_known, rules
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, resnet10
from tests.helpers.zennit_version import leaving_eps


@pytest.mark.parametrize(
    ("reference", "dtype"), [("captum", torch.float64), ("captum_driver", torch.float32)], ids=str
)
def test_stock_captum_doubles_relevance_in_a_resnet(reference: str, dtype: torch.dtype) -> None:
    model = build(resnet10, 0, dtype)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = presets.epsilon()(model)
    comparison = compare(model, x, TARGET, given, reference)
    assert_known(comparison, (DOUBLED,))
    assert comparison.first.name == comparison.differences[0].where == "layer4.0.add_0"
    broken = compare(model, x, TARGET, faulty(given, {"fc": InGradientForm}), reference)
    assert (broken.verdict, broken.first.name) == ("different", "fc")


def merged_by_hand(model: nn.Module, x: Tensor, divided: bool) -> tuple[Tensor, Tensor]:
    """Score and relevance (epsilon 0.1) of convolution, batch norm, ReLU and a linear layer.

    From dense matrices, with the batch norm written into the convolution; ``divided`` by
    sqrt(1 + eps) once more, as by a batch norm of unit variance that is left behind.
    """
    layer, norm, _, _, last = model
    conv = copy.deepcopy(layer).requires_grad_(False)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    conv.weight.mul_(scale.detach()[:, None, None, None])
    conv.bias.copy_((layer.bias - norm.running_mean) * scale + norm.bias)
    z = conv(x)
    a = torch.relu(z / math.sqrt(1 + norm.eps) if divided else z).flatten(1)
    R = torch.zeros(len(x), 4, dtype=x.dtype)
    R[:, TARGET] = score = last(a)[:, TARGET].detach()
    rule = partial(dense.batch, partial(dense.epsilon, epsilon=0.1))
    R = rule(dense.dense_layer(last, a.shape[1:]), a, R, dense.identity).reshape(z.shape)
    return score, rule(dense.dense_layer(conv, x.shape[1:]), x, R, dense.identity)


@leaving_eps
def test_who_is_right_about_merged_batch_norms() -> None:
    """zennit's network has another output than the model; this package's has not."""
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
        )
    )
    given = rules(("0", "4"), EpsilonRule, epsilon=0.1)
    comparison = compare(model, IMAGES, TARGET, given, "zennit")
    assert_known(comparison, (MERGED,))
    assert (comparison.first.name, comparison.first.direction) == ("0", "forward")

    (score, relevance), (other_score, other) = (
        merged_by_hand(model, IMAGES, divided) for divided in (False, True)
    )
    assert relative_error(other, relevance) > 1e-6
    assert relative_error(comparison.relevances[0], relevance) < 1e-12
    assert relative_error(comparison.reference_relevances[0], other) < 1e-12

    scores, theirs = (
        torch.tensor(numbers, dtype=torch.float64)
        for numbers in (comparison.scores, comparison.reference_scores)
    )
    assert relative_error(score, model(IMAGES)[:, TARGET]) < 1e-12
    assert relative_error(scores, score) < 1e-12
    assert relative_error(theirs, other_score) < 1e-12
    assert relative_error(theirs, score) > 1e-6
