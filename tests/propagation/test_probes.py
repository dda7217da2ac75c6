"""LayerLRP looks without changing what it sees: aliases, writes in place, keywords, structures."""

import gc
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, GammaRule, LayerLRP, ZBoxRule, plan, presets, zoo
from captum_lrp_stab.errors import ModelError
from captum_lrp_stab.propagation.probes import Probe
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Pair = namedtuple("Pair", "first second")


class Net(nn.Module):
    """A forward pass given as a function of the module and the input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.c, self.act = nn.Linear(6, 3), nn.ReLU(inplace=True)
        self.mha = nn.MultiheadAttention(6, 2, batch_first=True)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def add_and_go_on(s, x):
    h = s.a(x)
    k = h.add_(x)
    return s.c(h) + k.sum(1, keepdim=True)


def add_and_drop_the_result(s, x):
    h = s.a(x)
    h.add_(x)
    return s.c(h)


def write_through_a_view(s, x):
    h = s.a(x)
    v = h[:, :3]
    v.mul_(3)
    return s.c(h) + v.sum(1, keepdim=True)


def act_and_go_on(s, x):
    h = s.a(x)
    y = s.act(h)
    return s.c(h) + y.sum(1, keepdim=True)


def set_a_part(s, x):
    h = s.a(x).clone()
    h[:, :2] = x[:, 2:4]
    return s.c(h)


def attend(s, x):
    return s.c(s.mha(query=x[None], key=x[None], value=x[None])[0][0])


def attend_to_itself(s, x):
    x = x[None]
    return s.c(s.mha(x, x, x, need_weights=False)[0][0])


PLACES = {  # forward pass: where to look
    "add": (add_and_go_on, "add_0"),
    "add, result dropped": (add_and_drop_the_result, "add_0"),
    "view": (write_through_a_view, "c"),
    "activation": (act_and_go_on, "act"),
    "part": (set_a_part, "setitem_0"),
    "identity": (lambda s, x: s.c(F.dropout(s.a(x), training=False).add_(1)), "dropout_0"),
    "contiguous": (lambda s, x: s.c((lambda h: h.contiguous() + h)(s.a(x))), "contiguous_0"),
    "keywords": (lambda s, x: s.c(input=s.a(input=x)), "c"),
    "attention by keywords": (attend, "mha"),
    "attention": (attend_to_itself, "mha"),
}


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("name", PLACES)
def test_looking_changes_nothing(name, at_input) -> None:
    function, place = PLACES[name]
    model = build(lambda: Net(function))
    rules = [(["a", "c"], GammaRule, {})]
    seen = LayerLRP(model, ["c", place, "a"], rules)
    is_attention = "attention" in name  # whose samples are in its second dimension: no deltas
    seen = LayerLRP(model, ["c", place]) if is_attention else seen
    relevances = seen.attribute(X, target=1, attribute_to_layer_input=at_input)
    alone = LayerLRP(model, "c", None if is_attention else rules)
    expected, delta = alone.attribute(
        X, target=1, attribute_to_layer_input=at_input, return_convergence_delta=True
    )
    assert torch.equal(relevances[0], expected)
    torch.testing.assert_close(delta + expected.sum(1), model(X)[:, 1].detach())
    if not is_attention:
        again, deltas = seen.attribute(
            X, target=1, attribute_to_layer_input=at_input, return_convergence_delta=True
        )
        assert torch.equal(again[0], expected) and torch.equal(deltas[0], delta)


def gradient_at(model: nn.Module, place: str, x: Tensor) -> Tensor:
    """Gradient x activation of an addition, by taking the network apart there."""
    h = (model.a(x) + x).detach().requires_grad_()
    score = model.c(h)[:, 1] + (h.sum(1) if place == "both" else 0)
    (gradient,) = torch.autograd.grad(score.sum(), h)
    return (h * gradient).detach()


@pytest.mark.parametrize(
    ("function", "both"), [(add_and_go_on, "both"), (add_and_drop_the_result, "one")]
)
def test_what_is_written_in_place(function, both) -> None:
    model = build(lambda: Net(function))
    relevance = LayerLRP(model, "add_0", presets.zero()).attribute(X, target=1)
    expected = gradient_at(model, both, X)
    assert relative_error(relevance, expected) <= 1e-12
    left, right = LayerLRP(model, "add_0", presets.zero()).attribute(
        X, target=1, attribute_to_layer_input=True
    )
    c = expected / (model.a(X) + X).detach()
    assert relative_error(left, model.a(X).detach() * c) <= 1e-12
    assert relative_error(right, X * c) <= 1e-12


def test_an_activation_that_writes_over_its_input() -> None:
    model = build(lambda: Net(act_and_go_on))
    h = model.a(X).detach()
    c = model.c.weight[1].detach() + 1
    given = LayerLRP(model, model.act, presets.zero()).attribute(
        X, target=1, attribute_to_layer_input=True
    )
    made = LayerLRP(model, model.act, presets.zero()).attribute(X, target=1)
    assert relative_error(given, h.relu() * c) <= 1e-12
    assert relative_error(made, h.relu() * c) <= 1e-12


def test_a_tensor_given_three_times_is_one_input() -> None:
    model = build(lambda: Net(attend_to_itself))
    rules = [(["mha.linear_0"], GammaRule, {"gamma": 1.0})]
    whole = LRP(model, rules).attribute(X, target=1)
    given = LayerLRP(model, model.mha, rules).attribute(X, 1, attribute_to_layer_input=True)
    torch.testing.assert_close(given[0], whole)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda h: {"first": h, "second": h * 2},
        lambda h: [h, h * 2],
        lambda h: Pair(h, h * 2),
        lambda h: (h, {"second": [h * 2]}),
    ],
    ids=["dict", "list", "namedtuple", "nested"],
)
def test_outputs_of_any_structure(wrap) -> None:
    class Inner(nn.Module):
        def forward(self, h: Tensor) -> object:
            return wrap(h)

    def function(s, x):
        out = s.inner(s.a(x))
        if isinstance(out, dict):
            return s.c(out["first"] + out["second"])
        first, second = out
        return s.c(first + (second["second"][0] if isinstance(second, dict) else second))

    model = build(lambda: Net(function))
    model.inner = Inner()
    first, second = LayerLRP(model, model.inner, presets.zero()).attribute(X, target=1)
    h, w = model.a(X).detach(), model.c.weight[1].detach()
    assert relative_error(first, h * w) <= 1e-12
    assert relative_error(second, 2 * h * w) <= 1e-12


def test_named_results_stay_named() -> None:
    def function(s, x):
        return s.c(s.a(x).sort(dim=1).values * s.b(x).max(1).values[:, None])

    model = build(lambda: Net(function))
    for place in ("sort_0", "max_0"):
        values, indices = LayerLRP(model, place, presets.zero()).attribute(X, target=1)
        assert values.abs().max() > 0 and not indices.any()


def test_an_operation_that_takes_no_part() -> None:
    model = build(lambda: Net(lambda s, x: s.c(s.a(x) * s.b(x).sigmoid())))
    with pytest.raises(ModelError, match="'sigmoid_0' takes no part in the score"):
        LayerLRP(model, "sigmoid_0").attribute(X, target=1)


def test_looking_keeps_what_is_known_of_a_tensor() -> None:
    """A gate stays a gate, a padding stays the layer's own, a shift a hard sigmoid's."""

    def gated(s, x):
        return s.c(s.inner(s.a(x)) * s.b(x))

    for inner in (nn.Hardsigmoid(inplace=True), nn.Sigmoid()):
        model = build(lambda: Net(gated))
        model.inner = inner
        whole = LRP(model, presets.zero()).attribute(X, target=1)
        probes = (Probe("inner", True), Probe("inner", False))
        (seen,) = LRP(model, presets.zero())._propagate(X, [1], None, probes=probes)
        assert torch.equal(seen.relevances[0], whole)
    padded = build(
        lambda: nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    )
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for rule, given in ((ZBoxRule, {"low": 0.0, "high": 1.0}), (GammaRule, {}), (FlatRule, {})):
        rules = [(["1"], rule, given)]
        whole = LRP(padded, rules).attribute(x, target=5)
        for at_input in (True, False):
            (seen,) = LRP(padded, rules)._propagate(x, [5], None, probes=(Probe("1", at_input),))
            assert torch.equal(seen.relevances[0], whole)
    relevances = LayerLRP(padded, None, presets.epsilon()).attribute(x, target=5)
    assert len(relevances) == 4


def test_watching_leaves_no_tensor_behind() -> None:
    """A padding in front of a convolution is watched on two ways, which once held the graph."""
    model = zoo.load(zoo.LITE0, "none", 0).model
    x = torch.rand(1, 3, 32, 32)

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    names = list(dict.fromkeys(row.name for row in plan(model, x).rows if "swish" not in row.name))

    def watch() -> None:
        for at_input in (False, True):
            LayerLRP(model, names, presets.epsilon()).attribute(
                x, target=1, attribute_to_layer_input=at_input
            )

    watch()
    before = alive()
    watch()
    assert alive() <= before


class Record(OrderedDict):
    """A dict that shows its items as attributes, and must not be updated otherwise."""

    def update(self, *args, **kwargs):
        raise TypeError("set the items one by one")

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Giving(nn.Linear):
    """A layer that gives a record."""

    def forward(self, x: Tensor) -> Record:
        record = Record()
        record["h"] = super().forward(x)
        return record


class Reading(nn.Linear):
    """A layer that reads one."""

    def forward(self, record: Record) -> Tensor:
        return super().forward(record.h)


@pytest.mark.parametrize("at_input", [False, True])
def test_a_dict_of_another_kind_keeps_it(at_input) -> None:
    def of(first, second) -> nn.Module:
        return nn.Sequential(nn.Sequential(first), nn.Sequential(second))

    model = build(lambda: of(Giving(6, 6), Reading(6, 3)))
    plain = build(lambda: of(nn.Linear(6, 6), nn.Linear(6, 3)))
    layers = [LayerLRP(m, m[int(at_input)], presets.epsilon()) for m in (model, plain)]
    inner, expected = (
        layer.attribute(X, target=1, attribute_to_layer_input=at_input) for layer in layers
    )
    assert relative_error(inner, expected) < 1e-12
