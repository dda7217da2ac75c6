"""score = relevance of the inputs + what the layers absorb, on small networks and torchvision's."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import EpsilonRule, GammaRule, diagnose
from captum_lrp_stab.errors import RuleError
from captum_lrp_stab.propagation import forms
from tests.helpers.ledgers import (
    CLOSES,
    PRESETS,
    Calls,
    assert_closes,
    assert_score,
    drawn,
    network,
)
from tests.helpers.networks import Residual, TwoInputs, build, cnn

pytestmark = pytest.mark.usefixtures("one_thread")

# small networks ----------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "cnn": (cnn, (3, 8, 8)),
    "cnn-inplace": (lambda: cnn(inplace=True), (3, 8, 8)),
    "cnn-gelu": (lambda: cnn(nn.GELU()), (3, 8, 8)),
    "residual": (Residual, (3, 8, 8)),
    "residual-inplace": (lambda: Residual(True), (3, 8, 8)),
}


IN_TURN = [  # each network under each preset once, in one dtype or the other
    (network, preset, list(CLOSES)[(i + j) % 2])
    for i, network in enumerate(NETWORKS)
    for j, preset in enumerate(PRESETS)
]


@pytest.mark.parametrize(("network", "preset", "dtype"), IN_TURN, ids=str)
def test_small_networks(network, preset, dtype) -> None:
    make, shape = NETWORKS[network]
    model = build(make, dtype=dtype)
    for count in (1, 3):
        x = drawn(count, *shape, seed=count).clamp(-5, 5).to(dtype)
        found = diagnose(model, x, 2, PRESETS[preset])
        assert found.verdict == "stable"
        assert_closes(found, dtype)
        assert_score(found, model, x, 2)


@pytest.mark.parametrize("form", ["relevance", "modified-forward"])
@pytest.mark.parametrize(
    ("network", "preset", "dtype"),
    [run for run in IN_TURN if run[0] in ("cnn-gelu", "residual-inplace")],
    ids=str,
)
def test_small_networks_in_other_forms(network, preset, form, dtype) -> None:
    """With a stabilizer everywhere: 0/0 is NaN in these forms."""
    make, shape = NETWORKS[network]
    model = build(make, dtype=dtype)
    x = drawn(3, *shape, seed=2).clamp(-5, 5).to(dtype)
    found = diagnose(model, x, 2, PRESETS[preset], form=form, stabilizer=1e-3)
    assert found.verdict == "stable"
    assert_closes(found, dtype)


@pytest.mark.parametrize(
    ("preset", "form"), [(preset, forms.NAMES[i % 3]) for i, preset in enumerate(PRESETS)]
)
def test_two_inputs_and_further_arguments(preset, form) -> None:
    model = build(TwoInputs)
    a, b = drawn(3, 4, seed=1), drawn(3, 3, seed=2)
    for scale in (1.0, -0.3):
        found = diagnose(
            model, (a, b), (1, 2), PRESETS[preset], form=form, additional_forward_args=(scale,)
        )
        assert_closes(found, torch.float64)
        assert len(found.relevances) == 2
        total = sum(float(r.sum()) for r in found.relevances)
        assert found.ledger.inputs.total == pytest.approx(total, rel=1e-12)
        if form == "gradient":
            score = float(model(a, b, scale)[:, 1, 2].detach().sum())
            assert found.ledger.score == pytest.approx(score, rel=1e-12)


# gates and products ------------------------------------------------------------------------------

GATES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": lambda s, x, k: s.c((s.a(x) * s.b(x.mean(1, keepdim=True)).sigmoid()).mean(1)),
    "hardsigmoid": lambda s, x, k: s.c((s.a(x) * F.hardsigmoid(s.b(x))).mean(1)),
    "divisor": lambda s, x, k: s.c((s.a(x) / (s.b(x).abs() + 1)).mean(1)),
    "half each": lambda s, x, k: s.c((s.a(x) * s.b(x)).mean(1)),
    "twice": lambda s, x, k: s.c(F.relu(s.a(F.relu(s.a(x)) + x)).mean(1)),
    "written": lambda s, x, k: s.c(s.a(x).add_(x).mul_(2).mean(1)),
    "chosen": lambda s, x, k: s.c(s.a(x).max(1).values + s.b(x).topk(2, 1).values.sum(1)),
    "interpolated": lambda s, x, k: s.c(
        F.interpolate(s.a(x).transpose(1, 2), 7, mode="linear").mean(2)
    ),
}


@pytest.mark.parametrize(
    ("case", "preset", "form"),
    [
        (case, ("zero", "epsilon", "epsilon_plus_flat")[(i + j) % 3], form)
        for i, case in enumerate(GATES)
        for j, form in enumerate(forms.NAMES)
    ],
)
def test_gates_and_products(case, preset, form) -> None:
    model = build(lambda: Calls(GATES[case]))
    x = drawn(3, 4, 6, seed=5)
    try:
        found = diagnose(model, x, 1, PRESETS[preset], form=form, stabilizer=1e-4)
    except RuleError as error:  # of the layer that is used twice
        assert (case, preset, form) == ("twice", "epsilon_plus_flat", "modified-forward")
        assert "proportional" in str(error)
        return
    assert_closes(found, torch.float64)
    assert found.ledger.shares.operation == 0
    bare = diagnose(model, x, 1, PRESETS[preset], form=form)
    same = diagnose(model, x, 1, PRESETS[preset])
    if bare.verdict == "stable" and preset != "epsilon":  # else by its epsilon they differ
        torch.testing.assert_close(bare.relevances, same.relevances, rtol=1e-4, atol=1e-5)


def test_a_layer_used_twice_has_two_records() -> None:
    model = build(lambda: Calls(GATES["twice"]))
    x = drawn(3, 4, 6, seed=5)
    found = diagnose(model, x, 1, [(["a"], GammaRule, {}), (["c"], EpsilonRule, {})])
    uses = [r for r in found.layers if r.layer == "a"]
    assert [(r.name, r.use) for r in uses] == [("a", 0), ("a[1]", 1)]
    assert uses[0].received.total != uses[1].received.total
    names = [r.name for r in found.layers]
    assert names.index("a") < names.index("add_0") < names.index("a[1]") < names.index("c")


# torchvision's, every preset ---------------------------------------------------------------------


TORCHVISION = (
    "vgg11",
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "densenet121",
    "convnext_tiny",
    "vit_b_16",
)


@pytest.mark.parametrize(
    ("name", "preset", "dtype"),
    [
        ("resnet18", "epsilon_gamma_box", torch.float64),
        ("resnet18", "epsilon_plus_flat", torch.float32),
        ("mobilenet_v2", "lrp_tutorial", torch.float32),
    ],
    ids=str,
)
def test_torchvision(name, preset, dtype) -> None:
    model = network(name, dtype)
    x = drawn(2, 3, 32, 32, seed=1).clamp(-5, 5).to(dtype)
    assert_closes(diagnose(model, x, 7, PRESETS[preset]), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", CLOSES, ids=str)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_in_every_form(name, preset, dtype) -> None:
    model = network(name, dtype)
    x = drawn(2, 3, 32, 32, seed=1).clamp(-5, 5).to(dtype)
    assert_closes(diagnose(model, x, 7, PRESETS[preset]), dtype)
    for form in ("relevance", "modified-forward"):
        try:
            found = diagnose(model, x, 7, PRESETS[preset], form=form, stabilizer=1e-3)
        except RuleError as error:  # a box or flat rule that reads more than the input
            assert form == "modified-forward" and "proportional" in str(error)
            continue
        if math.isfinite(found.ledger.elsewhere):
            assert_closes(found, dtype)
