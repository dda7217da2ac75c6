"""Relevance maps, and their agreement by numpy and scipy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from captum_lrp_stab.comparison.agreement import Agreement

NUMBERS = ("max_absolute", "relative_l2", "cosine", "pearson", "spearman", "top_overlap")


SHARES = NUMBERS[2:]


CORRELATIONS = ("cosine", "pearson", "spearman")


def rows_of(maps: Sequence[Tensor]) -> np.ndarray:
    """One row for each sample, with the features of every input."""
    arrays = [m.detach().double().numpy() for m in maps]
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)


def pixels_of(maps: Sequence[Tensor]) -> np.ndarray:
    return rows_of([m.double().sum(1) if m.dim() == 4 else m for m in maps])


def top_overlap(a: np.ndarray, b: np.ndarray) -> float:
    count = max(1, math.ceil(len(a) / 100))
    strongest = (set(np.argsort(-np.abs(v))[:count].tolist()) for v in (a, b))
    return len(set.intersection(*strongest)) / count


def expected_numbers(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> dict[str, float]:
    """The numbers of the sample that agrees least, for maps that have a direction."""
    pairs = list(zip(rows_of(ours), rows_of(reference), strict=True))
    pixels = list(zip(pixels_of(ours), pixels_of(reference), strict=True))
    norm = np.linalg.norm
    return {
        "max_absolute": max(np.abs(a - b).max() for a, b in pairs),
        "relative_l2": max(norm(a - b) / norm(b) for a, b in pairs),
        "cosine": min(a @ b / (norm(a) * norm(b)) for a, b in pairs),
        "pearson": min(stats.pearsonr(a, b).statistic for a, b in pairs),
        "spearman": min(stats.spearmanr(a, b).statistic for a, b in pairs),
        "top_overlap": min(top_overlap(a, b) for a, b in pixels),
        "total": sum(a.sum() for a, _ in pairs),
        "reference_total": sum(b.sum() for _, b in pairs),
    }


def numbers(found: Agreement, names: Sequence[str] = NUMBERS) -> list[float | None]:
    return [getattr(found, name) for name in names]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SHAPES: dict[str, list[tuple[int, ...]]] = {
    "vectors": [(3, 7)],
    "one sample": [(1, 300)],
    "sequences": [(2, 40, 6)],
    "pictures": [(2, 3, 15, 17)],
    "videos": [(2, 2, 3, 5, 6)],
    "several inputs": [(3, 5), (3, 4, 30), (3, 2, 9, 8)],
    "one value per sample, of two inputs": [(4,), (4, 3)],
}


shapes = pytest.mark.parametrize("shapes", SHAPES.values(), ids=[*SHAPES])


def maps(shapes: Sequence[tuple[int, ...]], seed: int) -> list[Tensor]:
    return [drawn(*shape, seed=seed + index) for index, shape in enumerate(shapes)]


def spoilt(maps: Sequence[Tensor], values: Sequence[float], index: int = -1) -> list[Tensor]:
    """Maps with values in the last sample of one input."""
    copies = [m.clone() for m in maps]
    copies[index][-1].view(-1)[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return copies


def assert_numbers(found: Agreement, expected: dict[str, float], rel: float = 1e-10) -> None:
    """Rounding alone may differ: totals of values that cancel out get an absolute error as well."""
    actual = {name: getattr(found, name) for name in expected}
    assert actual == pytest.approx(expected, rel=rel, abs=1e-12)
