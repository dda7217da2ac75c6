"""Rules on sums: on a user's addition module, and by the name of a functional one."""

from collections.abc import Callable
from functools import partial

import captum.attr
import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    FlatRule,
    GammaRule,
    LayerLRP,
    PassRule,
    attach_rules,
    diagnose,
    plan,
    presets,
)
from captum_lrp_stab.errors import RuleError, RuleMapError
from tests.helpers import dense_formulas as reference
from tests.helpers.layers import RULES, STABILIZERS, relative_error
from tests.helpers.networks import build
from tests.helpers.studies import run

Forward = Callable[..., Tensor]


def in_place(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    y = a * 1
    y += b
    return y.sub_(c, alpha=0.5)


def constants(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return 0.3 + a - (b + torch.tensor([0.1, -0.2], dtype=a.dtype)) / 2 + c


SUMS: dict[str, Forward] = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - c,
    "add with alpha": lambda a, b, c: torch.add(a, b, alpha=-0.7),
    "rsub": lambda a, b, c: torch.rsub(a, c, alpha=2),
    "three terms": lambda a, b, c: a + b + c,
    "in a tree": lambda a, b, c: (a - b) * 0.5 + 2 * (c - 1),
    "python's sum": lambda a, b, c: sum([a, b, c]),
    "scaled by a tensor": lambda a, b, c: a * torch.tensor([0.5, -2.0], dtype=a.dtype) - b / 3,
    "negated": lambda a, b, c: -(a + b),
    "in place": in_place,
    "constants": constants,
    "broadcast": lambda a, b, c: a + b[:, :1] + c[:, :, :1] * 2,
    "stack and sum": lambda a, b, c: torch.stack([a, b, c]).sum(0),
    "stack and mean": lambda a, b, c: torch.mean(torch.stack([a, b, c], 2), dim=2, keepdim=True),
    "mean of two dimensions": lambda a, b, c: torch.cat([a, b], 1).mean((1, 2), keepdim=True),
    "sum of one": lambda a, b, c: torch.sum(c, dim=1),
    "cat": lambda a, b, c: torch.cat([a, c], 1),
    "stack": lambda a, b, c: torch.stack((a, b), dim=1),
}


class Summing(nn.Module):
    """A module of the user's own."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.function = forward

    def forward(self, *terms: Tensor) -> Tensor:
        return self.function(*terms)


class Weighted(nn.Module):
    """A sum of parts of the input, and a fixed weighted sum, so that its coefficients are known."""

    def __init__(self, forward: Forward, c: Tensor | float = 1.0) -> None:
        super().__init__()
        self.add, self.c = Summing(forward), c

    def terms(self, x: Tensor) -> Tensor:
        return self.add(*(x[:, i] for i in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.terms(x) * self.c).flatten(1).sum(1)


def case(name: str) -> tuple[nn.Module, reference.Layer, Tensor, Tensor]:
    """A model, its sum as a matrix, an input, and the relevance of the sum."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(3, 3, 4, 2, dtype=torch.float64, generator=generator) * 4 - 2
    model = Weighted(SUMS[name])
    z = model.terms(x)
    model.c = torch.rand(z.shape, dtype=torch.float64, generator=generator) * 2 - 1
    unit = torch.eye(24, dtype=torch.float64).reshape(24, 3, 4, 2)
    b = model.terms(torch.zeros_like(x[:1])).flatten()
    W = model.terms(unit).flatten(1).T - b[:, None]
    W[W.abs() < 1e-15] = 0
    return model, reference.Layer(W, b, W != 0), x, z * model.c


@pytest.mark.parametrize("rule_name", RULES)
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_under_a_rule_equals_the_dense_formula(name: str, rule_name: str) -> None:
    model, dense, x, R = case(name)
    pair = RULES[rule_name]
    for stabilizer, formula in (STABILIZERS[s] for s in ("signed", "quadratic-mean", "clip")):
        model.add.rule = pair.rule(stabilizer=stabilizer)
        expected = reference.batch(pair.formula, dense, x, R, formula)
        for optimize in (True, False):
            assert relative_error(LRP(model, optimize=optimize).attribute(x), expected) <= 1e-12


@pytest.mark.parametrize("form", ["relevance", "modified-forward"])
@pytest.mark.parametrize("rule_name", ["epsilon", "gamma", "alpha2-beta1"])
@pytest.mark.parametrize("name", SUMS)
def test_in_the_other_forms(name: str, rule_name: str, form: str) -> None:
    model, dense, x, R = case(name)
    pair = RULES[rule_name]
    stabilizer, formula = STABILIZERS["signed"]
    expected = reference.batch(pair.formula, dense, x, R, formula)
    rule = pair.rule(stabilizer=stabilizer)
    done = run(model, x, form, {"add": rule}, target=None)
    assert relative_error(done.relevances[0], expected) <= 1e-12


# Captum's example --------------------------------------------------------------------------------


class Skip(nn.Module):
    """A skip connection with an addition module, as in Captum's documentation."""

    def __init__(self, forward: Forward = lambda a, b: a + b) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight.data.fill_(5)
        self.add = Summing(forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.linear(x), x)


X = torch.tensor([[2.0, 3.0]])
DOCUMENTED = torch.tensor([[10.0, 18.0]])


@pytest.mark.parametrize("rule", [EpsilonRule, captum_rules.EpsilonRule])
@pytest.mark.parametrize("on_modules", [True, False])
def test_captums_skip_connection_has_its_documented_relevance(rule, on_modules: bool) -> None:
    model = Skip()
    if on_modules:
        model.add.rule = rule()
    lrp = LRP(model, None if on_modules else [(["add"], rule, {})])
    for _ in range(2):  # the rule stays
        torch.testing.assert_close(lrp.attribute(X, target=1), DOCUMENTED)
    if on_modules and rule is captum_rules.EpsilonRule:
        stock = captum.attr.LRP(model).attribute(X.clone(), target=1)
        torch.testing.assert_close(stock.detach(), DOCUMENTED)


def test_attached_to_stock_captum_a_users_addition_is_served() -> None:
    model = Skip()
    with attach_rules(model, [(["add"], GammaRule, {"gamma": 0.5, "stabilizer": 1e-9})]):
        stock = captum.attr.LRP(model).attribute(X.clone(), target=1).detach()
    gamma = [(["add"], GammaRule, {"gamma": 0.5, "stabilizer": 1e-9})]
    torch.testing.assert_close(stock, LRP(model, gamma).attribute(X, target=1))
    other = Skip(lambda a, b: a - b)
    with attach_rules(other, [(["add"], EpsilonRule, {})]):
        with pytest.raises(RuleError, match=r"on layer 'add'.*modules that add their inputs"):
            captum.attr.LRP(other).attribute(X.clone(), target=1)


def test_relevance_of_the_module_and_of_its_inputs() -> None:
    model = Skip()
    model.add.rule = EpsilonRule(0.25)
    R = LayerLRP(model, model.add).attribute(X, target=1)
    torch.testing.assert_close(R, torch.tensor([[0.0, 28.0]]))
    left, right = LayerLRP(model, model.add).attribute(X, target=1, attribute_to_layer_input=True)
    torch.testing.assert_close(left, torch.tensor([[0.0, 25 * 28 / 28.25]]))
    torch.testing.assert_close(right, torch.tensor([[0.0, 3 * 28 / 28.25]]))


# names -------------------------------------------------------------------------------------------


class Named(nn.Module):
    """Functional sums."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) - self.b(x)
        y = y + self.a(x).relu()
        y = torch.cat([y, self.b(x)], -1)
        return self.head(y.mean(1))


class Modules(Named):
    """The same with modules."""

    def __init__(self) -> None:
        super().__init__()
        self.sub, self.add = Summing(lambda a, b: a - b), Summing(lambda a, b: a + b)
        self.cat = Summing(lambda a, b: torch.cat([a, b], -1))
        self.mean = Summing(lambda y: y.mean(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.add(self.sub(self.a(x), self.b(x)), self.a(x).relu())
        return self.head(self.mean(self.cat(y, self.b(x))))


RULE = (GammaRule, {"gamma": 0.5, "stabilizer": 0.1})
INPUT = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["sub", "add", "cat", "mean"])
def test_a_functional_sum_by_its_name_is_the_module(name: str) -> None:
    functional, modules = build(Named), build(Modules)
    actual = LRP(functional, [([f"{name}_0"], *RULE)]).attribute(INPUT, target=1)
    expected = LRP(modules, [([name], *RULE)]).attribute(INPUT, target=1)
    assert torch.equal(actual, expected)
    without = LRP(functional).attribute(INPUT, target=1)
    assert relative_error(actual, without) > 1e-3
    rows = {row.name: row.rule for row in plan(functional, INPUT, [([f"{name}_0"], *RULE)]).rows}
    assert rows[f"{name}_0"] == "GammaRule"
    assert [r for n, r in rows.items() if n.endswith("_0") and n != f"{name}_0"].count("LRP-0") >= 2


def test_a_mean_that_is_subtracted_is_a_sum_of_its_own() -> None:
    """Not each of its terms for each element, which would be the square of them."""
    centred = Summing(lambda y: y - y.mean(-1, keepdim=True))
    model = nn.Sequential(nn.Flatten(), centred).double()
    x = torch.randn(1, 6000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    relevance = LRP(model, [(["1"], EpsilonRule, {})]).attribute(x, target=5)
    zero = LRP(model).attribute(x, target=5)
    assert relative_error(relevance, zero) <= 1e-4


def test_several_rules_in_one_pass() -> None:
    model = build(Named)
    maps = [[(["add_0"], EpsilonRule, {"epsilon": e})] for e in (0.1, 0.5)] + [[]]
    (many,) = LRP(model).attribute_many(INPUT, [1], rules=maps)
    for one, rules in zip(many, maps, strict=True):
        assert relative_error(one, LRP(model, rules or None).attribute(INPUT, target=1)) <= 1e-12


def test_a_sum_above_which_a_rule_gives_relevance() -> None:
    """FlatRule on the sum: what it reads runs in relevance form."""
    model = build(Modules)
    actual = LRP(model, [(["add"], FlatRule, {"stabilizer": 0.0})]).attribute(INPUT, target=1)
    R = LayerLRP(model, "add", presets.zero()).attribute(INPUT, target=1)
    chosen = [(["add"], FlatRule, {"stabilizer": 0.0}), *presets.zero()(model)]
    parts = LayerLRP(model, "add", chosen).attribute(INPUT, target=1, attribute_to_layer_input=True)
    for part in parts:
        torch.testing.assert_close(part, R / 2)
    assert actual.isfinite().all()


# what a module with a rule runs ------------------------------------------------------------------


class Mixed(nn.Module):
    """Two sums and a concatenation around a layer, in one module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.rand(3, 8) - 0.5), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x + self.b[:4], x], -1)
        return nn.functional.linear(y, self.w) + x[..., :3] * 2


def test_a_rule_of_a_module_with_layers_is_for_these_alone() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), Mixed()))
    rows = {row.name: row.rule for row in plan(model, INPUT[:, 0], [(["1"], *RULE)]).rows}
    assert rows["1"] == "GammaRule"
    assert {n: r for n, r in rows.items() if n.startswith("1.")} == {
        "1.add_0": "LRP-0",
        "1.getitem_0": "moved",
        "1.cat_0": "moved",
        "1.mul_0": "LRP-0",
        "1.add_1": "LRP-0",
    }
    named = LRP(model, [(["1"], *RULE)]).attribute(INPUT[:, 0], target=1)
    functional = LRP(model, [(["1.linear_0"], *RULE)]).attribute(INPUT[:, 0], target=1)
    assert torch.equal(named, functional)
    for form in ("relevance", "modified-forward"):
        one, other = (
            run(model, INPUT[:, 0], form, {n: RULE[0](**RULE[1])}).relevances[0]
            for n in ("1", "1.linear_0")
        )
        assert torch.equal(one, other)


def test_what_a_module_runs_may_be_known_late_in_a_segment_too() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), Mixed(), nn.Linear(3, 2)))
    named, x = [(["1"], *RULE)], INPUT[:, 0]
    expected = LRP(model, named).attribute(x, target=1)
    assert torch.equal(LRP(model, named, checkpoint=["1"]).attribute(x, target=1), expected)
    layer = LayerLRP(model, [model[0], "1"], named).attribute(x, target=1)
    assert (
        relative_error(
            layer[1].sum(),
            LayerLRP(model, "2", named).attribute(x, target=1, attribute_to_layer_input=True).sum(),
        )
        <= 1e-12
    )
    flat = [*named, (["2"], FlatRule, {})]
    functional = [(["1.linear_0"], *RULE), (["2"], FlatRule, {})]
    assert torch.equal(
        LRP(model, flat).attribute(x, target=1), LRP(model, functional).attribute(x, target=1)
    )


def test_an_addition_used_twice_is_two_sums() -> None:
    class Twice(nn.Module):
        def __init__(self, *adds: nn.Module) -> None:
            super().__init__()
            self.adds = nn.ModuleList(adds)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = x.unbind(1)
            return self.adds[-1](self.adds[0](a, b), c)

    def add() -> nn.Module:
        return Summing(lambda a, b: a + b)

    x = INPUT[:, :3]
    once = LRP(Twice(add()), [(["adds.0"], *RULE)]).attribute(x, target=1)
    two = LRP(Twice(add(), add()), [(["adds.0", "adds.1"], *RULE)]).attribute(x, target=1)
    assert torch.equal(once, two)
    three = Weighted(SUMS["three terms"], torch.eye(4, dtype=x.dtype)[1])
    one = LRP(three, [(["add"], *RULE)]).attribute(x)
    assert relative_error(once, one) > 1e-3  # a sum of three terms is another


def test_several_additions_are_one_row_of_a_plan() -> None:
    model = Weighted(SUMS["in a tree"])
    x = torch.ones(1, 3, 4, 2)
    rows = [row for row in plan(model, x, [(["add"], *RULE)]).rows if row.rule == "GammaRule"]
    assert [row.name for row in rows] == ["add"]
    assert not [r for r in plan(model, x, [(["add"], *RULE)]).rows if r.name.startswith("add.")]


# what cannot be ----------------------------------------------------------------------------------


def test_the_remedy_depends_on_where_the_rule_is_from() -> None:
    model = Skip(lambda a, b: a * b)
    with pytest.raises(RuleError, match=r"on layer 'add' .*; leave the layer out of the name_map$"):
        LRP(model, [(["add"], EpsilonRule, {})]).attribute(X, target=1)
    model.add.rule = EpsilonRule()
    with pytest.raises(RuleError, match=r"on layer 'add' .*; delete its rule$"):
        LRP(model).attribute(X, target=1)
    with pytest.raises(RuleError, match="'mul_0': the pass ran no layer or sum of this name"):
        LRP(Skip(), [(["mul_0"], EpsilonRule, {})]).attribute(X, target=1)
    with pytest.raises(RuleError, match=r"'add\.mul_0': this mul is neither a layer with weights"):
        LRP(Skip(lambda a, b: a * b), [(["add.mul_0"], EpsilonRule, {})]).attribute(X, target=1)
    with pytest.raises(RuleMapError, match="'add_0' is a functional call"):
        attach_rules(model, [(["add_0"], EpsilonRule, {})])


def test_pass_rule_on_a_sum_of_two_is_refused() -> None:
    model = Skip()
    model.add.rule = PassRule()
    with pytest.raises(RuleError, match=r"PassRule on layer 'add'.*needs one input of the output"):
        LRP(model).attribute(X, target=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_and_a_sample_alone(dtype: torch.dtype) -> None:
    model, dense, x, R = case("in a tree")
    model.c = model.c.to(dtype)
    model.add.rule = GammaRule(0.25, 0.1)
    given = x.to(dtype)
    relevance = LRP(model).attribute(given)
    assert relevance.dtype == dtype
    expected = reference.batch(
        partial(reference.gamma, gamma=0.25), dense, x, R, reference.signed(0.1)
    )
    assert relative_error(relevance, expected) <= 30 * torch.finfo(dtype).eps
    for i in range(len(x)):
        alone = LRP(
            Weighted(model.add.function, model.c[i : i + 1]),
            [(["add"], GammaRule, {"stabilizer": 0.1})],
        )
        assert torch.equal(alone.attribute(given[i : i + 1])[0], relevance[i])


def test_diagnosis_of_a_ruled_sum() -> None:
    model = build(Modules)
    done = diagnose(model, INPUT, 1, [(["add"], EpsilonRule, {"epsilon": 0.01})])
    (record,) = [layer for layer in done.layers if layer.name == "add"]
    assert record.rule.startswith("EpsilonRule")
    assert done.ledger.closing < 1e-9
