"""Draw the two pictures of this folder: one of flat areas, one textured everywhere.

Pictures are arrays of shape ``(224, 224, 3)``, uint8, rows downwards. The flat scene needs integers
only; the texture comes from a fixed seed and is computed in float64, so that both are the same on
every machine.

Usage: ``python draw_pictures.py [FOLDER]``; without FOLDER, beside this script.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 224
SEED = 2019

Picture = NDArray[np.uint8]
Plane = NDArray[np.float64]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
YELLOW, MAGENTA = (255, 255, 0), (255, 0, 255)


def constant_areas() -> Picture:
    """Return a castle by a lake at night, every channel of every pixel either 0 or 255."""
    y, x = np.mgrid[:SIZE, :SIZE]
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)

    def box(left: int, top: int, right: int, bottom: int) -> NDArray[np.bool_]:
        return (left <= x) & (x < right) & (top <= y) & (y < bottom)

    def roof(left: int, right: int, peak: int, eaves: int) -> NDArray[np.bool_]:
        centre_distance = abs(2 * x + 1 - left - right)
        slope = centre_distance * (eaves - peak) < (right - left) * (y - peak + 1)
        return slope & (y < eaves)

    def moon(centre_x: int, centre_y: int, radius: int) -> NDArray[np.bool_]:
        return (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2

    picture[...] = BLACK
    picture[moon(26, 38, 21)] = YELLOW
    picture[moon(17, 31, 18)] = BLACK
    picture[640 * (y - 144) > (x - 104) ** 2] = GREEN
    picture[box(0, 192, SIZE, SIZE)] = BLUE

    picture[box(80, 104, 144, 176)] = WHITE
    for left in range(84, 140, 16):
        picture[box(left, 96, left + 8, 104)] = WHITE
    for left, top in (48, 80), (144, 64):
        picture[box(left, top, left + 32, 176)] = WHITE
        picture[roof(left - 8, left + 40, top - 40, top)] = RED
        picture[box(left + 12, top + 16, left + 20, top + 32)] = BLACK
        picture[box(left + 15, top - 56, left + 17, top - 38)] = WHITE
        picture[box(left + 17, top - 56, left + 33, top - 46)] = MAGENTA
    picture[box(100, 144, 124, 176) | moon(112, 144, 12)] = BLACK
    return picture


def _value_noise(generator: np.random.Generator, cell: int) -> Plane:
    """Return smooth noise in [0, 1], shape ``(SIZE, SIZE)``, with one free value per cell."""
    knots = generator.random((SIZE // cell + 2, SIZE // cell + 2))
    index, offset = np.divmod(np.arange(SIZE), cell)
    t = offset / cell
    t = t * t * (3 - 2 * t)
    rows = knots[index] * (1 - t)[:, None] + knots[index + 1] * t[:, None]
    return rows[:, index] * (1 - t) + rows[:, index + 1] * t


def _fractal_noise(generator: np.random.Generator, cells: tuple[int, ...]) -> Plane:
    """Return the mean of value noises, each weighted by the size of its cells."""
    planes = [_value_noise(generator, cell) for cell in cells]
    return np.average(planes, axis=0, weights=cells)


def textured() -> Picture:
    """Return coloured gratings bent by noise; no channel is equal in two neighbouring pixels."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    y, x = np.mgrid[:SIZE, :SIZE]
    bend = _fractal_noise(generator, (64, 32, 16))
    drift = _fractal_noise(generator, (64, 32))
    channels = []
    for channel in range(3):
        wide = np.sin(2 * np.pi * ((x + 2 * y) / 96 + 4 * bend + channel / 5))
        narrow = np.sin(2 * np.pi * ((2 * x - y) / 20 + 3 * drift - channel / 7))
        noise = _fractal_noise(generator, (32, 16, 8, 4, 2)) - 0.5
        grain = generator.random((SIZE, SIZE)) - 0.5
        channels.append(128 + 62 * wide + 26 * narrow + 70 * noise + 24 * grain)
    values = np.clip(np.stack(channels, axis=-1), 4, 251).astype(np.int64)
    # The two lowest bits number the pixels of each 2x2 tile, so that all eight neighbours differ.
    tile = 2 * (y % 2) + x % 2
    return (values // 4 * 4 + tile[..., None]).astype(np.uint8)


PICTURES: dict[str, Callable[[], Picture]] = {
    "constant_areas.png": constant_areas,
    "textured.png": textured,
}


def main(folder: Path) -> None:
    """Write both pictures as 8-bit RGB files into ``folder``."""
    for name, draw in PICTURES.items():
        Image.fromarray(draw()).save(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
