"""What would not be the same in a segment is refused, and says so."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, WSquareRule, ZBoxRule
from captum_lrp_stab.errors import ModelError, RuleError
from tests.helpers.networks import build
from tests.helpers.segmented import (
    Around,
    Part,
    X,
    assert_as_without,
    mlp,
    plain,
    relevance,
    runs_of,
)
from tests.helpers.several import state


def returned_and_kept(part: Part, x: Tensor) -> Tensor:
    part.state = part.layer(x)
    return part.state * 2


def counting(part: Part, x: Tensor) -> Tensor:
    part.state += 1
    return part.layer(x) * part.state


def appending(part: Part, x: Tensor, found: list[Tensor]) -> Tensor:
    found.append(part.layer(x))
    return x * 2


def collected(model: Around, x: Tensor) -> Tensor:
    found: list[Tensor] = []
    return model.head(sum(found, model.seg(model.pre(x), found)))


def collected_too(model: Around, x: Tensor) -> Tensor:
    found = [model.pre(x)]
    return model.head(sum(found, model.seg(found[0], found)))


def constant_written(model: Around, x: Tensor) -> Tensor:
    factor = torch.ones(6, dtype=x.dtype)
    y = model.seg(model.pre(x), factor + 1, factor)
    factor.mul_(-2)
    return model.head(y)


def output_written(model: Around, x: Tensor) -> Tensor:
    x = model.pre(x)
    y = model.seg(x)
    y += 1
    return model.head(x + y)


def outputs_written(model: Around, x: Tensor) -> Tensor:
    a, b = model.seg(model.pre(x))
    a += 1
    return model.head(a + b)


def input_written(model: Around, x: Tensor) -> Tensor:
    x = model.pre(x)
    y = model.seg(x)
    x += 1
    return model.head(x + y)


def attribute_given(model: Around, x: Tensor) -> Tensor:
    model.seg.state = model.pre(x)
    return model.head(model.seg(x))


def again_of_another(part: Part, x: Tensor) -> Tensor:
    y = part.layer(x) + part.state
    part.state = y * 0.0 if isinstance(part.state, int) else 0
    return y


class Holder:
    def __init__(self, value: Tensor) -> None:
        self.value = value


def recursive(part: Part, x: Tensor, depth: int = 2) -> Tensor:
    return part.layer(x) if depth == 0 else part(x, depth - 1)


CASES: dict[str, tuple[Any, Any, str]] = {
    "an attribute read outside": (
        returned_and_kept,
        lambda m, x: m.head(m.seg(m.pre(x)) + m.seg.state),
        "made in 'seg' is read outside",
    ),
    "an object": (
        lambda part, x: Holder(part.layer(x)),
        lambda m, x: m.head(m.seg(m.pre(x)).value),
        "made in 'seg' is read outside",
    ),
    "an inner value of an earlier run": (
        again_of_another,
        lambda m, x: m.head(m.seg(m.seg(m.pre(x)))),
        "made in 'seg' is read outside",
    ),
    "a state": (counting, plain, "gave other values"),
    "a constant written to": (
        lambda part, x, _, factor: part.layer(x) * (factor + 1),
        constant_written,
        "gave other values",
    ),
    "a list": (appending, collected, "changes a list"),
    "a list that has one": (appending, collected_too, "changes a list"),
    "an input that is the output": (lambda part, x: x, output_written, "shares its memory"),
    "an input seen as another": (lambda part, x: x[:, :], output_written, "shares its memory"),
    "outputs of one memory": (
        lambda part, x: (lambda y: (y, y.view(-1, 6)))(part.layer(x)),
        outputs_written,
        "shares its memory",
    ),
    "an input written to after": (
        lambda part, x: part.layer(x),
        input_written,
        "writes over an input of 'seg'",
    ),
    "an input written to inside": (
        lambda part, x: part.layer(x.relu_()),
        plain,
        "'seg' writes over its input",
    ),
    "an attribute read inside": (
        lambda part, x: part.layer(x) + part.state,
        attribute_given,
        "none of its arguments",
    ),
    "an object given": (
        lambda part, x: part.layer(x.value),
        lambda m, x: m.head(m.seg(Holder(m.pre(x)))),
        "did not run 'seg' on anything that depends",
    ),
    "itself": (recursive, plain, "calls itself"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case) -> None:
    inside, outside, message = CASES[case]
    model = build(lambda: Around(Part(inside), outside))
    if case != "an input written to after":  # which is refused there too
        assert relevance(model, X, ()).isfinite().all()
    model = build(lambda: Around(Part(inside), outside))
    with pytest.raises(ModelError, match=rf"^checkpoint: .*{message}"):
        relevance(model, X, ["seg"])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_relu_in_place_is_first() -> None:
    def make() -> nn.Module:
        first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6))
        return nn.Sequential(nn.Linear(6, 6), first, nn.Linear(6, 3))

    with pytest.raises(ModelError, match=r"^checkpoint: '1' writes over its input"):
        relevance(build(make), X, ["1"])


@pytest.mark.parametrize("segment", ["0", "1"])
def test_a_batch_norm_is_cut_off(segment) -> None:
    def make() -> nn.Module:
        convolution = nn.Sequential(nn.ReLU(), nn.Linear(6, 6))
        norm = nn.Sequential(nn.Identity(), nn.BatchNorm1d(6))
        return nn.Sequential(convolution, norm, nn.ReLU(), nn.Linear(6, 3))

    model = build(make)
    with pytest.raises(ModelError, match=r"^checkpoint: batch norm '1\.1'"):
        relevance(model, X, [segment])
    assert_as_without(model, X, (segment,), merge_batch_norm=False)
    assert relevance(model, X, ()).isfinite().all()


BOX = {"low": -3.0, "high": 3.0}


@pytest.mark.parametrize("layer", ["seg.0", "seg.2", "head"])
@pytest.mark.parametrize("rule", [(ZBoxRule, BOX), (FlatRule, {}), (WSquareRule, {})])
def test_a_rule_that_gives_relevance(rule, layer) -> None:
    model = build(lambda: Around(mlp(), plain))
    rules = [([layer], *rule)]
    assert relevance(model, X, (), rules).isfinite().all()
    with pytest.raises(RuleError, match=rf"^checkpoint: the rule on layer '{layer}'"):
        relevance(model, X, ["seg"], rules)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sge"], "no module 'sge' inside it; did you mean seg"),
        ([""], "no module ''"),
        ("seg", "give a list"),
        (None, "give a list"),
        ([1], "no module 1"),
    ],
)
def test_names(names, message) -> None:
    with pytest.raises(ModelError, match=rf"checkpoint.*{message}"):
        LRP(build(lambda: Around(mlp(), plain)), checkpoint=names)


def test_a_module_that_does_not_run() -> None:
    model = build(lambda: Around(mlp(), lambda m, x: m.head(m.pre(x))))
    with pytest.raises(ModelError, match=r"^checkpoint: the pass did not run 'seg'"):
        relevance(model, X, ["seg"])


def test_an_exception_inside() -> None:
    fails = True

    def failing(part: Part, x: Tensor) -> Tensor:
        if fails:
            raise KeyError("inside")
        return part.layer(x)

    model = build(lambda: Around(Part(failing), plain))
    before = state(model)
    explainer = LRP(model, checkpoint=["seg"])
    with pytest.raises(KeyError, match="inside"):
        explainer.attribute(X, target=1)
    assert state(model) == before
    fails = False
    found, ran = runs_of(model.seg, lambda: explainer.attribute(X, target=1))
    assert ran == 2
    assert torch.equal(found, LRP(model).attribute(X, target=1))


def test_an_exception_in_the_second_run() -> None:
    def failing(part: Part, x: Tensor) -> Tensor:
        part.state += 1
        if part.state == 2:
            raise KeyError("again")
        return part.layer(x)

    model = build(lambda: Around(Part(failing), plain))
    explainer = LRP(model, checkpoint=["seg"])
    said = r"^checkpoint: 'seg' failed when it ran again \(KeyError: 'again'\)"
    with pytest.raises(ModelError, match=said) as raised:
        explainer.attribute(X, target=1)
    assert isinstance(raised.value.__cause__, KeyError)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(explainer.attribute(X, target=1), LRP(model).attribute(X, target=1))


def test_an_exception_that_the_model_catches() -> None:
    def failing(part: Part, x: Tensor) -> Tensor:
        part.layer(x)
        raise KeyError("inside")

    def catching(model: Around, x: Tensor) -> Tensor:
        try:
            return model.seg(x)
        except KeyError:
            return model.head(model.pre(x))

    model = build(lambda: Around(Part(failing), catching))
    assert torch.equal(relevance(model, X, ["seg"]), relevance(model, X, ()))
