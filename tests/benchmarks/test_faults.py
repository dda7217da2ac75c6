"""Planting faults: each changes one line, is a program still, and is taken out again."""

import ast
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks.faults import Fault

SOURCE = """\
def share(a, b, scale=-1):
    if a < b and not scale:
        return weigh(a, b)
    return a * scale + b
"""
TESTS = """\
import sys
sys.path.insert(0, "captum_lrp_stab")
from module import share

def test_share():
    assert share(2, 3) == 1
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "captum_lrp_stab").mkdir()
    (tmp_path / "captum_lrp_stab" / "module.py").write_text(SOURCE)
    (tmp_path / "test_module.py").write_text(TESTS)
    return tmp_path


def test_a_fault_is_one_changed_line_of_a_program() -> None:
    found = list(faults.faults_in(SOURCE))
    assert {fault.planted for fault in found} == {
        "def share(a, b, scale=1):",
        "if a <= b and not scale:",
        "if a < b or not scale:",
        "if a < b and scale:",
        "return weigh(b, a)",
        "return a / scale + b",
        "return a * scale - b",
        "return a * scale",
    }
    for fault in found:
        ast.parse(SOURCE.replace(fault.line, fault.planted))


def test_every_fault_of_the_package_can_be_planted() -> None:
    modules = faults.modules_of(faults.ROOT, ["rules", "fast"])
    chosen = faults.drawn(modules, 200, seed=1)
    assert len(chosen) == 200 and len({fault.line for _, fault in chosen}) > 100
    for path, fault in chosen:
        assert fault.line != fault.planted
        ast.parse(modules[path].replace(fault.line, fault.planted, 1))


def test_the_draw_is_by_the_seed_and_by_what_stands_elsewhere(tree) -> None:
    modules = faults.modules_of(tree, ["rules"])  # of which it has none
    assert list(modules.values()) == [SOURCE]
    assert faults.drawn(modules, 3, 0) == faults.drawn(modules, 3, 0) != faults.drawn(modules, 3, 1)
    elsewhere = faults.lines_of([SOURCE.replace("weigh", "measure")])
    lines = {fault.line for _, fault in faults.drawn(modules, 9, 0, elsewhere)}
    assert "return weigh(a, b)" not in lines and "return a * scale + b" in lines


def test_what_is_caught(tree) -> None:
    path, tests = Path("captum_lrp_stab", "module.py"), ["-n", "0", "-c", "/dev/null", "."]
    wrong = Fault("return a * scale + b", "return a * scale - b")
    harmless = Fault("return weigh(a, b)", "return weigh(b, a)")
    assert faults.is_caught(tree, path, wrong, tests, 60)
    assert not faults.is_caught(tree, path, harmless, tests, 60)
    assert (tree / path).read_text() == SOURCE


def test_it_says_which_are_not_caught(tree, monkeypatch, capsys) -> None:
    monkeypatch.setattr(faults, "ROOT", tree)
    seen = iter([True, False])
    monkeypatch.setattr(faults, "is_caught", lambda *given: next(seen))
    faults.main(["--count", "2"])
    shown = capsys.readouterr().out
    assert "  1 caught" in shown and "  2 NOT CAUGHT" in shown
    assert shown.endswith("1 of 2 faults caught\n")
