"""Attributions with and without an advice, run apart from it; a network that needs one."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.diagnosis import Advice
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.propagation.attribution import propagate

TOLERANCE = 1e-3


def relevance(
    model: nn.Module, x: Tensor, target: int, rules: Any, dtype: torch.dtype, form: Any = "gradient"
) -> Tensor:
    model = copy.deepcopy(model).to(dtype)
    rule_set = rule_set_of(model, rules)
    form = forms.form_of(form) if isinstance(form, str) else form
    (found,) = propagate(model, x.to(dtype), target, rule_set=rule_set, form=form).relevances
    return found.double()


def off(a: Tensor, b: Tensor) -> float | None:
    """The largest relative difference of a sample from ``b``; None if there is no such number."""
    if not (a.isfinite().all() and b.isfinite().all()):
        return None
    pairs = zip(a.flatten(1), b.flatten(1), strict=True)
    return max(float((p - q).norm() / q.norm()) if bool((p != q).any()) else 0.0 for p, q in pairs)


def error(model: nn.Module, x: Tensor, target: int, rules: Any, **options: Any) -> float | None:
    dtype = options.pop("dtype", x.dtype)
    pair = [relevance(model, x, target, rules, d, **options) for d in (dtype, torch.float64)]
    return off(*pair)


def chosen(advice: Advice, x: Tensor) -> torch.dtype:
    dtype = x.dtype if advice.dtype is None else getattr(torch, advice.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def is_within(found: float | None, tolerance: float = TOLERANCE) -> bool:
    return found is not None and found <= tolerance


class Mixed(nn.Module):
    """Convolutions with batch norm, one of them a functional call; one layer is in trouble.

    Two channels are alike, and the layer subtracts a large multiple of one from the same of the
    other: more cancels than is left, in any dtype.
    """

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3) / 3)
        self.last, self.last_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.is_last = trouble == "last"
        below, above = self.last.weight, self.weight
        if self.is_last:
            below, above = above, below
        with torch.no_grad():  # all of these are alive
            below[0].abs_()
            below[1] = below[0]
            self.last.bias.fill_(0.1)
            above[0].abs_()
            above[0, :2] = 0.0
            above[0, 0, 1, 1], above[0, 1, 1, 1] = 1e3, -1e3
            self.head.weight[:, 0] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        if self.is_last:
            x = self.last_norm(self.last(F.relu(F.conv2d(x, self.weight, padding=1))))
        else:
            x = F.conv2d(F.relu(self.last_norm(self.last(x))), self.weight, padding=1)
        return self.head(F.relu(x).mean((2, 3)))


def mixed(trouble: str, seed: int = 1) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mixed(trouble).eval(), torch.rand(1, 3, 6, 6)
