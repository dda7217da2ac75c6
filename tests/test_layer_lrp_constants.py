"""LayerLRP on layers that read nothing of the inputs, such as an embedding of further arguments."""

import gc

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, GammaRule, LayerLRP, presets
from captum_lrp_stab.errors import ModelError
from tests.helpers.layers import relative_error
from tests.helpers.networks import build


class Reads(nn.Module):
    """Values and ids, or values and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(10, 6), nn.Embedding(5, 6)
        self.features, self.mix = nn.Linear(4, 6), nn.Linear(6, 6)
        self.spare, self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def combined(self, x: Tensor, vectors: Tensor) -> Tensor:
        hidden = self.mix(self.features(x)[:, None] + vectors).relu()
        return self.head((hidden + 0.3 * vectors * x[:, :1, None]).mean(1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.combined(x, self.words(ids) + self.positions(torch.arange(ids.shape[1])))


class GivenVectors(Reads):
    """The same, with the vectors of the words as an input."""

    def forward(self, x: Tensor, vectors: Tensor) -> Tensor:
        places = torch.arange(vectors.shape[1])
        return self.combined(x, vectors + self.positions(places))


GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(2, 4, dtype=torch.float64, generator=GENERATOR)
IDS = torch.randint(0, 10, (2, 5), generator=GENERATOR)
RULES = {
    "zero": presets.zero(),
    "epsilon": presets.epsilon(0.1),
    "z_plus": presets.epsilon_plus(0.1),
    "gamma": [(["mix"], GammaRule, {"gamma": 0.5})],
    "flat": [(["mix"], FlatRule, {})],  # what is below runs in relevance form
}


@pytest.mark.parametrize("rules", RULES)
def test_an_embedding_is_what_an_input_in_its_place_is(rules: str) -> None:
    model, given = build(Reads), build(GivenVectors)
    vectors = model.words(IDS).detach()
    expected = LRP(given, RULES[rules]).attribute((X, vectors), target=1)
    for layer in (model.words, "words"):
        explainer = LayerLRP(model, layer, RULES[rules])
        for _ in range(2):
            relevance = explainer.attribute(X, target=1, additional_forward_args=IDS)
            assert relevance.shape == (2, 5, 6)
            assert relative_error(relevance, expected[1]) <= 1e-12
    assert model.words.weight.grad is None and not hasattr(model.words.weight, "_lrp_marks")


def test_lrp_0_is_gradient_x_vector_where_nothing_is_multiplied() -> None:
    class Adds(Reads):
        def combined(self, x: Tensor, vectors: Tensor) -> Tensor:
            return self.head(self.mix(self.features(x)[:, None] + vectors).relu().mean(1))

    model = build(Adds)
    words, positions = LayerLRP(model, ["words", "positions"], presets.zero()).attribute(
        X, target=1, additional_forward_args=IDS
    )
    vectors = model.words(IDS).detach().requires_grad_()
    places = model.positions(torch.arange(5)).detach().requires_grad_()
    score = model.combined(X, vectors + places)[:, 1].sum()
    g_words, g_places = torch.autograd.grad(score, (vectors, places))
    assert relative_error(words, vectors * g_words) <= 1e-12
    assert relative_error(positions, places * g_places) <= 1e-12
    # an addition of data is one of a constant: looking has changed nothing
    alone = LayerLRP(model, "features", presets.zero()).attribute(X, 1, IDS)
    both = LayerLRP(model, ["features", "words"], presets.zero()).attribute(X, 1, IDS)
    assert torch.equal(both[0], alone)


def test_layers_around_an_embedding() -> None:
    """A linear layer on a further argument, its input and its output, and what contains it."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 6), nn.ReLU())
            self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, extra: Tensor) -> Tensor:
            return self.head((self.first(x) + self.inner(extra)).relu())

    model = build(Wrapped)
    extra = torch.randn(2, 3, dtype=torch.float64)
    expected = LRP(model, presets.epsilon(0.1)).attribute((X, extra), target=1)[1]
    below = LayerLRP(model, model.inner, presets.epsilon(0.1)).attribute(
        X, 1, extra, attribute_to_layer_input=True
    )
    assert relative_error(below, expected) <= 1e-12
    outer, inner, act = LayerLRP(
        model, ["inner", "inner.0", "inner.1"], presets.epsilon(0.1)
    ).attribute(X, 1, extra)
    assert torch.equal(outer, act) and torch.equal(outer, inner)
    both = LayerLRP(model, ["inner", "first"], presets.epsilon(0.1)).attribute((X, extra), 1)
    assert relative_error(outer, both[0]) <= 1e-12


def test_every_layer_that_takes_part_leaves_constants_constant() -> None:
    model = build(Reads)
    explainer = LayerLRP(model, None, presets.zero())
    explainer.attribute(X, target=1, additional_forward_args=IDS)
    assert explainer.layers == [model.features, model.mix, model.head]


@pytest.mark.parametrize("layer", ["words", "positions"])
def test_an_embedding_under_no_grad(layer: str) -> None:
    class Frozen(Reads):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            with torch.no_grad():
                vectors = self.words(ids)
            return self.combined(x, vectors + self.positions(torch.arange(5)))

    frozen, plain = (
        LayerLRP(build(kind), layer, presets.epsilon(0.1)).attribute(X, 1, IDS)
        for kind in (Frozen, Reads)
    )
    assert relative_error(frozen, plain) <= 1e-12


def test_a_score_that_depends_on_the_embedding_alone() -> None:
    class Alone(Reads):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.head(self.words(ids).mean(1)) + 0 * x.detach().sum()

    model = build(Alone)
    with pytest.raises(ModelError, match="does not depend on the inputs"):
        LRP(model).attribute(X, 1, IDS)
    relevance = LayerLRP(model, "words", presets.zero()).attribute(X, 1, IDS)
    assert relative_error(relevance.sum((1, 2)), model(X, IDS)[:, 1] - model.head.bias[1]) <= 1e-12


# messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "at_input", "message"),
    [
        ("spare", False, "the model does not run it on these inputs"),
        ("words", True, "it gets nothing that could have relevance.*ask for its output"),
        ("gate", False, "it runs, but no relevance reaches it.*held constant"),
    ],
)
def test_a_layer_that_takes_no_part(layer: str, at_input: bool, message: str) -> None:
    class Gated(Reads):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            y = self.mix(self.features(x)[:, None] + self.words(ids))
            return self.head((y * self.gate(y).sigmoid()).mean(1))

    explainer = LayerLRP(build(Gated), layer, presets.zero())
    with pytest.raises(ModelError, match=f"layer '{layer}' takes no part in the score: {message}"):
        explainer.attribute(X, 1, IDS, attribute_to_layer_input=at_input)


def test_nothing_stays_in_memory() -> None:
    model = build(Reads)
    explainer = LayerLRP(model, "words", RULES["flat"])

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    explainer.attribute(X, 1, IDS)
    before = alive()
    for _ in range(3):
        explainer.attribute(X, 1, IDS)
    assert alive() == before
