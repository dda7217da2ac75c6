"""The treatments: that one of a new kind can be added as the page on the architecture says."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab import plan, presets
from captum_lrp_stab.dispatch import treatments
from captum_lrp_stab.dispatch.form import Form
from captum_lrp_stab.dispatch.operation import Operation, Treatment
from captum_lrp_stab.operations.calls import TorchCall
from captum_lrp_stab.operations.table import canonical_name
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.rules.standard import ZeroRule
from tests.helpers.layers import relative_error
from tests.helpers.networks import build
from tests.helpers.repository import ROOT

X = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def treatment_of_the_page() -> Callable[..., Any]:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (code,) = re.findall(r"```text\n(def softplus.*?)```", page, re.DOTALL)
    names = {"Form": Form, "Operation": Operation, "TorchCall": TorchCall, "Tensor": Tensor}
    names |= {"Any": Any, "Treatment": Treatment, "torch": torch}
    exec(code, names)
    return names["softplus"]


class Softplus(nn.Module):
    """A softplus between two layers without biases, scaled as its options say."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.softplus(self.first(x), beta=2))


@pytest.fixture
def added(monkeypatch) -> None:
    known, softplus = treatments.of, treatment_of_the_page()

    def of(func: Any, *served: Any) -> Any:
        return softplus if canonical_name(func) == "softplus" else known(func, *served)

    monkeypatch.setattr(treatments, "of", of)


def test_the_treatment_on_the_page_is_lrp_0_of_a_function_and_a_constant(added) -> None:
    """By hand: the constant ln 2 / 2 takes its share, and what is left passes the activation."""
    model, rules = build(Softplus), RuleSet({}, ZeroRule())
    found = {
        name: propagate(model, X, 1, rule_set=rules, form=form_of(name)).relevances[0]
        for name in ("gradient", "relevance")
    }
    z = X @ model.first.weight.T
    share = (F.softplus(z, beta=2) - F.softplus(torch.zeros(1).double(), beta=2)) / z
    expected = X * ((model.last.weight[1] * share) @ model.first.weight)
    assert relative_error(found["gradient"], expected) <= 1e-12
    assert relative_error(found["relevance"], expected) <= 1e-9
    row = plan(model, X, presets.zero()).rows[1]
    assert row.rule == "LRP-0" or "constant" in row.rule
    assert not row.fallback


def test_without_it_a_softplus_is_a_fallback() -> None:
    row = plan(build(Softplus), X, presets.zero()).rows[1]
    assert row.fallback and row.rule == "gradient"
