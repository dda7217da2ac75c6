"""The command ``captum-lrp-stab diagnose``: its verdict, report, advice and exit statuses."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.commands import TINY, command, failed
from tests.helpers.repository import DATA

SMALL = (*TINY, "--rules", "epsilon_plus")
NETWORK = ("--model", "resnet18", "--weights", "none", "--rules", "epsilon", "--no-advice")
CONSTANT = DATA / "constant_areas.png"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report"


def diagnosed(out: Path, *arguments: str | Path) -> tuple[Any, dict[str, Any]]:
    result = command("diagnose", *arguments, "--out", out)
    return result, json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)


class Sources(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v for name, v in attrs if name in ("src", "href") and v]


def test_a_real_network_offline_is_stable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("diagnose")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "espresso" in done.stdout and "stable" in done.stdout
    folder = tmp_path / "lrp-diagnosis"
    content = json.loads((folder / "report.json").read_text())
    assert content["verdict"] == "stable" and content["origin"] is None
    assert abs(content["ledger"]["elsewhere"]) < 1e-6 * content["ledger"]["score"]
    assert len([layer for layer in content["layers"] if layer["has_rule"]]) > 50
    page = Sources()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert page.found and all(s.startswith(("data:image/png", "#")) for s in page.found)


def test_a_division_by_0_is_told_and_mended(out: Path) -> None:
    arguments = ("--rules", "zero", "--stabilizer", "none", "--form", "relevance")
    result, content = diagnosed(out, CONSTANT, *TINY, *arguments)
    assert result.exit_code == 1
    assert content["verdict"] == "not finite"
    assert content["cause"]["kind"] == "exact zero"
    assert content["origin"]["neuron"]["denominator"] == 0
    assert content["advice"]["changes"] and content["advice"]["error"] <= 1e-3
    for part in ("not finite", content["origin"]["name"], "Advice"):
        assert part in result.output
    text = (out / "report.md").read_text(encoding="utf-8")
    for part in ("Where it starts", "Ledger", "Denominators", "name_map = ["):
        assert part in text
    with Image.open(out / "heatmaps.png") as drawn:
        assert drawn.width > 600


def test_a_stabilizer_with_a_pole_is_told(out: Path) -> None:
    arguments = ("--stabilizer", "quadratic-mean:0.1", "--form", "modified-forward", "--no-advice")
    result, content = diagnosed(out, *TINY, *arguments)
    assert result.exit_code == 1
    assert (content["verdict"], content["cause"]["kind"]) == ("unstable", "pole")
    assert content["advice"] is None
    assert "nearer to 0" in result.output


def test_stock_captum_leaves_relevance_unaccounted_for(out: Path) -> None:
    result, content = diagnosed(out, *NETWORK, "--form", "stock")
    assert "unaccounted for" in " ".join(content["warnings"])
    assert "add_0" in " ".join(content["warnings"])
    assert result.exit_code in (0, 1)


def test_a_sweep(out: Path) -> None:
    result, content = diagnosed(out, *SMALL, "--sweep", "epsilon")
    points = content["sweep"]["points"]
    assert points[0]["from_first"] == 0 and len(points) == 21
    assert "epsilon: the heatmap" in result.output
    assert (out / "sweep.png").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--form", "bare"), ("no form has the name 'bare'", "stock")),
        (("--sweep", "alpha"), ("sweep is 'alpha'", "gamma")),
        (("--threshold", "0.5"), ("threshold is 0.5", "above 1")),
        (("--stabilizer", "singed"), ("signed",)),
        (("--dtype", "int8"), ("int8", "float32")),
        (("--rules", "espilon"), ("espilon", "epsilon")),
    ],
)
def test_mistakes(out: Path, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    failed(command("diagnose", *SMALL, *arguments, "--out", out), *parts)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = command("diagnose", *SMALL, "--out", tmp_path / "file" / "folder")
    failed(result, "cannot make the folder", "--out")


def test_stock_captum_refuses_a_model(out: Path) -> None:
    chosen = ("--model", "efficientnet_lite0", "--weights", "none")
    result = command("diagnose", "--form", "stock", *chosen, "--out", out)
    failed(result, "contains a module of its own", "another form")
