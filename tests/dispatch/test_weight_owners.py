"""Layers whose parameters a model uses without calling them: an operation is a use of the layer."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import swin_transformer

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, LayerLRP, plan, presets
from captum_lrp_stab.errors import ModelError, RuleMapWarning
from tests.helpers.layers import relative_error
from tests.helpers.networks import build

X = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
RULE = (GammaRule, {"gamma": 0.5, "stabilizer": 0.1})


class Encoder(nn.Module):
    """A transformer's layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


class WrittenOut(Encoder):
    """The same with its attention written out, so that the output projection is called."""

    def forward(self, x: Tensor) -> Tensor:
        block, attention = self.block, self.block.self_attn
        qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).unflatten(-1, (3, 2, 4))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = block.norm1(x + attention.out_proj(y))
        return self.head(block.norm2(x + block.linear2(block.linear1(x).relu())).mean(1))


NAME = "block.self_attn.out_proj"


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("rules", [presets.zero(), [([NAME], *RULE)]], ids=["zero", "gamma"])
def test_the_output_projection_of_attention(rules, at_input: bool) -> None:
    model, written = build(Encoder), build(WrittenOut)
    torch.testing.assert_close(model(X), written(X))
    expected = LayerLRP(written, NAME, rules).attribute(
        X, target=1, attribute_to_layer_input=at_input
    )
    for layer in (NAME, model.block.self_attn.out_proj):
        explainer = LayerLRP(model, layer, rules)
        relevance = explainer.attribute(X, target=1, attribute_to_layer_input=at_input)
        assert relevance.shape == (10, 8)  # attention puts positions before samples, in one
        by_sample = relevance.unflatten(0, (5, 2)).transpose(0, 1)
        assert relative_error(by_sample, expected) <= 1e-12
    whole = LRP(model, rules).attribute(X, target=1)
    assert relative_error(LRP(written, rules).attribute(X, target=1), whole) <= 1e-12


def test_every_leaf_means_those_that_are_called() -> None:
    model = build(Encoder)
    explainer = LayerLRP(model, None, presets.zero())
    explainer.attribute(X, target=1, internal_batch_size=1)
    assert model.block.linear2 in explainer.layers
    assert model.block.self_attn.out_proj not in explainer.layers


# siblings ----------------------------------------------------------------------------------------

Use = Callable[["Layers", Tensor], Tensor]
USES: dict[str, tuple[str, Use, Use, str]] = {
    "F.linear": (
        "fc",
        lambda m, x: F.linear(x, m.fc.weight, m.fc.bias),
        lambda m, x: m.fc(x),
        "linear",
    ),
    "@": ("fc", lambda m, x: x @ m.fc.weight.T + m.fc.bias, lambda m, x: m.fc(x), "matmul"),
    "addmm": (
        "fc",
        lambda m, x: torch.addmm(m.fc.bias, x.flatten(0, 1), m.fc.weight.t()).view(x.shape),
        lambda m, x: m.fc(x.flatten(0, 1)).view(x.shape),
        "addmm",
    ),
    "convolution": (
        "conv",
        lambda m, x: F.conv1d(x, m.conv.weight, m.conv.bias, padding=1),
        lambda m, x: m.conv(x),
        "conv1d",
    ),
    "batch norm": (
        "bn",
        lambda m, x: F.batch_norm(
            x.relu(), m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, False
        ),
        lambda m, x: m.bn(x.relu()),
        "batch_norm",
    ),
    "layer norm": (
        "norm",
        lambda m, x: F.layer_norm(x, (8,), m.norm.weight, m.norm.bias),
        lambda m, x: m.norm(x),
        "layer_norm",
    ),
}


class Layers(nn.Module):
    def __init__(self, use: Use) -> None:
        super().__init__()
        self.first, self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.conv, self.bn, self.norm = (
            nn.Conv1d(5, 5, 3, padding=1),
            nn.BatchNorm1d(5),
            nn.LayerNorm(8),
        )
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self, self.first(x).relu()).relu().mean(1))


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("name", USES)
def test_a_layer_that_is_not_called(name: str, trains: bool) -> None:
    layer, used, called, _ = USES[name]
    model, plain = build(lambda: Layers(used)), build(lambda: Layers(called))
    model.requires_grad_(trains)
    rules = presets.zero() if layer == "norm" else [([layer], *RULE)]
    for at_input in (False, True):
        found, expected = (
            LayerLRP(m, getattr(m, layer), rules).attribute(
                X, target=1, attribute_to_layer_input=at_input
            )
            for m in (model, plain)
        )
        assert relative_error(found, expected) <= 1e-12
    found, expected = (LRP(m, rules).attribute(X, target=1) for m in (model, plain))
    assert relative_error(found, expected) <= 1e-12
    if layer != "norm":  # the control: the rule counts
        assert relative_error(LRP(model).attribute(X, target=1), expected) > 1e-3
    own = f"{USES[name][3]}_0"
    rows = {row.name: row.rule for row in plan(model, X, rules).rows}
    assert rows[own] == ("statistics held constant" if layer == "norm" else "GammaRule")
    by_name = LayerLRP(model, own, rules).attribute(X, target=1)
    assert torch.equal(by_name, LayerLRP(model, layer, rules).attribute(X, target=1))


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: F.linear(x, m.fc.weight[:4]),  # a part of it
        lambda m, x: F.linear(x, m.fc.weight.T),  # the other way round
        lambda m, x: F.linear(x, m.fc.weight * 2),
        lambda m, x: F.conv_transpose1d(x, m.conv.weight, padding=1),
        lambda m, x: F.linear(x, m.norm.weight[None].expand(8, 8)),
    ],
)
def test_another_use_of_its_weights_is_none_of_the_layer(use: Use) -> None:
    model = build(lambda: Layers(use))
    model.head = nn.Identity()
    names = [row.name for row in plan(model, X).layers]
    assert names[0] == "first" and names[1].endswith("_0")
    with pytest.raises(ModelError, match="takes no part"):
        LayerLRP(model, model.fc).attribute(X, target=1)


def test_weights_that_two_layers_share() -> None:
    """Each call is that of the layer that is called."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(self.b(x).relu(), self.b.weight)
            return x.mean(1)

    model = build(Tied)
    rules = [(["b"], EpsilonRule, {}), (["linear_0"], *RULE)]
    rows = {row.name: row.rule for row in plan(model, X, rules).layers}
    assert rows == {"b": "EpsilonRule", "linear_0": "GammaRule"}
    last = LayerLRP(model, ["a", "linear_0"], rules).attribute(X, target=1)
    assert torch.equal(*last)


PARTS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "halves": lambda layer, x: torch.cat([F.linear(x, w) for w in layer.weight.chunk(2)], -1),
    "scaled": lambda layer, x: F.linear(x, layer.weight * 0.5),
    "standardised": lambda layer, x: x @ F.normalize(layer.weight, dim=1).mT,
}


class InPart(nn.Module):
    """A layer that is not run, but of whose weights others are made; and one that is left alone."""

    def __init__(self, use: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.head, self.unused = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 8)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.layer, x).relu().mean(1))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", PARTS)
def test_a_rule_that_has_no_effect_is_told(name: str, trained: bool) -> None:
    model = build(lambda: InPart(PARTS[name])).requires_grad_(trained)
    with pytest.warns(RuleMapWarning, match="'layer' has no effect: the model does not run"):
        found = LRP(model, [(["layer"], *RULE)]).attribute(X, 1)
    assert torch.equal(found, LRP(model, []).attribute(X, 1))
    rows = [row.name for row in plan(model, X, presets.epsilon(0.1)).layers if row.name != "head"]
    assert rows  # what reads them, which takes the rule
    assert relative_error(LRP(model, [(rows, *RULE)]).attribute(X, 1), found) > 1e-3


def test_layers_that_take_no_part_are_not_told_of() -> None:
    """Nor is one whose weights are another's, such as an output tied to an embedding."""
    model = build(lambda: InPart(lambda layer, x: layer(x)))
    model.unused.weight = model.layer.weight
    LRP(model, [(["unused", "layer"], *RULE)]).attribute(X, 1)


def test_attention_of_swin_uses_two_layers_without_calling_them() -> None:
    """Torchvision's attention is a function of their weights: a rule in a name_map counts."""
    sizes = [4, 4], 16, [2, 2], [2, 4], [4, 4]
    model = build(lambda: swin_transformer.SwinTransformer(*sizes, num_classes=3))
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    names = [f"features.1.0.attn.{layer}" for layer in ("qkv", "proj")]
    for R in LayerLRP(model, names, presets.zero()).attribute(x, target=1):
        assert R.abs().max() > 0
    composite = presets.epsilon_plus(0.3)
    expected = LRP(model, composite).attribute(x, target=1)
    named = composite(model)
    assert set(names) <= {name for entry, *_ in named for name in entry}
    assert relative_error(LRP(model, named).attribute(x, target=1), expected) <= 1e-12
