"""Files that are replaced as a whole, or not at all."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.reporting.files import write


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        paths = write(tmp_path, {"a": b"1", "b": b"2"})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o644}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write(tmp_path, {"a": b"old"})

    def full(*paths: Any) -> None:
        if step == "replace":
            assert len({os.path.dirname(path) for path in paths}) == 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ReportError, match=r"cannot write .* No space left .* with --out"):
        write(tmp_path, {"a": b"new"})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_an_impossible_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ReportError, match=re.escape(str(file)) + r".*another one with --out"):
        write(file, {"a": b""})
    (tmp_path / "a").mkdir()
    with pytest.raises(ReportError, match=re.escape(str(tmp_path)) + ".*--out"):
        write(tmp_path, {"a": b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file"]
