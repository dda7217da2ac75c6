"""Products with parameters are linear layers, in every spelling: the same as with ``nn.Linear``."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import (
    LRP,
    EpsilonRule,
    GammaRule,
    LayerFilter,
    LayerLRP,
    ZPlusRule,
    compare,
    diagnose,
    plan,
    presets,
    types,
)
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from tests.helpers.layers import relative_error
from tests.helpers.networks import build
from tests.helpers.studies import run

Spelling = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_place(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x @ w.T
    y += b
    return y


def by_batches(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Two halves of the inputs, in a batched product."""
    halves = x.unflatten(-1, (2, -1)).transpose(0, 1)
    return torch.bmm(halves, w.unflatten(-1, (2, -1)).permute(1, 2, 0)).sum(0) + b


SPELLINGS: dict[str, Spelling] = {
    "@": lambda x, w, b: x @ w.T + b,
    "matmul": lambda x, w, b: torch.matmul(x, w.t()).add(b),
    "mm": lambda x, w, b: b + x.mm(w.transpose(0, 1)),
    "less": lambda x, w, b: x @ w.T - -b,
    "with alpha": lambda x, w, b: torch.add(x @ w.mT, b / 2, alpha=2),
    "in place": in_place,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.T),
    "addmm with factors": lambda x, w, b: torch.addmm(4 * b, x, w.T / 2, beta=0.25, alpha=2),
    "linear and bias": lambda x, w, b: F.linear(x, w) + b,
    "einsum": lambda x, w, b: torch.einsum("ni,oi->no", x, w) + b,
    "einsum in numbers": lambda x, w, b: torch.einsum(x, [..., 0], w, [1, 0], [..., 1]) + b,
    "tensordot": lambda x, w, b: torch.tensordot(x, w, ([1], [1])) + b,
    "inner": lambda x, w, b: torch.inner(x, w) + b,
    "made of parameters": lambda x, w, b: x @ (w * 2).abs().mul(w.sign() / 2).T + (b + 1 - 1),
    "under no_grad": lambda x, w, b: x @ frozen(w).T + b,
    "two factors": lambda x, w, b: (
        torch.linalg.multi_dot([x, w.T / 3, 3 * torch.eye(len(w)).to(w)]) + b
    ),
    "left": lambda x, w, b: (w @ x.T + b[:, None]).T,
    "batched": lambda x, w, b: (x[:, None] @ w.T[None] + b)[:, 0],
    "vecdot": lambda x, w, b: torch.linalg.vecdot(x[:, None], w) + b,
    "mv": lambda x, w, b: torch.stack([x @ row + c for row, c in zip(w, b, strict=True)], 1),
    "bilinear": lambda x, w, b: F.bilinear(x, b[:1].expand(len(x), 1) * 0 + 1, w[..., None], b),
}
DENSE = [name for name in SPELLINGS if name not in ("left", "batched", "vecdot", "mv", "bilinear")]


def frozen(w: Tensor) -> Tensor:
    with torch.no_grad():
        return w * 1


class Linear(nn.Module):
    """A layer of the user's own."""

    def __init__(self, spelling: Spelling, inputs: int, outputs: int) -> None:
        super().__init__()
        self.spelling = spelling
        self.w, self.b = nn.Linear(inputs, outputs).parameters()

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(x, self.w, self.b)


class Subclass(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


def network(layer: Callable[[int, int], nn.Module], norm: bool = False) -> nn.Module:
    parts = [layer(6, 8), nn.ReLU(), layer(8, 8), nn.ReLU(), layer(8, 3)]
    if norm:
        parts.insert(1, nn.BatchNorm1d(8))
    return nn.Sequential(*parts)


def pair(spelling: Spelling, norm: bool = False) -> tuple[nn.Module, nn.Module]:
    spelled = build(lambda: network(lambda i, o: Linear(spelling, i, o), norm))
    modules = build(lambda: network(nn.Linear, norm))
    for mine, other in zip(spelled.parameters(), modules.parameters(), strict=True):
        assert torch.equal(mine, other)
    return spelled, modules


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
BOX = {"low": -4.0, "high": 4.0}
PRESETS = [
    presets.zero(),
    presets.epsilon(0.1),
    presets.epsilon_plus(0.1),
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(**BOX),
]
RULES = {
    "gamma": (GammaRule, {"gamma": 0.5, "stabilizer": 0.1}),
    "z_plus": (ZPlusRule, {"stabilizer": 0.1}),
}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_preset_means_the_same(name: str, preset) -> None:
    spelled, modules = pair(SPELLINGS[name])
    assert torch.allclose(spelled(X), modules(X))
    expected = LRP(modules, preset).attribute(X, target=1)
    assert relative_error(LRP(spelled, preset).attribute(X, target=1), expected) <= 1e-12
    several = LRP(spelled, preset).attribute_many(X, [0, 1])
    assert relative_error(several[1], expected) <= 1e-12
    plain = LRP(spelled, preset, optimize=False).attribute(X, target=1)
    assert relative_error(plain, expected) <= 1e-12
    named = LRP(spelled, preset(spelled, X)).attribute(X, target=1)
    assert relative_error(named, expected) <= 1e-12


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", DENSE)
def test_a_batch_norm_is_one_layer_with_it(name: str, rule: str) -> None:
    spelled, modules = pair(SPELLINGS[name], norm=True)
    expected = LRP(modules, [(["0"], *RULES[rule])]).attribute(X, target=1)
    actual = LRP(spelled, [(["0"], *RULES[rule])]).attribute(X, target=1)
    assert relative_error(actual, expected) <= 1e-12
    assert plan(spelled, X).rows[0].batch_norm == "1"


@pytest.mark.parametrize("form", ["gradient", "relevance", "modified-forward"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_rule_on_the_users_module_in_every_form(name: str, rule: str, form: str) -> None:
    spelled, modules = pair(SPELLINGS[name])
    rules = [(["0", "2"], *RULES[rule])]
    expected, actual = (
        run(m, X, form, rule_set_of(m, rules).named).relevances[0] for m in (modules, spelled)
    )
    assert relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_subclass_of_linear_with_a_forward_of_its_own(preset) -> None:
    spelled, modules = build(lambda: network(Subclass)), build(lambda: network(nn.Linear))
    expected = LRP(modules, preset).attribute(X, target=1)
    assert relative_error(LRP(spelled, preset).attribute(X, target=1), expected) <= 1e-12
    assert [row.name for row in plan(spelled, X, preset).layers] == ["0", "2", "4"]


@pytest.mark.parametrize("name", ["@", "in place", "left", "addmm"])
def test_in_a_segment_and_in_several_passes(name: str) -> None:
    spelled, _ = pair(SPELLINGS[name])
    preset = presets.epsilon_alpha2_beta1()
    expected = LRP(spelled, preset).attribute(X, target=1)
    segmented = LRP(spelled, preset, checkpoint=["0", "2"])
    assert relative_error(segmented.attribute(X, target=1), expected) <= 1e-12
    rules = [preset, presets.epsilon(0.3)]
    ((first, second),) = LRP(spelled).attribute_many(X, [1], rules=rules)
    assert relative_error(first, expected) <= 1e-12
    assert relative_error(second, LRP(spelled, rules[1]).attribute(X, target=1)) <= 1e-12


# names -------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """Layers, and a product with a matrix that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(3, 5))
        self.bias, self.scale = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5))
        self.register_buffer("adjacency", torch.rand(4, 4))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        x = torch.relu(x @ self.first + self.bias)
        x = self.adjacency @ x if other is None else other @ x
        return torch.einsum("...i,oi->...o", x * self.scale, self.last)


def test_names_filters_and_layers() -> None:
    model = build(Functional)
    rows = [(row.name, row.type, row.rule) for row in plan(model, X, presets.epsilon()).rows]
    assert rows == [
        ("matmul_0", "matmul", "EpsilonRule"),
        ("relu_0", "relu", "passed"),
        ("matmul_1", "matmul", "LRP-0"),  # the adjacency matrix
        ("mul_0", "mul", "LRP-0"),  # one weight for each element: no sum
        ("einsum_0", "einsum", "EpsilonRule"),
    ]
    assert LayerFilter(model, inputs=X)(lambda n: True) == ["matmul_0", "einsum_0"]
    assert LayerFilter(model, types.Linear, inputs=X)(lambda n: n > 0) == ["einsum_0"]
    of_preset = presets.epsilon_gamma_box(**BOX)(model, X)
    assert [names for names, *_ in of_preset] == [["matmul_0", "einsum_0"]]
    rules = [(["matmul_0"], GammaRule, {"gamma": 0.5}), (["einsum_0"], EpsilonRule, {"epsilon": 1})]
    for i in range(2):
        with_both = LRP(model, rules).attribute(X, target=1)
        assert relative_error(LRP(model, rules[i : i + 1]).attribute(X, target=1), with_both) > 0.1
    relevance = LayerLRP(model, "einsum_0", rules).attribute(X, target=1)
    assert torch.equal(relevance.nonzero(), torch.tensor([[i, 1] for i in range(4)]))
    R = LayerLRP(model, ["matmul_0", "relu_0"], rules).attribute(X, target=1)
    assert torch.equal(R[0], R[1])  # behind the bias
    below = LayerLRP(model, "matmul_0", rules).attribute(X, target=1, attribute_to_layer_input=True)
    assert torch.equal(below, LRP(model, rules).attribute(X, target=1))


NOT_WEIGHTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "argument": lambda m, x, a: x @ a,
    "made with an argument": lambda m, x, a: x @ (m.w * a),
    "times an argument's numbers": lambda m, x, a: x @ (m.w * a[0].long()),
    "detached": lambda m, x, a: x @ (x.detach().mT @ x.detach() * m.w),
    "made of a comparison": lambda m, x, a: x @ ((x > 0).double().mean(0)[:, None] * m.w),
    "written to": lambda m, x, a: x @ torch.zeros_like(m.w).add_(a),
    "buffer": lambda m, x, a: x @ m.buffer,
    "written to by index": lambda m, x, a: x @ written(m.w * 1, a),
}


def written(w: Tensor, a: Tensor) -> Tensor:
    w[0] = a[0]
    return w


class Multiplied(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.function = nn.Parameter(torch.randn(6, 6)), forward
        self.register_buffer("buffer", torch.randn(6, 6))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self.function(self, x, a)


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_a_constant_that_is_not_made_of_parameters_mixes(name: str) -> None:
    model = build(lambda: Multiplied(NOT_WEIGHTS[name]))
    a = torch.rand(6, 6, dtype=torch.float64)
    rows = plan(model, X, presets.epsilon(), a).rows
    assert [row.rule for row in rows if row.type == "matmul"][-1:] == ["LRP-0"]


WEIGHTS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "masked by a buffer": lambda m, x, a: x @ (m.w * m.buffer.gt(0)),
    "indexed by a buffer": lambda m, x, a: x @ m.w[m.buffer[0].gt(0).long()].mT,
    "picked by an argument": lambda m, x, a: x @ m.w[a[0].long()].mT,
    "picked by the input": lambda m, x, a: x @ m.w[x.abs().argmax(1)].mT,
    "embedding of an argument": lambda m, x, a: x @ F.embedding(a[0].long(), m.w).mT,
    "masked by the input": lambda m, x, a: x @ m.w.masked_fill(x[:1] > 0, 0.0),
    "of a new constant": lambda m, x, a: x @ (torch.eye(6).to(m.w) - m.w),
    "detached": lambda m, x, a: x @ m.w.detach(),
    "data": lambda m, x, a: x @ m.w.data,
    "written to by index": lambda m, x, a: x @ written(m.w * 1, m.buffer),
    "two of them": lambda m, x, a: x @ (m.w @ m.w.T),
    "with a graph of its own": lambda m, x, a: x @ m.outside,
    "no parameter": lambda m, x, a: x @ m.leaf,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_is_made_of_parameters_is_weights(name: str) -> None:
    model = build(lambda: Multiplied(WEIGHTS[name]))
    model.outside, model.leaf = model.w * 2, torch.rand(6, 6).double().requires_grad_()
    for trains in (True, False):
        model.requires_grad_(trains)
        rows = plan(model, X, presets.epsilon(), torch.ones(6, 6)).rows
        assert [row.rule for row in rows if row.type == "matmul"] == ["EpsilonRule"]
    for tensor in (model.w, model.buffer, model.outside, model.leaf):
        assert "weights" not in vars(tensor).get("_lrp_marks", {})  # the user's are left alone


def test_a_layer_and_a_residual_in_one_operation() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(x, x.relu(), self.w, beta=0.5, alpha=2)

    class Apart(Fused):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x + 2 * F.linear(x.relu(), self.w.T)

    for preset in PRESETS:
        fused, apart = (LRP(build(m), preset).attribute(X, target=1) for m in (Fused, Apart))
        assert relative_error(fused, apart) <= 1e-12
    assert [r.name for r in plan(build(Fused), X).layers] == ["mm_0"]


def test_complex_weights() -> None:
    class Spectral(nn.Module):
        def __init__(self, einsum: bool) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 5, dtype=torch.complex128))
            self.einsum = einsum

        def forward(self, x: Tensor) -> Tensor:
            z = torch.fft.rfft(x)
            z = torch.einsum("ni,io->no", z, self.w) if self.einsum else F.linear(z, self.w.T)
            return torch.fft.irfft(z)

    rule = (GammaRule, {"gamma": 0.5, "stabilizer": 0.1})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, other = Spectral(True), Spectral(False)
    other.w = one.w
    expected = LRP(other, [(["linear_0"], *rule)]).attribute(X, target=1)
    assert (
        relative_error(LRP(one, [(["einsum_0"], *rule)]).attribute(X, target=1), expected) < 1e-12
    )


# dtypes, batches, other functions ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["addmm", "left", "einsum", "batched"])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    spelled, modules = pair(SPELLINGS[name])
    preset = presets.epsilon_plus(0.1)
    expected = LRP(modules, preset).attribute(X, target=1)
    actual = LRP(spelled.to(dtype), preset).attribute(X.to(dtype), target=1)
    assert actual.dtype == dtype
    own = LRP(modules.to(dtype), preset).attribute(X.to(dtype), target=1)
    bound = 4 * relative_error(own, expected)
    assert relative_error(actual, expected) <= bound


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_sample_alone_is_its_row_of_a_batch(name: str) -> None:
    spelled, _ = pair(SPELLINGS[name])
    for preset in (presets.epsilon_plus(0.1), presets.epsilon_gamma_box(**BOX)):
        whole = LRP(spelled, preset).attribute(X, target=1)
        for i in range(len(X)):
            alone = LRP(spelled, preset).attribute(X[i : i + 1], target=1)
            assert relative_error(alone, whole[i : i + 1]) <= 1e-13


def test_diagnosis_and_comparison() -> None:
    spelled, modules = pair(SPELLINGS["left"])
    one, other = (diagnose(m, X, 1, presets.epsilon(0.1)) for m in (spelled, modules))
    assert one.ledger.closing < 1e-9
    mine, others = ([layer for layer in d.layers if layer.has_rule] for d in (one, other))
    assert [layer.name for layer in mine] == [f"{i}.matmul_0" for i in (0, 2, 4)]
    for a, b in zip(mine, others, strict=True):
        assert a.received.total == pytest.approx(b.received.total, rel=1e-12)
        assert a.shares.bias == pytest.approx(b.shares.bias, rel=1e-12)
    done = compare(spelled, X, 1, presets.epsilon(0.1), "float64")
    assert done.verdict == "equal"


def test_transformers_conv1d_is_a_linear_layer() -> None:
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = build(lambda: network(lambda i, o: Conv1D(o, i)))
    modules = build(lambda: network(nn.Linear))
    for conv, linear in zip(model, modules, strict=True):
        if isinstance(linear, nn.Linear):
            linear.weight.data, linear.bias.data = conv.weight.data.T, conv.bias.data
    x = torch.stack([X, X.flip(0)])
    for preset in PRESETS:
        expected = LRP(modules, preset).attribute(x, target=(1, 1))
        assert relative_error(LRP(model, preset).attribute(x, target=(1, 1)), expected) <= 1e-12
    assert [row.name for row in plan(model, x).layers] == [f"{i}.addmm_0" for i in (0, 2, 4)]
    rule = [(["0"], *RULES["gamma"])]
    expected = LRP(modules, rule).attribute(x, target=(1, 1))
    assert relative_error(LRP(model, rule).attribute(x, target=(1, 1)), expected) <= 1e-12
