"""A softmax or a sigmoid at the output: warned of, refused under ``strict``, left out if wanted."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from torch import Tensor, nn

from captum_lrp_stab import LRP, FlatRule, GammaRule, LayerLRP, ZBoxRule, diagnose, plan, presets
from captum_lrp_stab.errors import FallbackError, FallbackWarning, ModelError, OutputWarning
from tests.helpers.networks import build

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two layers, and what is given at the end."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last, self.end = nn.Linear(6, 8), nn.Linear(8, 4), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.last(self.first(x).relu()))


def net(
    end: Callable[[Tensor], Any] = lambda z: z, dtype: torch.dtype = torch.float64
) -> nn.Module:
    return build(lambda: Net(end), dtype=dtype)


def said(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return caught


HEADS: dict[str, tuple[Any, str]] = {
    "nn.Softmax": (nn.Softmax(1), "end"),
    "nn.LogSoftmax": (nn.LogSoftmax(1), "end"),
    "nn.Softmin": (nn.Softmin(1), "end"),
    "nn.Sigmoid": (nn.Sigmoid(), "end"),
    "nn.LogSigmoid": (nn.LogSigmoid(), "end"),
    "nn.Hardsigmoid": (nn.Hardsigmoid(), "end"),
    "F.softmax": (lambda z: F.softmax(z, dim=-1), "softmax_0"),
    "F.log_softmax": (lambda z: F.log_softmax(z, dim=1), "log_softmax_0"),
    "torch.softmax": (lambda z: torch.softmax(z, 1, torch.float64), "softmax_0"),
    "by keywords": (lambda z: torch.softmax(input=z, dim=1), "softmax_0"),
    "a method": (lambda z: z.log_softmax(1), "log_softmax_0"),
    "special": (lambda z: torch.special.expit(z), "expit_0"),
    "in place": (lambda z: z.sigmoid_(), "sigmoid_0"),
    "functional, in place": (lambda z: F.hardsigmoid(z, inplace=True), "hardsigmoid_0"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_said_refused_and_left_out(name) -> None:
    end, place = HEADS[name]
    model, sign = net(end), -1 if name == "nn.Softmin" else 1
    logits = net(lambda z: sign * z)
    assert torch.equal(model.last.weight, logits.last.weight)
    explainer = LRP(model, presets.epsilon())
    (warning,) = said(lambda: explainer.attribute(X, target=1))
    assert warning.category is OutputWarning
    assert warning.filename == __file__
    assert f"made by '{place}' (" in str(warning.message)
    assert "skip_output_activation=True" in str(warning.message)
    assert not said(lambda: explainer.attribute(X, target=2))
    assert not said(lambda: LRP(model, fallbacks="ignore").attribute(X, target=2))
    with pytest.raises(FallbackError, match=rf"{place} \(.*makes the output, and saturates"):
        LRP(model, strict=True).attribute(X, target=1)
    (row,) = plan(model, X).fallbacks
    assert row.name == place
    skipping = LRP(model, presets.epsilon(), strict=True, skip_output_activation=True)
    found = skipping.attribute(X, target=1, return_convergence_delta=True)
    expected = LRP(logits, presets.epsilon()).attribute(X, 1, return_convergence_delta=True)
    for a, e in zip(found, expected, strict=True):  # the delta is that of the logit
        torch.testing.assert_close(a, e, rtol=0, atol=0)


def test_relevance_vanishes_with_confidence() -> None:
    model = build(lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.Softmax(1)))
    model[0].weight.data *= 40
    x = X[:2]
    target = model(x).argmax(1)
    plain = LRP(model, presets.zero(), fallbacks="ignore").attribute(x, target=target)
    logits = LRP(model, presets.zero(), skip_output_activation=True).attribute(x, target=target)
    assert float(plain.sum(1).abs().max()) < 1e-6 < 1 < float(logits.sum(1).min())
    torch.testing.assert_close(logits.sum(1), model[0](x).amax(1))


MOVES: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "squeezed": (lambda p: p[:, :1].squeeze(1), None),
    "flattened": (lambda p: p.unsqueeze(2).flatten(1), 1),
    "indexed": (lambda p: p[:, 2], None),
    "moved": (lambda p: p.unflatten(1, (2, 2)).permute(0, 2, 1).contiguous(), (1, 0)),
    "of another dtype": (lambda p: p.float(), 3),
    "written": (lambda p: torch.zeros(3, 5).double().index_copy(1, torch.arange(4), p), 1),
    "set": (lambda p: set_item(p), 0),
    "a part of it": (lambda p: p.chunk(2, 1)[1], 0),
    "dropped out": (lambda p: F.dropout(p, 0.5, training=False), 2),
    "stacked": (lambda p: torch.stack([p, p.flip(1)], 2), (0, 1)),
}


def set_item(p: Tensor) -> Tensor:
    out = torch.zeros(3, 2).double()
    out[:, 0] = p[:, 3]
    return out


@pytest.mark.parametrize("head", ["F.softmax", "nn.Sigmoid", "in place"])
@pytest.mark.parametrize("move", MOVES)
def test_moves_may_follow(move, head) -> None:
    function, target = MOVES[move]
    end, place = HEADS[head]
    made = lambda z: function(end(z))  # noqa: E731
    model, logits = net(made), net(function)
    if isinstance(end, nn.Module):
        model.sigmoid, place = end, "sigmoid"
    (warning,) = said(lambda: LRP(model).attribute(X, target=target))
    assert warning.category is OutputWarning
    assert f"'{place}'" in str(warning.message)
    found = LRP(model, strict=True, skip_output_activation=True).attribute(X, target=target)
    expected = LRP(logits).attribute(X, target=target)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


BEHIND: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean over members": lambda z: torch.stack([z.softmax(1), (2 * z).softmax(1)]).mean(0),
    "one minus it": lambda z: 1 - torch.sigmoid(z),
    "a range": lambda z: 0.5 + 4 * z.sigmoid(),
    "a difference": lambda z: z.softmax(1)[:, :1] - z.softmax(1)[:, 1:2],
    "the largest": lambda z: z.softmax(1).amax(1, keepdim=True),
    "a product": lambda z: z.softmax(1) * torch.sigmoid(z),
}


@pytest.mark.parametrize("name", BEHIND)
def test_what_is_more_than_a_move_is_said_and_cannot_be_left_out(name) -> None:
    model = net(BEHIND[name])
    caught = said(lambda: LRP(model).attribute(X, target=0))
    assert {warning.category for warning in caught} == {OutputWarning}
    assert not any("skip_output_activation" in str(warning.message) for warning in caught)
    with pytest.raises(ModelError, match=r"skip_output_activation: between '.*' .* is '.*_0'"):
        LRP(model, skip_output_activation=True).attribute(X, target=0)
    with pytest.raises(FallbackError, match="makes the output"):
        LRP(model, strict=True).attribute(X, target=0)


@pytest.mark.parametrize(
    "end", [lambda z: z.softmax(1).log(), lambda z: z.sigmoid().clamp(1e-4, 1 - 1e-4).log()]
)
def test_what_has_no_rule_may_stand_behind(end) -> None:
    categories = [w.category for w in said(lambda: LRP(net(end)).attribute(X, target=0))]
    assert categories == [FallbackWarning, OutputWarning]


NO_HEADS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "logits": lambda m, x: m.last(m.first(x)),
    "tanh": lambda m, x: torch.tanh(m.last(m.first(x))),  # which conserves
    "a gate": lambda m, x: m.last(m.first(x)) * torch.sigmoid(m.last(m.first(x))),
    "attention": lambda m, x: m.last(F.softmax(m.first(x) @ m.first(x).mT, -1) @ m.first(x)),
    "attention at the end": lambda m, x: (
        F.softmax(m.first(x) @ m.first(x).mT, -1) @ m.last(m.first(x))
    ),
    "a softmax beside a signal": lambda m, x: m.last(m.first(x)) + m.last(m.first(x)).softmax(1),
    "a softmax under a layer": lambda m, x: m.last(m.first(x).softmax(1)),
    "one nobody reads": lambda m, x: (m.last(m.first(x)), m.last(m.first(x)).softmax(1))[0],
}


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
@pytest.mark.parametrize("name", NO_HEADS)
def test_what_is_no_head_is_left_alone(name, attention) -> None:
    class Other(Net):
        def forward(self, x: Tensor) -> Tensor:
            return NO_HEADS[name](self, x)

    model = build(lambda: Other(nn.Identity()))
    signal = attention == "cp" and "a softmax" in name  # which has no rule there
    options = {"attention": attention, "fallbacks": "ignore" if signal else "warn"}
    plain = LRP(model, presets.epsilon(), strict=not signal, **options).attribute(X, target=1)
    skipping = LRP(model, presets.epsilon(), skip_output_activation=True, **options)
    assert torch.equal(skipping.attribute(X, target=1), plain)
    assert not [row for row in plan(model, X).rows if "makes the output" in row.fallback]


def test_a_part_of_the_output() -> None:
    """As in a detector: boxes as they are beside probabilities."""
    model = net(lambda z: torch.cat([z[:, :2], z[:, 2:].sigmoid()], 1))
    assert [w.category for w in said(lambda: LRP(model).attribute(X, target=3))] == [OutputWarning]
    for target in (0, 3):
        found = LRP(model, skip_output_activation=True).attribute(X, target=target)
        assert torch.equal(found, LRP(net()).attribute(X, target=target))


def test_of_two_the_last_is_left_out() -> None:
    model = net(lambda z: z.softmax(1).softmax(1))
    one = net(lambda z: z.softmax(1))
    explainer = LRP(model, skip_output_activation=True)
    with pytest.warns(OutputWarning, match="softmax_0"):
        found = explainer.attribute(X, target=1)
    assert torch.equal(found, LRP(one, fallbacks="ignore").attribute(X, target=1))


def rules_of(name: str) -> Any:
    return {
        "zB": [(["first"], ZBoxRule, {"low": -4.0, "high": 4.0}), (["last"], GammaRule, {})],
        "flat in the middle": [(["last"], FlatRule, {})],  # another reason for a second pass
    }[name]


@pytest.mark.parametrize("name", ["zB", "flat in the middle"])
def test_under_rules_that_give_relevance(name) -> None:
    model = net(nn.Softmax(1))
    found = LRP(model, rules_of(name), skip_output_activation=True).attribute(X, target=1)
    assert torch.equal(found, LRP(net(), rules_of(name)).attribute(X, target=1))


CALLS: dict[str, Callable[..., Any]] = {
    "layers": lambda m, **k: LayerLRP(m, ["first", "last"], **k).attribute(X, target=1),
    "targets": lambda m, **k: LRP(m, **k).attribute_many(X, [0, 1]),
    "sets of rules": lambda m, **k: LRP(m, **k).attribute_many(
        X, [1], rules=[presets.zero(), rules_of("zB"), rules_of("flat in the middle")]
    ),
    "batches": lambda m, **k: LRP(m, **k).attribute(X, target=1, internal_batch_size=2),
    "a segment": lambda m, **k: LRP(m, checkpoint=["last"], **k).attribute(X, target=1),
    "without short ways": lambda m, **k: LRP(m, optimize=False, **k).attribute(X, target=1),
    "a noise tunnel": lambda m, **k: (
        torch.manual_seed(0) and NoiseTunnel(LRP(m, **k)).attribute(X, nt_samples=3, target=1)
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_can_leave_it_out(name) -> None:
    found = CALLS[name](net(nn.Softmax(1)), skip_output_activation=True)
    torch.testing.assert_close(found, CALLS[name](net()), rtol=1e-13, atol=0)


def test_a_head_in_a_segment() -> None:
    model = build(lambda: nn.Sequential(Net(lambda z: z.softmax(1).clone()), nn.Flatten()))
    explainer = LRP(model, checkpoint=["0"])
    (warning,) = said(lambda: explainer.attribute(X, target=1))
    assert "made by '0.softmax_0'" in str(warning.message)
    with pytest.raises(ModelError, match=r"'0\.softmax_0' \(softmax\) runs inside a segment"):
        LRP(model, checkpoint=["0"], skip_output_activation=True).attribute(X, target=1)
    inner = build(lambda: nn.Sequential(Net(lambda z: z.softmax(1)), nn.Linear(4, 2)))
    assert not said(lambda: LRP(inner, checkpoint=["0"]).attribute(X, target=1))


def test_a_model_that_decides_by_its_probabilities_is_refused() -> None:
    def early(z: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        return p if float(p.detach().max()) < 1 else p.flip(1)

    model = net(early)
    model.last.weight.data *= 9
    with pytest.raises(ModelError, match="looks at the values of its output activation"):
        LRP(model, skip_output_activation=True).attribute(X, target=1)


def test_in_half_precision() -> None:
    model = net(lambda z: F.softmax(z, dim=1, dtype=torch.float32), torch.float16)
    rules = presets.epsilon(0.1)
    found = LRP(model, rules, skip_output_activation=True).attribute(X.half(), target=1)
    expected = LRP(net(dtype=torch.float16), rules).attribute(X.half(), target=1)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)


def test_a_diagnosis_says_it() -> None:
    found = diagnose(net(nn.Softmax(1)), X, 1, presets.epsilon())
    assert "relevance passes 1 operation under its plain gradient: end (Softmax: " in str(found)
    assert found.warnings == ()
