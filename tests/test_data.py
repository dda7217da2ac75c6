"""The pictures in ``data/`` are what their script draws, and have the properties they are for."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.repository import DATA

NAMES = ["constant_areas.png", "textured.png"]

Picture = NDArray[np.uint8]


def read(path: Path) -> Picture:
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (224, 224))
        return np.asarray(image)


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    runpy.run_path(str(DATA / "draw_pictures.py"))["main"](folder)
    return folder


def is_constant(patches: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each patch of shape ``(..., 3, height, width)`` holds a single colour."""
    return (patches == patches[..., :1, :1]).all(axis=(-3, -2, -1))


@pytest.mark.parametrize("name", NAMES)
def test_script_draws_the_kept_pixels(name: str, redrawn: Path) -> None:
    np.testing.assert_array_equal(read(redrawn / name), read(DATA / name))


def test_script_draws_nothing_else(redrawn: Path) -> None:
    assert sorted(path.name for path in redrawn.iterdir()) == NAMES


def test_constant_areas_lie_at_the_ends_of_the_range() -> None:
    picture = read(DATA / "constant_areas.png")
    blocks = picture.reshape(14, 16, 14, 16, 3).transpose(0, 2, 4, 1, 3)
    assert is_constant(blocks).mean() >= 0.4
    assert set(np.unique(picture)) == {0, 255}
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert colours >= {(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)}


def test_texture_is_everywhere_and_off_the_ends_of_the_range() -> None:
    picture = read(DATA / "textured.png")
    windows = np.lib.stride_tricks.sliding_window_view(picture, (2, 2), axis=(0, 1))
    assert not is_constant(windows).any()
    assert picture.min() >= 1
    assert picture.max() <= 254


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (1, -1)], ids=str)
def test_texture_has_no_equal_neighbours(step: tuple[int, int]) -> None:
    picture = read(DATA / "textured.png")
    inner = picture[:-1, 1:-1]
    rows, columns = step
    neighbour = picture[rows : 223 + rows, 1 + columns : 223 + columns]
    assert (inner != neighbour).all()
