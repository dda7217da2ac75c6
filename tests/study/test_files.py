"""Finding the pictures of a study."""

import os
from pathlib import Path

import pytest

from captum_lrp_stab.errors import PictureError
from captum_lrp_stab.study.files import digest, find


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))


def names(paths: list[Path], leave_out: Path | None = None) -> list[str]:
    return [file.name for file in find(paths, leave_out)]


def test_folders_are_read_in_order_with_what_is_below(tmp_path: Path) -> None:
    make(tmp_path, "b.PNG", "a.jpg", "z/a.jpeg", "c/d.tiff", "c/b.webp", "notes.txt", "e.gif")
    make(tmp_path, ".hidden.png", ".git/x.png", "f.bmp", "g.tif")
    expected = ["a.jpg", "b.PNG", "e.gif", "f.bmp", "g.tif", "c/b.webp", "c/d.tiff", "z/a.jpeg"]
    assert names([tmp_path]) == expected


def test_equal_names_in_different_folders_both_appear(tmp_path: Path) -> None:
    make(tmp_path, "one/cat.png", "two/cat.png")
    assert names([tmp_path / "two", tmp_path / "one"]) == ["two/cat.png", "one/cat.png"]


def test_each_file_once_whatever_its_ending(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path, "cat", "dog.png")
    monkeypatch.chdir(tmp_path)
    found = names([Path("cat"), tmp_path / "dog.png", Path("."), Path("./dog.png")])
    assert found == ["cat", "dog.png"]


def test_the_folder_of_the_report_is_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "cat.png", "out/figure.png", "out/deep/x.png")
    assert names([tmp_path], tmp_path / "out") == ["cat.png"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    make(tmp_path, os.fsdecode(b"odd\xff.png"))
    assert names([tmp_path]) == ["odd\\udcff.png"]


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"there is no picture in .*\.webp"):
        find([tmp_path])
    with pytest.raises(PictureError, match=r"nothing\.png does not exist"):
        find([tmp_path / "nothing.png"])


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    make(tmp_path, "a.png")
    before = digest(tmp_path / "a.png")
    make(tmp_path / "b", "a.png")
    assert digest(tmp_path / "b" / "a.png") == before
    (tmp_path / "a.png").write_bytes(b"other")
    assert digest(tmp_path / "a.png") != before
