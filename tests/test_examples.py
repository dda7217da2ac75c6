"""Every example runs, prints what it promises and makes its picture."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(name: str, folder: Path, monkeypatch, capsys) -> str:
    path = next(path for path in EXAMPLES if path.stem == name)
    monkeypatch.setattr(sys, "argv", [str(path), str(folder)])
    runpy.run_path(str(path), run_name="__main__")
    assert (folder / f"{name}.png").stat().st_size > 5_000
    return capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 90


def test_drop_in(tmp_path, monkeypatch, capsys) -> None:
    printed = run("drop_in", tmp_path, monkeypatch, capsys)
    score, stock, ours = (float(number) for number in re.findall(r"-?\d+\.\d{3}", printed))
    assert ours == pytest.approx(score, rel=1e-2)
    assert abs(stock - score) > 0.2 * abs(score)


def test_name_map(tmp_path, monkeypatch, capsys) -> None:
    printed = run("name_map", tmp_path, monkeypatch, capsys)
    assert float(printed.split()[-1]) <= 1e-5
