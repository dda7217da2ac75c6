"""What a forward may be written in: on ReLU networks LRP-0 is gradient x input, however written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import LRP, GammaRule, plan, presets
from captum_lrp_stab.errors import InputError, ModelError
from tests.helpers.layers import relative_error
from tests.helpers.networks import build, gradient_x_input

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers, and a step between them."""

    def __init__(self, step: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self, self.first(x).relu()))


def split(s: nn.Module, x: Tensor) -> Tensor:
    a, b, c = torch.split(x, [2, 2, 4], dim=1)
    d, e = c.chunk(2, dim=-1)
    return torch.cat([b, a, *(d + e).relu().split(1, dim=1), a - b], dim=1)


def in_place(s: nn.Module, x: Tensor) -> Tensor:
    y = s.inner(x)
    y += x
    y -= 0.5
    y *= s.scale
    y /= 2
    return F.relu(y, inplace=True)


def by_data(s: nn.Module, x: Tensor) -> Tensor:
    for _ in range(1 + int(x.sum() > 0)):
        x = s.inner(x).relu()
    return x if x.mean() > 100 else s.inner(x).relu() + x


def masked(s: nn.Module, x: Tensor) -> Tensor:
    y = x * (x > 0.3) + x.where(x < 0.1, -x) * x.sign()
    y[:, 0] = x[:, 1]
    y[:, 2:4] += x[:, 4:6]
    return y.masked_fill(torch.eye(3, 8, dtype=torch.bool), 0.0)


def two_norms(y: Tensor) -> Tensor:
    ones = torch.ones(8, dtype=y.dtype)
    return F.batch_norm(y, 0.1 * ones, ones) + F.batch_norm(y, 0.2 * ones, 2 * ones)


STEPS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "functional residual block": lambda s, x: F.relu(F.linear(x, s.inner.weight)) + x,
    "a module called twice": lambda s, x: s.inner(s.inner(x).relu() - 1).relu(),
    "in place": in_place,
    "split": split,
    "einsum": lambda s, x: torch.einsum("ni,oi,o->no", x, s.inner.weight, s.scale).relu(),
    "interpolate": lambda s, x: F.interpolate(x[:, None], 12, mode="linear")[:, 0, 2:10],
    "upsample": lambda s, x: nn.Upsample(scale_factor=2)(x[None])[0][:, :8],
    "bicubic": lambda s, x: F.interpolate(x.reshape(3, 1, 2, 4), (4, 4), mode="bicubic").reshape(
        3, 2, 8
    )[:, 1],
    "control flow that depends on data": by_data,
    "masks and indices": masked,
    "matmul with a parameter": lambda s, x: (x @ s.inner.weight.T).relu(),
    "addmm": lambda s, x: torch.addmm(x, x, s.inner.weight).relu(),
    "fft": lambda s, x: torch.fft.irfft(torch.fft.rfft(x)[:, :4], n=8).relu(),
    "loop over samples": lambda s, x: torch.stack([s.inner(row).relu() for row in x]),
    "max of two": lambda s, x: torch.maximum(s.inner(x), x),
    "sort": lambda s, x: x.sort(dim=1).values.cumsum(1),
    "transposed": lambda s, x: (s.inner.weight @ x.T).T.relu(),
    "vmap-like reshape": lambda s, x: s.inner(x.unflatten(1, (2, 4)).mT.flatten(1)).relu(),
    "parametrized weights": lambda s, x: F.linear(x, torch.tanh(s.inner.weight) * s.scale).relu(),
    "two batch norms of one layer": lambda s, x: two_norms(s.inner(x)).relu(),
    "meshgrid": lambda s, x: torch.meshgrid(x[0], x[1, :4], indexing="ij")[0].sum(1) + x,
    "powers by name": lambda s, x: (
        torch.pow(input=x, exponent=1).clamp_min(0) + torch.div(input=x, other=2)
    ),
    "empty parts": lambda s, x: torch.cat([x, F.layer_norm(x[:0], (8,))]),
    "sparse matrix": lambda s, x: torch.sparse.mm(torch.eye(3).double().to_sparse(), x),
}


@pytest.mark.parametrize("name", STEPS)
def test_lrp_0_is_gradient_x_input(name) -> None:
    model = build(lambda: Net(STEPS[name]))
    relevance = LRP(model, presets.zero(), strict=True).attribute(X, target=1)
    # `masked` multiplies by a sign, whose gradient is 0 as a factor that is held constant has none
    assert relative_error(relevance, gradient_x_input(model, X, 1)) <= 1e-12
    assert plan(model, X).fallbacks == ()


@pytest.mark.parametrize("name", STEPS)
def test_every_step_has_an_effect(name) -> None:
    """The control: without the step the relevance is another."""
    model, bare = build(lambda: Net(STEPS[name])), build(lambda: Net(lambda s, x: x))
    relevance = LRP(model, presets.zero()).attribute(X, target=1)
    if name not in ("sparse matrix", "empty parts"):  # a unit matrix, and nothing
        expected = LRP(bare, presets.zero()).attribute(X, target=1)
        assert relative_error(relevance, expected) > 1e-3


def test_a_reused_module_has_its_rule_in_each_use() -> None:
    model = build(lambda: Net(lambda s, x: s.inner(s.inner(x).relu()).relu()))

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.again = model, nn.Linear(8, 8).double()
            self.again.load_state_dict(model.inner.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            n = self.net
            return n.last(self.again(n.inner(n.first(x).relu()).relu()).relu())

    relevance = LRP(model, [(["inner"], GammaRule, {})]).attribute(X, target=1)
    rules = [(["net.inner", "again"], GammaRule, {})]
    assert relative_error(relevance, LRP(Unrolled(), rules).attribute(X, target=1)) <= 1e-12
    once = LRP(Unrolled(), [(["again"], GammaRule, {})]).attribute(X, target=1)
    assert relative_error(relevance, once) > 1e-3


def test_a_layer_that_two_batch_norms_read_is_one_layer_with_each() -> None:
    def rows(step) -> list[str]:
        layers = plan(build(lambda: Net(step)), X).layers
        return [row.batch_norm for row in layers if row.name == "inner"]

    assert rows(lambda s, x: two_norms(s.inner(x))) == ["batch_norm_0", "batch_norm_1"]
    with_another_reader = rows(lambda s, x: (lambda y: two_norms(y) + y)(s.inner(x)))
    assert with_another_reader == ["", "batch_norm_0", "batch_norm_1"]

    def swapped(y: Tensor) -> Tensor:
        ones = torch.ones(8, dtype=y.dtype)
        second = F.batch_norm(y, 0.2 * ones, 2 * ones)
        return F.batch_norm(y, 0.1 * ones, ones) + second

    rules = [(["inner"], GammaRule, {"gamma": 1.0})]
    found = [
        LRP(build(lambda f=f: Net(lambda s, x: f(s.inner(x)))), rules).attribute(X, target=1)
        for f in (two_norms, swapped)
    ]
    assert relative_error(*found) <= 1e-12


class Conditional(nn.Module):
    """A branch that depends on the values, as an operation or as Python's own."""

    def __init__(self, is_operation: bool) -> None:
        super().__init__()
        self.first, self.last, self.is_operation = nn.Linear(6, 8), nn.Linear(8, 3), is_operation

    def forward(self, x: Tensor) -> Tensor:
        y, positive = self.first(x), x.sum() > 0
        if self.is_operation:
            return self.last(torch.cond(positive, _rectified, _tripled, (y,)))
        return self.last(_rectified(y) if positive else _tripled(y))


def _rectified(y: Tensor) -> Tensor:
    return y.relu() * y.sigmoid()


def _tripled(y: Tensor) -> Tensor:
    return y * 3


@pytest.mark.parametrize("sign", [1, -1])
def test_a_conditional_operation_is_the_branch_that_is_taken(sign) -> None:
    x = sign * X.abs()
    models = [build(lambda given=given: Conditional(given)) for given in (True, False)]
    found, expected = (LRP(m, presets.epsilon(0.1)).attribute(x, 1) for m in models)
    assert torch.equal(found, expected)
    types = [[row.type for row in plan(m, x).rows] for m in models]
    assert types[0] == types[1] and ("relu" in types[0]) == (sign > 0)


def test_exponentials_are_fallbacks() -> None:
    model = build(lambda: Net(lambda s, x: 2**x + torch.pow(2.0, x) + F.prelu(x, x[0])))
    assert [row.type for row in plan(model, X).fallbacks] == ["pow", "pow", "prelu"]


# what cannot be followed -------------------------------------------------------------------------


class Returns(nn.Module):
    """A model that returns something else than a tensor."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, 3), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.layer(x))


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [(lambda y: (y, y), "tuple"), (lambda y: {"logits": y}, "dict"), (lambda y: [y], "list")],
    ids=["tuple", "dict", "list"],
)
def test_other_outputs_are_explained_and_planned(wrap, kind) -> None:
    model = build(lambda: Returns(wrap))
    with pytest.raises(ModelError, match=f"the model returns a {kind}; .* wrap the model"):
        LRP(model).attribute(X, target=1)
    assert [row.rule for row in plan(model, X).rows] == ["EpsilonRule (default)"]

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            output = self.model(x)
            return output["logits"] if kind == "dict" else output[0]

    assert LRP(Logits()).attribute(X, target=1).abs().max() > 0


def jagged(layout: torch.layout) -> Tensor:
    rows = [torch.ones(2, 6), torch.ones(3, 6)]
    return torch.nested.nested_tensor(rows, layout=layout, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: X.to_sparse(), "sparse_coo tensor, .*to_dense"),
        (lambda: X.to_sparse_csr(), "sparse_csr tensor, .*to_dense"),
        (lambda: jagged(torch.strided), "nested tensor, .*to_padded_tensor"),
        (lambda: jagged(torch.jagged), "nested tensor, .*to_padded_tensor"),
    ],
    ids=["coo", "csr", "nested", "jagged"],
)
def test_sparse_and_nested_inputs(make, kind) -> None:
    with pytest.raises(InputError, match=f"input 0 is a {kind}"):
        LRP(build(lambda: Net(STEPS["split"]))).attribute(make(), target=1)


@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning")
def test_sparse_and_nested_values_inside() -> None:
    def nested(s: nn.Module, x: Tensor) -> Tensor:
        return torch.nested.to_padded_tensor(torch.nested.as_nested_tensor([x[:1], x[1:]]), 0.0)[0]

    for step, kind in ((lambda s, x: x.to_sparse().to_dense(), "sparse_coo"), (nested, "nested")):
        with pytest.raises(ModelError, match=f"gives a {kind} tensor, .* dense"):
            LRP(build(lambda step=step: Net(step))).attribute(X, target=1)


def test_sparse_parameters() -> None:
    model = build(lambda: Net(STEPS["split"]))
    model.first.weight = nn.Parameter(model.first.weight.detach().to_sparse())
    with pytest.raises(ModelError, match=r"'first\.weight' is a sparse_coo tensor, .*to_dense"):
        LRP(model).attribute(X, target=1)


def written_after_relu(s: nn.Module, x: Tensor) -> Tensor:
    y = F.relu(s.inner(x))
    y += x.sum()
    return y


def hidden_clamp(s: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.clamp_(min=0.1)
    return s.inner(x)


def hidden_part(s: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x[:, :4] = 0
    return s.inner(x)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (written_after_relu, r"writes in place over a value .* out of place"),
        (lambda s, x: torch.func.vmap(s.inner)(x), r"uses torch.func .*write them out"),
        (hidden_clamp, r"'clamp_0' writes over a value .* torch.no_grad\(\)"),
        (hidden_part, r"'setitem_0' writes over a value .* torch.no_grad\(\)"),
        (
            lambda s, x: F.scaled_dot_product_attention(x[None], x[None], x[None], None, 0.5)[0],
            "dropout_p=0.5 is random",
        ),
    ],
    ids=["after a ReLU", "vmap", "no_grad", "no_grad, a part", "attention dropout by position"],
)
def test_what_autograd_does_not_see_is_refused(step, message) -> None:
    with pytest.raises(ModelError, match=message):
        LRP(build(lambda: Net(step))).attribute(X, target=1)


@pytest.mark.parametrize(
    "step",
    [
        lambda s, x: (F.hardsigmoid(x[:, :3], inplace=True), x)[1],
        lambda s, x: (F.hardsigmoid(x[:, :3], True), x)[1],
        lambda s, x: (x[:, :3].sigmoid_(), x)[1],
    ],
    ids=["keyword", "position", "method"],
)
def test_fallbacks_that_write_through_a_view_are_not_hidden(step) -> None:
    model = build(lambda: Net(lambda s, x: step(s, s.inner(x))))
    assert len(plan(model, X).fallbacks) == 1


def test_further_arguments_in_structures_are_no_data() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, options: dict) -> Tensor:
            return x * options["scale"][0]

    scale = torch.rand(6, dtype=torch.float64, requires_grad=True).sigmoid()
    relevance = LRP(Scaled(), strict=True).attribute(X, 1, ({"scale": [scale]},))
    torch.testing.assert_close(relevance.sum(1), X[:, 1] * scale[1].detach())


def test_the_box_rule_reads_the_input_through_a_functional_padding() -> None:
    model = build(lambda: nn.Conv2d(3, 4, 3, padding=1))

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(torch.flatten(input=x.to(torch.float64)[None], end_dim=1), (1, 1, 1, 1))
            return F.conv2d(x, model.weight, model.bias).flatten(1)

    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    preset = presets.epsilon_gamma_box(0.0, 1.0)
    assert plan(Padded(), x, preset).layers[0].rule == "ZBoxRule"
    assert "constant" not in {row.rule for row in plan(Padded(), x, preset).rows}
    expected = LRP(nn.Sequential(model, nn.Flatten()), preset).attribute(x, target=5)
    assert relative_error(LRP(Padded(), preset).attribute(x, target=5), expected) <= 1e-12
