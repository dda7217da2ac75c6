"""Networks with several first layers, and normalisations that may stand in front of these."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from captum_lrp_stab import plan, presets
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation.attribution import propagate
from captum_lrp_stab.propagation.forms import form_of

LOW, HIGH = -4.0, 4.0

PRESETS = [
    presets.epsilon_plus_flat(),
    presets.epsilon_alpha2_beta1_flat(),
    presets.epsilon_gamma_box(LOW, HIGH),
    presets.lrp_tutorial(LOW, HIGH),
]

FORMS = ["gradient", "relevance", "modified-forward"]

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.5)


def picture(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def firsts(model: nn.Module, x: Tensor | tuple[Tensor, ...], preset: Preset) -> list[str]:
    """The layers with the rule for first layers, by the plan."""
    rows = plan(model, x, preset).rows
    return [row.name for row in rows if row.rule in ("FlatRule", "ZBoxRule")]


def relevance_in(form: str, model: nn.Module, x: Tensor, preset: Preset) -> Tensor:
    """The relevance as a form carries it; a tiny stabilizer keeps 0 / 0 at 0 at additions."""
    tiny = 1e-300 if form == "relevance" else None
    rules = rule_set_of(model, preset)
    return propagate(model, x, 1, rule_set=rules, form=form_of(form, tiny)).relevances[0]


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Stem(nn.Module):
    """A convolution, ReLU and a mean; with the batch norm and without."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


class Siamese(nn.Module):
    """Two stems on two pictures, and the sum of their scores; the last layer is defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3, bias=False)
        self.left, self.right = Stem(), Stem()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.left(a) + self.right(b))


class Stems(nn.Module):
    """Two stems on one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3, bias=False)
        self.fine, self.coarse = Stem(), nn.Conv2d(3, 6, 5, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fine(x) + self.coarse(x.flip(-1)).relu().mean((2, 3)))


def _by_views(x: Tensor) -> Tensor:
    x = x.clone()
    for channel in range(3):
        x[:, channel].sub_(MEAN[channel]).div_(STD[channel])
    return x


def _by_assignment(x: Tensor) -> Tensor:
    x = x.clone()
    for channel in range(3):
        x[:, channel] = (x[:, channel] - MEAN[channel]) / STD[channel]
    return x


def _augmented(x: Tensor) -> Tensor:
    x = x.clone()
    for channel in range(3):
        x[:, channel] -= MEAN[channel]
        x[:, channel] /= STD[channel]
    return x


def _of_slices(x: Tensor) -> Tensor:
    parts = [(x[:, c].unsqueeze(1) - MEAN[c]) * (1 / STD[c]) for c in range(3)]
    return torch.cat(parts, 1)


def _of_parts(x: Tensor) -> Tensor:
    return torch.stack([(x - m) / s for x, m, s in zip(x.unbind(1), MEAN, STD, strict=True)], 1)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


def _batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3, eps=0.0, affine=False).double()
    norm.running_mean.copy_(_column(MEAN).flatten())
    norm.running_var.copy_(_column(STD).flatten().square())
    return norm.eval()


NORMALISATIONS: dict[str, Callable[[], nn.Module]] = {
    "operators": lambda: Called(lambda x: (x - _column(MEAN)) / _column(STD)),
    "in place": lambda: Called(lambda x: x.sub_(_column(MEAN)).div_(_column(STD))),
    "times and plus": lambda: Called(
        lambda x: torch.add(x * (1 / _column(STD)), -_column(MEAN) / _column(STD))
    ),
    "from the mean": lambda: Called(lambda x: -(_column(MEAN) - x) / _column(STD)),
    "addcmul": lambda: Called(
        lambda x: torch.addcmul(-_column(MEAN) / _column(STD), x, 1 / _column(STD))
    ),
    "addcdiv": lambda: Called(
        lambda x: torch.addcdiv(-_column(MEAN) / _column(STD), x, _column(STD))
    ),
    "lerp": lambda: Called(
        lambda x: torch.lerp(_column(MEAN), x, 1 / _column(STD)) - _column(MEAN)
    ),
    "slices": lambda: Called(_of_slices),
    "parts": lambda: Called(_of_parts),
    "views": lambda: Called(_by_views),
    "assignment": lambda: Called(_by_assignment),
    "augmented assignment": lambda: Called(_augmented),
    "torchvision's": lambda: Normalize(MEAN, STD),
    "torchvision's in place": lambda: Normalize(MEAN, STD, inplace=True),
    "batch norm": _batch_norm,
    "moved": lambda: Called(
        lambda x: ((x.movedim(1, -1) - _column(MEAN).flatten()) / _column(STD).flatten()).movedim(
            -1, 1
        )
    ),
}


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )
