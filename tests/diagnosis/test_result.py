"""A diagnosis prints whatever it saw, and its JSON is that of its records."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_lrp_stab import (
    ZeroRule,
    diagnose,
    presets,
)
from captum_lrp_stab.diagnosis.result import Diagnosis
from captum_lrp_stab.propagation import forms
from tests.helpers.networks import Residual, build
from tests.helpers.states import bad_layer, make


def checked(found: Diagnosis) -> dict[str, Any]:
    """The facts of a diagnosis that prints itself as text, as a table and as JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = str(found)
    assert text.startswith(found.verdict)
    for every in (True, False):
        header, rows = found.table(every)
        assert {len(row) for row in rows} == {len(header)}
    content: dict[str, Any] = json.loads(found.to_json(), parse_constant=refuse)
    assert content["verdict"] == found.verdict
    assert len(content["layers"]) == len(found.layers)
    assert [layer["name"] for layer in content["layers"]] == [r.name for r in found.layers]
    return content


class NoChannels(nn.Module):
    """One branch has no channels at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)
        self.empty = nn.Linear(3, 2, bias=False)
        self.empty.weight = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.empty(x).sum(1, keepdim=True)


def switched_off() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    nn.init.constant_(model[0].weight, -1.0)
    return model


WEIRD = {
    "single linear": (lambda: nn.Linear(3, 2), torch.ones(1, 3), presets.epsilon()),
    "no bias, no input": (lambda: nn.Linear(3, 2, bias=False), torch.zeros(1, 3), presets.zero()),
    "no layer": (nn.ReLU, torch.ones(1, 3), []),
    "no layer, score 0": (nn.ReLU, -torch.ones(2, 3), []),
    "all switched off": (switched_off, torch.ones(2, 3), presets.epsilon()),
    "no samples": (lambda: nn.Linear(3, 2), torch.zeros(0, 3), presets.epsilon()),
    "no channels": (NoChannels, torch.ones(2, 3), presets.epsilon()),
    "huge score": (
        lambda: nn.Linear(3, 2, bias=False),
        torch.full((1, 3), 1e38),
        presets.zero(),
    ),
    "tiny score": (lambda: nn.Linear(3, 2, bias=False), torch.full((1, 3), 1e-40), presets.zero()),
}


@pytest.mark.parametrize("form", forms.NAMES)
@pytest.mark.parametrize("case", WEIRD)
def test_weird_cases_print(case, form) -> None:
    create, x, rules = WEIRD[case]
    torch.manual_seed(0)
    model = create().eval()
    found = diagnose(model, x, 0, rules, form=form)
    checked(found)
    assert found.relevances[0].shape == x.shape
    if form == "gradient":
        # where the inputs get nothing there is nothing unstable
        assert found.verdict == "stable"
        assert "most of all at ''" not in str(found) and not str(found).rstrip().endswith("at")


@pytest.mark.parametrize("form", forms.NAMES)
def test_what_is_not_finite_prints(form) -> None:
    model, x = make()
    bad_layer(model)
    found = diagnose(model, x, 1, [(["conv", "hidden", "out"], ZeroRule, {})], form=form)
    content = checked(found)
    if form == "gradient":
        assert found.verdict == "stable" and content["origin"] is None
        return
    # in relevance form the product behind the layer divides by 0 before it does
    assert content["origin"]["name"] == ("mul_0" if form == "relevance" else "hidden")
    assert content["cause"]["kind"] == "exact zero"
    assert content["ledger"]["score"] is None or form == "relevance"


PRESETS = {
    "zero": presets.zero(),
    "epsilon": presets.epsilon(),
    "plus-flat": presets.epsilon_plus_flat(),
    "alpha-beta": presets.epsilon_alpha2_beta1(),
    "box": presets.epsilon_gamma_box(-6.0, 6.0),
    "tutorial": presets.lrp_tutorial(-6.0, 6.0),
}


@pytest.mark.parametrize("rules", PRESETS)
def test_the_facts_are_those_of_the_records(rules) -> None:
    model = build(Residual)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64).clamp(-5, 5)
    found = diagnose(model, x, 2, PRESETS[rules])
    content = checked(found)
    for layer, record in zip(content["layers"], found.layers, strict=True):
        assert layer["shares"]["bias"] == record.shares.bias
        assert layer["received"]["total"] == record.received.total
        assert layer["amplification"] == record.amplification
        if record.denominators is not None:
            counts = layer["denominators"]["sizes"].values()
            assert sum(counts) == sum(record.denominators.sizes.counts)
    assert content["ledger"]["score"] == pytest.approx(float(found.score.sum()))
