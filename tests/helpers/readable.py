"""Seeded modules for the tests of the dense formulas, and readable names of their parameters."""

import torch
from torch import Tensor, nn


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def seeded(module_type: type[nn.Module], *args, seed: int = 0, **kwargs) -> nn.Module:
    """A float64 module in evaluation mode, every parameter and statistic random and signed."""
    module = module_type(*args, **kwargs).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
        if getattr(module, "running_var", None) is not None:
            module.running_var.abs_().add_(0.1)
    return module


def seeded_tensor(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


POOLS_AND_NORMS = [
    (nn.AvgPool1d, (3,), {"stride": 2, "padding": 1}, (2, 7)),
    (nn.AvgPool2d, (3,), {"padding": 1, "count_include_pad": False}, (2, 5, 5)),
    (nn.AvgPool2d, (2,), {"stride": 3, "ceil_mode": True}, (2, 5, 4)),
    (nn.AvgPool3d, (2,), {"divisor_override": 3}, (1, 4, 2, 3)),
    (nn.AdaptiveAvgPool1d, (3,), {}, (2, 7)),
    (nn.AdaptiveAvgPool2d, ((2, 3),), {}, (2, 5, 4)),
    (nn.AdaptiveAvgPool3d, (2,), {}, (1, 3, 4, 2)),
    (nn.BatchNorm1d, (4,), {}, (4,)),
    (nn.BatchNorm1d, (3,), {"eps": 0.1}, (3, 4)),
    (nn.BatchNorm2d, (2,), {"affine": False}, (2, 3, 3)),
    (nn.BatchNorm3d, (2,), {}, (2, 2, 1, 3)),
]


def readable(value: object) -> str | None:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()).replace(" ", "") or "default"
    return "x".join(map(str, value)).replace(" ", "") if isinstance(value, tuple) else None
