"""Networks with complex values inside."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_lrp_stab.tensors import complex_values


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False)


def as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class Operator(nn.Module):
    """A Fourier neural operator: complex weights by einsum, written into a tensor of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.skip = nn.Conv1d(2, 3, 1, bias=False), nn.Conv1d(3, 3, 1, bias=False)
        self.weight, self.head = (
            nn.Parameter(torch.randn(3, 3, 3, dtype=torch.cfloat)),
            linear(3, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        given = torch.fft.rfft(x)
        made = torch.zeros_like(given)
        made[..., :3] = torch.einsum("bix,iox->box", given[..., :3], self.weight)
        x = torch.fft.irfft(made, n=x.shape[-1]) + self.skip(x)
        return self.head(x.relu().mean(-1))


class Spectrum(nn.Module):
    """The modulus of a short-time Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = linear(32, 32), linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(16, dtype=x.dtype)
        z = torch.stft(self.body(x).relu(), 16, 8, window=window, return_complex=True)
        return self.head(z.abs().mean(-1))


class Filtered(nn.Module):
    """A filter of real weights between a short-time Fourier transform and its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.head = nn.Parameter(torch.rand(9, 1)), linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        window = torch.hann_window(16, dtype=x.dtype)
        z = torch.stft(x, 16, 8, window=window, return_complex=True) * self.filter
        return self.head(torch.istft(z, 16, 8, window=window).relu())


class Weights(nn.Module):
    """A linear layer with complex weights, its values read as pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = linear(4, 6), linear(10, 2)
        self.layer = nn.Linear(3, 5, bias=False, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(as_complex(self.body(x)))
        return self.head(torch.view_as_real(z).flatten(-2).relu())


class Convolutions(nn.Module):
    """Complex convolutions with groups, one of them transposed, and conjugates."""

    def __init__(self) -> None:
        super().__init__()
        options: Any = {"groups": 2, "bias": False, "dtype": torch.cfloat}
        self.body, self.head = nn.Conv1d(2, 4, 3, bias=False), linear(4, 2)
        self.layer = nn.Conv1d(4, 6, 3, padding=1, **options)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        z = self.up(self.layer(torch.complex(x, x.flip(-1))).conj())
        return self.head(z.abs().mean(-1) + z.real.mean(-1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "operator": (Operator, (2, 2, 8)),
    "spectrum": (Spectrum, (2, 32)),
    "filtered": (Filtered, (2, 32)),
    "weights": (Weights, (2, 4)),
    "convolutions": (Convolutions, (2, 2, 8)),
}


def drawn_model(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def in_float64(make: Callable[[], nn.Module]) -> nn.Module:
    return drawn_model(make)._apply(lambda t: complex_values.convert(t, torch.float64))
