"""Several targets, stabilizers and sets of rules after one forward pass: the same as one by one."""

import warnings

import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    ZBoxRule,
    presets,
    stabilizers,
)
from captum_lrp_stab.errors import (
    FallbackError,
    InputError,
    NonFiniteRelevanceError,
    NonFiniteRelevanceWarning,
)
from tests.helpers.attention import TOKENS, Attention, E, Layer
from tests.helpers.networks import Residual, TwoInputs, build, cnn
from tests.helpers.several import Halves, Several, assert_as_one_by_one, forwards, state

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
BOX = (-6.0, 6.0)
RULES = [
    presets.epsilon(0.1),
    presets.epsilon_gamma_box(*BOX),
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1(),
    presets.lrp_tutorial(*BOX),
    presets.zero(),
    None,
]
STABILIZERS = [
    1e-2,
    stabilizers.Signed(0.1, relative=True),
    stabilizers.Clip(0.1),
    stabilizers.RootMeanSquare(0.1),
    stabilizers.Additive(0.01),
    stabilizers.RoundingAware(),
    stabilizers.Identity(),
    lambda z: z + 0.3,
]
NETWORKS = {
    "plain": (cnn, IMAGES),
    "relu in place": (lambda: cnn(inplace=True), IMAGES),
    "gelu": (lambda: cnn(nn.GELU()), IMAGES),
    "residual, reused, functional": (Residual, IMAGES),
    "residual, all in place": (lambda: Residual(inplace=True), IMAGES),
    "silu in place, pools, functional layers": (Several, IMAGES),
}
TOKEN_INPUT = torch.randn(
    2, TOKENS, E, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
)


@pytest.mark.parametrize("name", NETWORKS)
def test_rules_and_targets_on_images(name) -> None:
    make, x = NETWORKS[name]
    assert_as_one_by_one(build(make), x, [2, [0, 3]], rules=RULES)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", [presets.epsilon(0.1), presets.epsilon_gamma_box(*BOX)])
def test_several_targets_alone(name, preset) -> None:
    make, x = NETWORKS[name]
    targets = [1, (4,), torch.tensor([0, 2]), torch.tensor(3), 1]
    assert_as_one_by_one(build(make), x, targets, own=preset)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "functional" in name])
@pytest.mark.parametrize("preset", [presets.epsilon(), presets.epsilon_alpha2_beta1_flat()])
def test_stabilizers(name, preset) -> None:
    make, x = NETWORKS[name]
    assert_as_one_by_one(build(make), x, [2, 0], own=preset, stabilizers=STABILIZERS)
    named = () if "residual" in name else (x,)
    name_map = presets.lrp_tutorial(*BOX)(build(make), *named)
    assert_as_one_by_one(build(make), x, [2, 0], own=name_map, stabilizers=STABILIZERS)


@pytest.mark.parametrize("attention", ["attnlrp", "cp"])
@pytest.mark.parametrize("make", [Attention, lambda: Layer(True), lambda: Layer(False)])
def test_attention(make, attention) -> None:
    rules = [presets.epsilon(0.1), presets.zero(), presets.epsilon_plus(), None]
    targets = [0, [3, 1]]
    options = {"attention": attention}
    assert_as_one_by_one(build(make), TOKEN_INPUT, targets, rules=rules, **options)
    options["own"] = presets.epsilon()
    assert_as_one_by_one(build(make), TOKEN_INPUT, targets, stabilizers=STABILIZERS, **options)


def test_attention_is_not_treated_alike() -> None:
    """Negative control of the above."""
    a, b = (
        LRP(build(Attention), attention=how).attribute_many(TOKEN_INPUT, [0])[0]
        for how in ("attnlrp", "cp")
    )
    assert not torch.equal(a, b)


@pytest.mark.parametrize("merge", [True, False])
def test_batch_norm_merged_or_not(merge) -> None:
    rules = [
        presets.epsilon_gamma_box(*BOX),
        [(["norm"], EpsilonRule, {"epsilon": 0.1})],
        presets.epsilon_plus(),
        [(["norm"], AlphaBetaRule, {}), (["first"], ZBoxRule, {"low": -6.0, "high": 6.0})],
    ]
    model = build(lambda: Residual(inplace=True))
    options = {"tolerance": 1e-13, "merge_batch_norm": merge}
    assert_as_one_by_one(model, IMAGES, [0, 4], rules=rules, **options)


def test_a_rule_on_a_pool_or_batch_norm_in_one_variant_only() -> None:
    """LRP-0, which the other variants have there, stays exact."""
    rules = [
        [(["pool"], EpsilonRule, {"epsilon": 0.2})],
        presets.zero(),
        [(["scale"], GammaRule, {"gamma": 0.5})],
        [(["first"], GammaRule, {})],
        [(["last_pool"], AlphaBetaRule, {})],
    ]
    assert_as_one_by_one(build(Several), IMAGES, [0, 1], rules=rules, tolerance=1e-13)


def test_lrp_0_of_a_pool_whose_output_is_0() -> None:
    pool = nn.AvgPool1d(2)
    model = nn.Sequential(nn.Upsample(scale_factor=1), pool, nn.Conv1d(1, 2, 1), nn.Flatten())
    x = torch.tensor([[[1.0, -1.0, 2.0, 3.0]], [[0.0, 1.0, 0.0, 0.0]]]).double()
    rules = [[(["1"], EpsilonRule, {"epsilon": 0.1})], [(["2"], EpsilonRule, {"epsilon": 0.1})]]
    assert_as_one_by_one(model.double(), x, [0, 1], rules=rules)


@pytest.mark.parametrize(
    "target",
    [(1, 2), [(0, 1), (1, 3)], [[(0, 1), (1, 3)], (1, 1)]],
    ids=["tuple", "list of tuples", "both"],
)
def test_tuples_of_inputs_deep_targets_and_further_arguments(target) -> None:
    targets = target if isinstance(target[0], list) else [target]
    x = torch.rand(2, 4).double(), torch.rand(2, 3).double()
    rules = [presets.epsilon(0.1), presets.zero(), presets.epsilon_plus_flat()]
    assert_as_one_by_one(build(TwoInputs), x, targets, 2.0, rules=rules)
    assert_as_one_by_one(build(TwoInputs), x, [*targets, (0, 0)], (torch.rand(2, 1),))


def test_target_none_for_one_score_per_sample() -> None:
    model = nn.Sequential(build(cnn), nn.Linear(6, 1).double(), nn.Flatten(0))
    assert_as_one_by_one(model, IMAGES, [None], rules=[presets.epsilon(), None])
    assert_as_one_by_one(model, IMAGES, [None, None])


@pytest.mark.parametrize("strict", [False, True])
def test_rules_on_the_modules(strict) -> None:
    model = build(Halves)
    model.stock.rule = captum_rules.GammaRule(0.3)
    model.left.rule = captum_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True)
    model.right.rule = AlphaBetaRule()
    rules = [None, presets.epsilon(0.1), None]
    x = torch.randn(3, 4).double()
    assert_as_one_by_one(model, x, [0, 1], rules=rules, strict=strict)
    (many,) = LRP(model).attribute_many(x, [1], stabilizers=[0.3, 0.5])
    for factor, actual in zip((0.3, 0.5), many, strict=True):
        model.stock.rule.STABILITY_FACTOR = model.left.rule.STABILITY_FACTOR = factor
        model.right.rule = AlphaBetaRule(stabilizer=factor)
        assert torch.equal(actual, LRP(model).attribute(x, 1))


def test_strict_refuses_fallbacks_and_leaves_others_alone() -> None:
    class Odd(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(super().forward(x))

    x = torch.randn(2, 4).double()
    with pytest.raises(FallbackError, match="cos_0"):
        LRP(build(lambda: Odd(nn.Linear(4, 2))), strict=True).attribute_many(x, [0, 1])
    assert_as_one_by_one(build(cnn), IMAGES, [0, 1], rules=RULES, strict=True)


# direct rules below which the mixed form runs ----------------------------------------------------


def test_a_direct_rule_deep_down_takes_passes_of_its_own() -> None:
    model = build(lambda: cnn(inplace=True))
    rules = [
        presets.epsilon(0.1),
        [(["3"], FlatRule, {})],
        presets.epsilon_gamma_box(*BOX),
        [(["6"], ZBoxRule, {"low": -20.0, "high": 20.0})],
    ]
    assert_as_one_by_one(model, IMAGES, [0, 3], rules=rules)
    assert forwards(model, lambda: LRP(model).attribute_many(IMAGES, [0, 3], rules=rules)) == 7


# half precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(dtype) -> None:
    model = build(lambda: Residual(inplace=True), dtype=dtype)
    last, box = (["last"], EpsilonRule, {"epsilon": 0.01}), {"low": -6.0, "high": 6.0}
    rules = [
        [(["first", "shared", "last"], EpsilonRule, {"epsilon": 0.1})],
        [(["first", "shared"], GammaRule, {"stabilizer": 0.01}), last],
        [
            (["first"], ZBoxRule, box | {"stabilizer": 0.01}),
            (["shared"], AlphaBetaRule, {"stabilizer": 0.01}),
            last,
        ],
    ]
    assert_as_one_by_one(model, IMAGES.to(dtype), [0, 1], rules=rules)
    some = [0.1, stabilizers.Clip(0.1), stabilizers.RootMeanSquare(0.1, floor=1e-3)]
    assert_as_one_by_one(model, IMAGES.to(dtype), [0, 1], own=presets.zero(), stabilizers=some)


def test_float16_runs_a_backward_pass_twice_where_it_overflows() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))).half()
    with torch.no_grad():
        model[2].weight[1] = 200.0
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).half()
    runs: list[float] = []
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        runs.append(float(args[2][0]))
        return grad(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", counted)
        LRP(model, presets.epsilon(0.01)).attribute_many(x, [0, 1, 2])
    assert [seed for seed in runs if seed in (1.0, 1024.0)] == [1024.0, 1024.0, 1.0, 1024.0]
    assert_as_one_by_one(model, x, [0, 1, 2, 1], own=presets.epsilon(0.01))


# not finite --------------------------------------------------------------------------------------


def pole() -> tuple[nn.Module, Tensor]:
    """Additive(0.5) has a pole at output 1 of the layer ``1``, and nowhere else."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 0.0], [0.0, 2.0]]))
    return model, torch.ones(2, 2).double()


@pytest.mark.parametrize("how", ["stabilizers", "rules", "targets"])
def test_not_finite_in_one_result_only(how) -> None:
    model, x = pole()
    bad = [(["1"], EpsilonRule, {"epsilon": 0.0, "stabilizer": stabilizers.Additive(0.5)})]
    given = {"stabilizers": [0.1, stabilizers.Additive(0.5)], "rules": [presets.zero(), bad]}
    own = {"rules": bad if how == "targets" else presets.zero()}
    given = {} if how == "targets" else {how: given[how]}
    ignoring = LRP(model, **own, nonfinite="ignore").attribute_many(x, [0, 1, 2], **given)
    with pytest.warns(NonFiniteRelevanceWarning, match=r"layer '1' under .*Additive") as caught:
        line = LRP(model, **own).attribute_many(x, [0, 1, 2], **given)  # the user's line
    assert len(line) == 3
    assert [w.filename for w in caught] == [__file__]
    results = [row if given else [row] for row in ignoring]
    flags = [[bool(r.isfinite().all()) for r in row] for row in results]
    assert flags == ([[True, True], [True, False], [True, True]] if given else [[1], [0], [1]])
    with pytest.raises(NonFiniteRelevanceError, match=r"layer '1' under .*Additive"):
        LRP(model, **own, nonfinite="raise").attribute_many(x, [0, 1, 2], **given)
    fine = LRP(model, **own, nonfinite="raise").attribute_many(x, [0, 2], **given)
    for before, after in zip(fine, [ignoring[0], ignoring[2]], strict=True):
        torch.testing.assert_close(before, after, rtol=1e-13, atol=1e-13)


def test_no_warning_where_all_is_finite() -> None:
    model, x = pole()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LRP(model).attribute_many(x, [0, 1, 2], stabilizers=[0.1, 0.2])
    assert not caught


# bad arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "given", "message"),
    [
        ([], {}, "targets is empty"),
        (iter(()), {}, "targets is empty"),
        ([0], {"rules": []}, "rules is empty"),
        ([0], {"stabilizers": []}, "stabilizers is empty"),
        ([0], {"stabilizers": [0.1], "rules": [None]}, "both stabilizers and rules"),
        ([0, 99, 1], {}, "target 99 does not fit"),
        ([0, [0, 1, 2], 1], {"rules": [None, presets.zero()]}, "does not fit"),
        ([None, 1], {}, "leaves 6 values per sample"),
    ],
)
def test_bad_arguments_leave_no_trace(targets, given, message) -> None:
    model = build(lambda: cnn(inplace=True))
    explainer = LRP(model, presets.epsilon_gamma_box(*BOX))
    expected, before = explainer.attribute(IMAGES, 0), state(model)
    with pytest.raises(InputError, match=message):
        explainer.attribute_many(IMAGES, targets, **given)
    assert state(model) == before
    assert torch.equal(explainer.attribute(IMAGES, 0), expected)


@pytest.mark.parametrize(
    ("targets", "given"),
    [(3, {}), (None, {}), ([0], {"stabilizers": 0.1}), ([0], {"rules": presets.epsilon()})],
)
def test_one_thing_where_several_belong_is_an_input_error(targets, given) -> None:
    with pytest.raises(InputError):
        LRP(build(cnn)).attribute_many(IMAGES, targets, **given)


def test_a_generator_of_targets() -> None:
    explainer = LRP(build(cnn))
    listed = explainer.attribute_many(IMAGES, [0, 1])
    drawn = explainer.attribute_many(IMAGES, (t for t in (0, 1)))
    assert len(drawn) == 2
    assert all(torch.equal(a, b) for a, b in zip(listed, drawn, strict=True))
