"""Reading image files of every kind, and refusing what is none."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_lrp_stab.errors import MissingExtraError, PictureError
from captum_lrp_stab.images import reading

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GRAY = COLOURS[..., 0]


def saved(folder: Path, image: Image.Image, name: str = "x.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(path: Path) -> np.ndarray:
    image = reading.read(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_as_it_is(tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(saved(tmp_path, Image.fromarray(COLOURS))), COLOURS)


def test_grayscale_in_every_channel(tmp_path: Path) -> None:
    read = pixels(saved(tmp_path, Image.fromarray(GRAY)))
    np.testing.assert_array_equal(read, np.stack([GRAY] * 3, -1))


@pytest.mark.parametrize("name", ["x.png", "x.tiff"])
def test_16_bit_grayscale_by_its_high_byte(tmp_path: Path, name: str) -> None:
    wide = RNG.integers(0, 65536, (6, 8), dtype=np.uint16)
    read = pixels(saved(tmp_path, Image.fromarray(wide), name))
    np.testing.assert_array_equal(read[..., 1], wide // 256)


def test_32_bit_integers_of_a_16_bit_range(tmp_path: Path) -> None:
    wide = RNG.integers(0, 65536, (6, 8), dtype=np.int32)
    read = pixels(saved(tmp_path, Image.fromarray(wide), "x.tiff"))
    np.testing.assert_array_equal(read[..., 2], wide // 256)


def test_floats_from_0_to_1(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    read = pixels(saved(tmp_path, Image.fromarray(values), "x.tiff"))
    assert read[0, :, 0].tolist() == [0, 128, 255]


def test_alpha_over_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255]], dtype=np.uint8)
    image = Image.fromarray(np.dstack([COLOURS[:1, :2], alpha]))
    read = pixels(saved(tmp_path, image))
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[0, 1].tolist() == COLOURS[0, 1].tolist()


def test_grayscale_with_alpha(tmp_path: Path) -> None:
    image = Image.fromarray(GRAY).convert("LA")
    image.putalpha(0)
    assert (pixels(saved(tmp_path, image)) == 255).all()


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    read = pixels(saved(tmp_path, image, transparency=1))
    assert read.tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    name = "x.png" if mode in ("1", "P") else "x.jpg"
    assert (pixels(saved(tmp_path, image, name)) >= 250).all()


def test_one_pixel(tmp_path: Path) -> None:
    assert pixels(saved(tmp_path, Image.fromarray(COLOURS[:1, :1]))).shape == (1, 1, 3)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert reading.read(saved(tmp_path, image, "x.jpg", exif=exif)).size == (20, 40)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.tiff", "x.bmp"])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    noise = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PictureError, match=rf"{name} (cannot be read|is not an image)"):
        reading.read(path)


def test_no_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("castle")
    with pytest.raises(PictureError, match=r"notes\.png is not an image file .* give a PNG"):
        reading.read(path)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(PictureError, match="is not an image file"):
        reading.read(tmp_path / "empty.png")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="does not exist; give the path"):
        reading.read(tmp_path / "nothing.png")
    with pytest.raises(PictureError, match="is a folder"):
        reading.read(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[2.5]], dtype=np.float32), "run up to 2.5; rescale"),
        (np.array([[np.nan]], dtype=np.float32), "rescale them first"),
        (np.array([[-1]], dtype=np.int32), "from -1 to -1; 16-bit values"),
    ],
    ids=["large", "nan", "negative"],
)
def test_values_of_unknown_range(tmp_path: Path, values: np.ndarray, message: str) -> None:
    path = saved(tmp_path, Image.fromarray(values), "x.tiff")
    with pytest.raises(PictureError, match=message):
        reading.read(path)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match="is too large"):
        reading.read(saved(tmp_path, Image.fromarray(COLOURS)))


def test_default_picture() -> None:
    assert reading.default_picture().size == (600, 400)


def test_default_picture_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'captum-lrp-stab\[demo\]'"):
        reading.default_picture()
