"""Folders of small pictures, and what the tests of the study share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_lrp_stab.study.files import PictureFile, find
from captum_lrp_stab.study.investigation import study_pictures
from captum_lrp_stab.study.result import Study
from tests.helpers.studies import classifier, picture

NAMES = ("none", "signed:0.1", "additive:0.1")


def noise(seed: int, size: int = 18) -> Image.Image:
    values = np.random.default_rng(seed).integers(5, 250, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def fill(folder: Path, count: int = 3) -> Path:
    """Pictures of noise; the second one has a black area, where none divides 0 by 0."""
    (folder / "deep").mkdir(parents=True)
    for number in range(count):
        image = picture() if number == 1 else noise(number)
        image.save(folder / ("deep" if number % 2 else "") / f"{number}.png")
    return folder


def study(folder: Path, out: Path, **options: Any) -> Study:
    """The study of a folder with a tiny network whose first layer has no bias."""
    given: dict[str, Any] = {"names": NAMES, "form": "relevance", "rules": "zero"}
    return study_pictures(classifier(), files(folder), out, **(given | options))


def files(folder: Path) -> list[PictureFile]:
    return find([folder])


def kept(out: Path) -> dict[str, bytes]:
    """The records in a folder by the name of their picture, and what shows that one is new."""
    found = {}
    for path in sorted((out / "pictures").iterdir()):
        name = json.loads(path.read_bytes())["record"]["picture"]
        found[name] = str(path.stat().st_mtime_ns).encode() + path.read_bytes()
    return found


def report_of(out: Path) -> dict[str, bytes]:
    """The files of the report."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
