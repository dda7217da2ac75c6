"""A user's script is clean under `mypy --strict`, and its mistakes of type are found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import captum_lrp_stab

GOOD = """
from collections.abc import Callable

import torch
from captum.attr import LRP as CaptumLRP  # type: ignore[import-untyped]  # has no types
from torch import Tensor, nn

import captum_lrp_stab
from captum_lrp_stab import (
    LRP,
    AlphaBetaRule,
    EpsilonRule,
    FlatRule,
    GammaRule,
    LayerFilter,
    LayerLRP,
    PassRule,
    WSquareRule,
    ZBoxRule,
    ZeroRule,
    ZPlusRule,
    attach_rules,
    compare,
    diagnose,
    plan,
    presets,
    stabilizers,
    types,
    visualize,
)
from captum_lrp_stab.diagnosis import advise, sweep
from captum_lrp_stab.errors import LRPError, NonFiniteRelevanceError
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.rules import Affine, Group, Rule, Term
from captum_lrp_stab.testing import (
    assert_agrees,
    assert_rule_contract,
    assert_stabilizer_contract,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(torch.relu(self.first(x)).mean((2, 3))))


def own_stabilizer(z: Tensor) -> Tensor:
    return z + 1e-3 * z.sign()


class OwnStabilizer(stabilizers.Stabilizer):
    @property
    def is_elementwise(self) -> bool:
        return True

    def stabilize(self, z: Tensor, magnitude: Tensor | None = None) -> Tensor:
        return z.abs() + 1e-3


class OwnRule(Rule):
    def __init__(
        self, scale: float = 1.0, stabilizer: stabilizers.StabilizerLike = 1e-6
    ) -> None:
        super().__init__(stabilizer)
        self.scale = scale

    def groups(self, op: Affine, x: Tensor) -> tuple[Group, ...]:
        return (Group((Term(op.weight * self.scale, op.bias),)),)


model = Net().eval()
x = torch.rand(2, 3, 8, 8)

# maps, written the ways people write them
layers = LayerFilter(model)
selected: list[str] = layers(lambda n: n == 0, target_types=types.Convolution)
layers.set_target_types(types.Linear)
rules = [
    (selected, ZBoxRule, {"low": torch.zeros(1, 3, 1, 1), "high": 1.0}),
    (["last"], GammaRule, {"gamma": 0.25, "stabilizer": stabilizers.Clip(1e-6)}),
]
two_alike = [(["first"], EpsilonRule, {"epsilon": 0.25}), (["last"], EpsilonRule, {})]
one = [(["first", "last"], EpsilonRule, {"stabilizer": own_stabilizer})]
no_parameters: NameMap = [(["first", "last"], ZeroRule, {})]
own = [(["first", "last"], OwnRule, {"scale": 2.0, "stabilizer": OwnStabilizer()})]
appended: NameMap = []
appended.append((["first"], WSquareRule, {}))
appended.append((["last"], FlatRule, {}))


def by_model(net: nn.Module) -> NameMap:
    return [([name for name, _ in net.named_children()], ZPlusRule, {})]


relevance: Tensor = LRP(model, rules).attribute(x, target=1)
assert_rule_contract(OwnRule(2.0), conserves=False)
assert_stabilizer_contract(own_stabilizer, protects=False)
figure = visualize.heatmap(relevance, x, score=1.0, title="one", scale="cubic")
figure.savefig("heatmap.png")
visualize.heatmaps({"one": relevance}, shared=False)
visualize.channels(relevance, names=["red", "green", "blue"])
visualize.grid({"row": {"column": relevance}}, x)
visualize.rules_by_stabilizers(
    model, x, 1, {"zero": presets.zero(), "mine": rules}, {"signed": 1e-6, "own": own_stabilizer}
)
relevance, delta = LRP(model, two_alike).attribute(x, 1, return_convergence_delta=True)
for name_map in (rules, two_alike):
    LRP(model, name_map, attention="cp", strict=True, nonfinite="raise").attribute(x, target=[0, 1])
LRP(model, one).attribute((x,), target=torch.tensor([0, 1]))
LRP(model, no_parameters, merge_batch_norm=False, checkpoint=["first"]).attribute(x, target=1)
LRP(model, own).attribute(x, target=1, internal_batch_size=1)
LRP(model, appended)
LRP(model, by_model)
LRP(model, presets.epsilon_gamma_box(low=0.0, high=1.0))
LRP(model, [(["first"], AlphaBetaRule, {"alpha": 2.0, "beta": 1.0})])
LRP(model, [(["first"], AlphaBetaRule, {"alpha": 2, "beta": 1}), (["last"], ZPlusRule, {})])
edited = presets.epsilon_plus()(model)
edited.append((["relu_0"], PassRule, {}))
edited += two_alike
LRP(model, edited)
many: list[Tensor] = LRP(model).attribute_many(x, targets=[0, 1])
both = LRP(model).attribute_many(
    x, [0], stabilizers=[stabilizers.Signed(1e-6), 1e-3, own_stabilizer, OwnStabilizer()]
)
sets = LRP(model).attribute_many(x, [0], rules=[rules, presets.zero(), None])

inner: Tensor = LayerLRP(model, model.first, rules).attribute(x, target=1)
LayerLRP(model, "relu_0").attribute(x, target=1, attribute_to_layer_input=True)
LayerLRP(model, ["first", model.last], presets.zero())
LayerLRP(model, [model.first, model.last])
LayerLRP(model, ["first", "last"])

with attach_rules(model, rules) as attached:
    CaptumLRP(model).attribute(x.requires_grad_(), target=1)
    kinds: list[str] = [type(rule).__name__ for rule in attached.rules.values()]
attach_rules(model, two_alike).restore()

planned = plan(model, x, presets.epsilon())
print(planned, [layer.rule for layer in planned.layers], planned.fallbacks, planned.to_json())

done = compare(model, x, 1, presets.epsilon(), "captum_driver")
print(done.verdict, done.overall.nonfinite, done.first and done.first.name, done.facts())
compare(model, x, 1, rules, LRP(model, two_alike))
assert_agrees(model, x, 1, two_alike, "float64", known=["eps of merged batch norms"])

found = diagnose(model, x, 1, rules, form="relevance")
verdict: str = found.verdict
if found.origin is not None and found.origin.neuron is not None:
    print(found.origin.name, found.origin.neuron.index)
if found.cause is not None:
    print(found.cause.kind)
advice = advise(model, x, 1, rules, form="relevance")
print([change.layer for change in advice.changes], advice.is_stable, advice.holds)
print(sweep(model, x, 1, presets.epsilon()).parameter)

choices: dict[str, stabilizers.StabilizerLike] = {
    "signed": stabilizers.Signed(1e-6, relative=True),
    "clip": stabilizers.Clip(1e-6),
    "rounding": stabilizers.RoundingAware(4.0),
    "rms": stabilizers.RootMeanSquare(1e-6),
    "additive": stabilizers.Additive(1e-6),
    "none": stabilizers.Identity(),
    "number": 1e-6,
    "own": own_stabilizer,
}
functions: list[Callable[[Tensor], Tensor]] = [stabilizers.Signed(1e-6), own_stabilizer]
for stabilizer in choices.values():
    EpsilonRule(epsilon=0.25, signed=False, stabilizer=stabilizer)
try:
    LRP(model, rules, nonfinite="raise").attribute(x, target=1)
except NonFiniteRelevanceError as error:
    print(error)
except LRPError:
    raise
version: str = captum_lrp_stab.__version__
"""

# Each line with a mistake says which one mypy is to find; there are no others.
BAD = """
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP, EpsilonRule, GammaRule, LayerFilter, LayerLRP, attach_rules, compare, diagnose, plan,
    presets, stabilizers,
)
from captum_lrp_stab.rules.base import Rule

model = nn.Sequential(nn.Linear(4, 2))
x = torch.ones(1, 4)
EpsilonRule(epsilon="1e-6")  # error: arg-type
GammaRule(gama=0.25)  # error: call-arg
GammaRule(bias="none")  # error: arg-type
EpsilonRule(stabilizer="signed")  # error: arg-type
stabilizers.Signed("small")  # error: arg-type
stabilizers.Signd(1e-6)  # error: attr-defined
presets.epsilon_minus()  # error: attr-defined
LRP(model, [("0", EpsilonRule, {})])  # error: list-item
LRP(model, attention="none")  # error: arg-type
LRP(x)  # error: arg-type
LRP(model).attribute(x, target=1, batch=1)  # error: call-arg
LRP(model).attribute_many(x)  # error: call-arg
LayerLRP(model, 0)  # error: arg-type
LayerFilter(model)("0")  # error: arg-type
attach_rules(model, "epsilon")  # error: arg-type
plan(model, x).layrs  # error: attr-defined
compare(model, x, 1, tolerance="none")  # error: arg-type
diagnose(model, x, 1).verdikt  # error: attr-defined
wrong: int = diagnose(model, x, 1).verdict  # error: assignment


def not_a_stabilizer(z: Tensor) -> str:
    return ""


EpsilonRule(stabilizer=not_a_stabilizer)  # error: arg-type


class OwnRule(Rule):
    def groups(self, op: int, x: Tensor) -> int:  # error: override
        return 0
"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, int, str]]:
    """File, line and code of all that mypy reports on both scripts, outside the source tree."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    # mypy takes this path for one of installed packages and looks for py.typed there; it does not
    # see an editable install otherwise
    path = str(Path(captum_lrp_stab.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "good.py", "bad.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "MYPYPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = re.findall(r"^(.+?):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    assert f"Found {len(lines)} error" in done.stdout
    return {(name, int(line), code) for name, line, code in lines}


@pytest.mark.slow
def test_a_users_script_is_clean(reported) -> None:
    assert {entry for entry in reported if entry[0] != "bad.py"} == set()


@pytest.mark.slow
def test_mistakes_are_found(reported) -> None:
    expected = {
        ("bad.py", number, code)
        for number, line in enumerate(BAD.splitlines(), 1)
        for code in re.findall(r"# error: ([\w-]+)$", line)
    }
    assert len(expected) > 20
    assert {entry for entry in reported if entry[0] == "bad.py"} == expected


def test_every_public_name_is_used() -> None:
    named = set(re.findall(r"\w+", GOOD))
    assert set(captum_lrp_stab.__all__) <= named
