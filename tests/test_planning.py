"""The plan: one row for each operation."""

import json

import pandas
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn
from torchvision.models import resnet18

from captum_lrp_stab import LRP, LayerLRP, attach_rules, plan, presets
from captum_lrp_stab.errors import FallbackError, InputError, ModelError, RuleError, RuleMapError
from captum_lrp_stab.planning import Plan, PlannedOperation
from captum_lrp_stab.rules.standard import EpsilonRule, GammaRule, ZeroRule
from captum_lrp_stab.stabilizers import Clip, Identity, Signed

EPSILON = "epsilon=1e-06, signed=True"
DEFAULT = {
    "rule": "EpsilonRule (default)",
    "parameters": EPSILON,
    "stabilizer": repr(Identity()),
}


def row(index: int, name: str, kind: str, shape: tuple[int, ...], **others) -> PlannedOperation:
    empty = {"rule": "", "parameters": "", "stabilizer": "", "batch_norm": "", "fallback": ""}
    return PlannedOperation(index=index, name=name, type=kind, shape=shape, **(empty | others))


def image_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.BatchNorm1d(5),
        nn.Linear(5, 2),
    ).eval()


IMAGE = torch.zeros(2, 3, 8, 8)
MAP = [
    (["0"], GammaRule, {"gamma": 0.5, "stabilizer": Clip(0.1)}),
    (["3"], EpsilonRule, {"epsilon": 0.25}),
    (["5", "8"], ZeroRule, {"stabilizer": 1e-3}),
]


def test_rows_are_the_operations_in_order() -> None:
    zero = {"rule": "ZeroRule", "stabilizer": repr(Signed(1e-3))}
    scaled = "gamma=0.5, bias='scaled'"
    gamma = {"rule": "GammaRule", "parameters": scaled, "stabilizer": repr(Clip(0.1))}
    pool = {"parameters": "epsilon=0.25, signed=True", "stabilizer": repr(Identity())}
    assert plan(image_net(), IMAGE, MAP).rows == (
        row(0, "0", "Conv2d", (2, 4, 6, 6), **gamma, batch_norm="1"),
        row(1, "2", "ReLU", (2, 4, 6, 6), rule="passed"),
        row(2, "3", "AvgPool2d", (2, 4, 3, 3), rule="EpsilonRule", **pool),
        row(3, "4", "Flatten", (2, 36), rule="moved"),
        row(4, "5", "Linear", (2, 5), batch_norm="6", **zero),
        row(5, "7", "ReLU", (2, 5), rule="passed"),
        row(6, "8", "BatchNorm1d", (2, 5), **zero),  # it follows a ReLU, and merges with nothing
        row(7, "9", "Linear", (2, 2), **DEFAULT),
    )


def test_batch_norm_stays_apart_if_asked_to() -> None:
    rows = plan(image_net(), IMAGE, MAP, merge_batch_norm=False).rows
    assert [r.name for r in rows] == [str(i) for i in range(10)]
    assert [rows[i].rule for i in (1, 6)] == ["LRP-0", "LRP-0"]  # a bare batch norm
    assert not any(r.batch_norm for r in rows)


def test_rules_on_the_modules_are_planned() -> None:
    model = image_net()
    model[0].rule = GammaRule(0.5)
    model[9].rule = captum_rules.GammaRule()
    model[2].rule = captum_rules.EpsilonRule()  # on a ReLU it has no effect, in Captum either
    rows = plan(model, IMAGE).layers
    assert [(r.name, r.rule) for r in rows] == [
        ("0", "GammaRule"),
        ("5", "EpsilonRule (default)"),
        ("9", "captum.GammaRule"),
    ]


def test_rules_attached_for_stock_captum_are_planned() -> None:
    model = image_net()
    with attach_rules(model, MAP):
        attached = plan(model, IMAGE)
    assert attached.rows[1:4] == plan(model, IMAGE, MAP).rows[1:4]
    assert attached.rows[0].rule == "GammaRule"
    assert attached.rows[0].batch_norm == "1 (its EpsilonRule has no effect)"
    assert attached.rows[7] == row(7, "9", "Linear", (2, 2), **DEFAULT | {"rule": "EpsilonRule"})


def test_preset_is_planned_on_a_residual_network() -> None:
    planned = plan(resnet18().eval(), torch.zeros(1, 3, 32, 32), presets.epsilon_plus())
    rows = planned.layers
    assert len(rows) == 22
    others = [r for r in planned.rows if r not in rows]
    assert {(r.type, r.rule) for r in others} == {
        ("ReLU", "passed"),
        ("MaxPool2d", "moved"),
        ("add", "LRP-0"),
        ("flatten", "moved"),
    }
    assert [r.name for r in others if r.type == "add"][:2] == ["layer1.0.add_0", "layer1.1.add_0"]
    by_name = {r.name: r for r in rows}
    assert by_name["conv1"].batch_norm == "bn1"
    assert by_name["layer2.0.downsample.0"].batch_norm == "layer2.0.downsample.1"
    assert {r.rule for r in rows if r.type == "Conv2d"} == {"ZPlusRule"}
    assert {r.rule for r in rows if r.type != "Conv2d"} == {"EpsilonRule"}
    assert not any(r.fallback for r in rows)


class Attention(nn.Module):
    """Functional, nested, reused: names are made of the module and the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        mixed = F.softmax(x @ self.project(x).mT, dim=-1) @ self.project(x)
        return F.linear(torch.exp(mixed + x), torch.ones(2, 4)).sum(1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return (self.block(x) / x.sum()).reciprocal()


TOKENS = torch.ones(2, 3, 4)
UNKNOWN = "no LRP rule is known for this operation"
FALLBACKS = {
    "block.exp_0": ("exp", UNKNOWN),
    "reciprocal_0": ("reciprocal", UNKNOWN),
}


def test_fallbacks_and_functional_operations_are_named() -> None:
    planned = plan(Model(), TOKENS)
    assert {r.name: (r.type, r.fallback) for r in planned.fallbacks} == FALLBACKS
    default = DEFAULT["rule"]
    assert [(r.name, r.type, r.rule) for r in planned.rows] == [
        ("block.norm", "LayerNorm", "statistics held constant"),
        ("block.project", "Linear", default),
        ("block.mT_0", "mT", "moved"),
        ("block.matmul_0", "matmul", "1/2 to each factor"),
        ("block.softmax_0", "softmax", "softmax by its gradient"),
        ("block.project", "Linear", default),
        ("block.matmul_1", "matmul", "1/2 to each factor"),
        ("block.add_0", "add", "LRP-0"),
        ("block.exp_0", "exp", "gradient"),
        ("block.linear_0", "linear", default),
        ("block.sum_0", "sum", "LRP-0"),
        ("sum_0", "sum", "constant"),
        ("div_0", "div", "divisor held constant"),
        ("reciprocal_0", "reciprocal", "gradient"),
    ]


def test_attention_weights_held_constant_are_planned() -> None:
    rows = {r.name: r.rule for r in plan(Model(), TOKENS, attention="cp").rows}
    assert rows["block.matmul_0"] == rows["block.softmax_0"] == "constant"
    assert rows["block.matmul_1"] == "gate held constant"
    with pytest.raises(RuleError, match="attention is 'rollout'; give 'attnlrp' or 'cp'"):
        plan(Model(), TOKENS, attention="rollout")


@pytest.mark.parametrize(
    "explainer", [LRP, lambda m, **k: LayerLRP(m, m.block, **k)], ids=["LRP", "LayerLRP"]
)
def test_strict_names_the_operation(explainer) -> None:
    model = Model()
    with pytest.raises(FallbackError) as raised:
        explainer(model, strict=True).attribute(TOKENS, target=1)
    message = str(raised.value)
    assert message.startswith("2 operations would get their plain gradient: ")
    for name, (kind, reason) in FALLBACKS.items():
        assert f"{name} ({kind}: {reason})" in message
    assert message.endswith("; leave out strict=True to allow it")
    relevance = explainer(model, fallbacks="ignore").attribute(TOKENS, target=1)
    assert relevance.isfinite().all()


def test_strict_allows_what_is_exact() -> None:
    relevance = LRP(image_net(), MAP, strict=True).attribute(torch.ones(2, 3, 8, 8), target=1)
    assert relevance.shape == (2, 3, 8, 8)


def test_json_and_text_tell_the_same() -> None:
    planned = plan(image_net(), IMAGE, MAP)
    entries = json.loads(planned.to_json())
    for entry in entries:
        entry["shape"] = tuple(entry["shape"])
    assert [PlannedOperation(**entry) for entry in entries] == [*planned.rows]
    header, *lines = str(planned).splitlines()
    columns = [*PlannedOperation.__dataclass_fields__]
    assert header.split() == columns == str(Plan(())).split()
    starts = [header.index(column) for column in columns]
    for line, planned_row in zip(lines, planned.rows, strict=True):
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert cells == [str(value) for value in vars(planned_row).values()]


def test_plan_touches_nothing_and_needs_no_target() -> None:
    model = image_net()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        assert plan(model, (IMAGE,), MAP) == plan(model, IMAGE, MAP)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "inputs", "rules", "error", "message"),
    [
        (image_net(), IMAGE, [(["99"], ZeroRule, {})], RuleMapError, "names '99'"),
        (image_net(), IMAGE.int(), MAP, InputError, "dtype torch.int32"),
        (image_net().train(), IMAGE, MAP, ModelError, r"call model.eval\(\)"),
    ],
    ids=["name_map", "input", "train-mode"],
)
def test_errors(model, inputs, rules, error, message) -> None:
    with pytest.raises(error, match=message):
        plan(model, inputs, rules)


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return F.linear(x * factor, torch.ones(2, 4))


def test_further_arguments_of_the_model() -> None:
    factor = torch.ones(4, requires_grad=True) * 2  # with a graph of its own: no data all the same
    rows = plan(Scaled(), torch.ones(2, 4), additional_forward_args=factor).rows
    assert rows == (
        row(0, "mul_0", "mul", (2, 4), rule="LRP-0"),
        row(1, "linear_0", "linear", (2, 2), **DEFAULT),
    )


class Swish(torch.autograd.Function):
    """What memory-saving activations are made of: no torch function, seen in the graph only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(x)


def test_custom_autograd_functions_are_listed_and_refused() -> None:
    class Swishing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return Swish.apply(self.layer(x))

    model, x = Swishing(), torch.ones(1, 3)
    (fallback,) = plan(model, x).fallbacks
    assert (fallback.name, fallback.type) == ("Swish", "autograd.Function")
    with pytest.raises(FallbackError, match="Swish"):
        LRP(model, strict=True).attribute(x, target=0)


def test_a_plan_makes_a_data_frame() -> None:
    frame = pandas.DataFrame(plan(image_net(), IMAGE, MAP).rows)
    assert list(frame.columns) == [*PlannedOperation.__dataclass_fields__]
    assert frame["shape"][0] == (2, 4, 6, 6)
    assert (frame["rule"] == "passed").sum() == 2


def test_a_rule_of_a_merged_batch_norm_is_said_to_have_no_effect() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    name_map = [(["0"], EpsilonRule, {}), (["1"], GammaRule, {})]
    (row,) = plan(model, torch.ones(1, 3), name_map).rows
    assert row.batch_norm == "1 (its GammaRule has no effect)"
