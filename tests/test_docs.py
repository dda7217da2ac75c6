"""The documentation: links, commands and pictures. Its snippets are run as doctests."""

import importlib
import json
import re
import shlex
from functools import reduce
from pathlib import Path

import pytest
import torch
import torchvision
import typer
from matplotlib.figure import Figure
from torchvision.models import WeightsEnum
from typer.testing import CliRunner

from captum_lrp_stab import cli, stabilizers
from captum_lrp_stab.cli import comparing, diagnosing, investigating, planning
from docs import draw_pictures, draw_rooms, draw_stabilizers, setting
from tests.helpers import pages
from tests.helpers.pages import PAGES, ROOT, Command

PICTURES = ROOT / "docs" / "pictures"
_HELP = [m.EPILOG for m in (comparing, diagnosing, investigating, planning)]
_EXAMPLES = re.findall(r"`captum-lrp-stab ([^`]+)`", "\n".join(_HELP))
SHOWN = sorted(
    {c for path in PAGES for c in pages.commands(path.read_text())}
    | {Command(tuple(shlex.split(re.split("[>|&]", text)[0])), None) for text in _EXAMPLES},
    key=str,
)
_QUICK = ("plan", "--help", "--version")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(path: Path) -> None:
    assert pages.broken_links(path, path.read_text()) == []


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_all_python_is_run_as_a_doctest(path: Path) -> None:
    assert pages.unchecked_python(path.read_text()) == []


def test_every_picture_is_shown_and_drawn_by_a_script() -> None:
    shown = {
        Path(link).name
        for path in PAGES
        for link in pages._LINK.findall(path.read_text())
        if "pictures/" in link
    }
    made = {f"{name}.png" for name in [*draw_pictures.PICTURES, *draw_stabilizers.SHOWN, "rooms"]}
    assert shown == made == {path.name for path in PICTURES.glob("*.png")}


class TestThePictures:
    @staticmethod
    def drawn() -> dict[str, dict[str, list[float | None]]]:
        content: dict[str, dict[str, list[float | None]]] = json.loads(
            (PICTURES / "stabilizers.json").read_text()
        )
        return content

    def test_what_is_drawn_of_the_stabilizers_is_what_they_compute(self) -> None:
        assert self.drawn() == draw_stabilizers.curves()

    def test_another_stabilizer_would_be_noticed(self, monkeypatch) -> None:
        monkeypatch.setitem(draw_stabilizers.SHOWN, "stabilizer_clip", stabilizers.Clip(0.26))
        found = draw_stabilizers.curves()
        assert [name for name, curve in self.drawn().items() if found[name] != curve] == [
            "stabilizer_clip"
        ]

    def test_stabilizers_can_be_drawn(self) -> None:
        for curve in self.drawn().values():
            assert isinstance(draw_stabilizers.draw(curve), Figure)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", draw_pictures.PICTURES)
    @pytest.mark.filterwarnings("ignore::captum_lrp_stab.errors.LRPWarning")
    def test_heatmaps_can_be_drawn(self, name, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(draw_pictures, "FOLDER", tmp_path)
        draw_pictures.main([name])
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


class TestTheArchitecture:
    PAGE = (ROOT / "docs" / "architecture.md").read_text()

    def test_every_function_named_is_there(self) -> None:
        walk = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|", self.PAGE, re.MULTILINE)
        assert len(walk) > 20
        for module, name in walk:
            found = importlib.import_module(f"captum_lrp_stab.{module}")
            assert callable(reduce(getattr, name.split("."), found))

    def test_every_file_named_is_there(self) -> None:
        files = re.findall(r"`(\w[\w/]*\.pyi?)`", self.PAGE)
        assert len(files) > 10
        folders = ROOT, ROOT / "captum_lrp_stab"
        assert [f for f in files if not any((folder / f).exists() for folder in folders)] == []

    def test_every_room_is_in_the_table(self) -> None:
        rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^`]", self.PAGE, re.MULTILINE)
        listed = {name.strip("`") for row in rows for name in row.split(", ")}
        assert listed == {*draw_rooms.rooms(), *draw_rooms.EVERYWHERE} - {"_version"}

    def test_the_picture_shows_the_imports(self) -> None:
        """Else draw it again: ``python docs/draw_rooms.py``."""
        shown = json.loads((PICTURES / "rooms.json").read_text())
        arrows = draw_rooms.shortened(draw_rooms.rooms())
        assert shown == arrows
        assert set(draw_rooms.COLUMNS) == set(arrows)
        assert isinstance(draw_rooms.draw(arrows), Figure)


class TestCommands:
    """What the pages show at a prompt."""

    def test_there_are_some(self) -> None:
        assert len(SHOWN) >= 30

    @pytest.mark.parametrize("command", SHOWN, ids=lambda c: shlex.join(c.arguments))
    def test_arguments_are_understood(self, command: Command) -> None:
        group = typer.main.get_command(cli.app)
        name, *rest = command.arguments
        if name.startswith("-"):
            return
        group.get_command(None, name).make_context(name, rest)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "command",
        [
            pytest.param(c, marks=() if set(_QUICK) & set(c.arguments) else pytest.mark.slow)
            for c in SHOWN
        ],
        ids=lambda c: shlex.join(c.arguments),
    )
    def test_exit_status_is_the_one_promised(self, command, tmp_path, monkeypatch) -> None:
        setting.fill(tmp_path)
        for word in command.arguments:
            if word.endswith(".pth"):  # of the model that the file is named after
                model = torchvision.models.get_model(Path(word).stem, weights=None)
                torch.save(model.state_dict(), tmp_path / word)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(WeightsEnum, "get_state_dict", setting.random_weights)
        done = CliRunner().invoke(cli.app, list(command.arguments))
        promised = (0, 1) if command.status is None else (command.status,)
        assert done.exit_code in promised, done.output


class TestTheChecks:
    """They find what they are for."""

    def test_links(self, tmp_path) -> None:
        page, other = tmp_path / "page.md", tmp_path / "other.md"
        other.write_text("# A title, `code` and more\n\n## A title, `code` and more\n")
        page.write_text("")
        text = (
            "# Here\n[a](other.md) [b](other.md#a-title-code-and-more) [c](#here)\n"
            "[d](https://example.org/#x) `[e](nowhere.md)`\n"
            "```text\n[f](nowhere.md)\n# Not here\n```\n"
            "[g](missing.md) [h](other.md#missing) [i](#not-here) ![j](missing.png)\n"
            "[k](other.md#a-title-code-and-more-1) [l](other.md#a-title-code-and-more-2)\n"
        )
        assert pages.broken_links(page, text) == [
            *("missing.md", "other.md#missing", "#not-here", "missing.png"),
            "other.md#a-title-code-and-more-2",
        ]

    @pytest.mark.parametrize(
        ("lines", "is_wrong"),
        [
            (">>> 1\n1\n\n", False),
            (">>> 1\n1\n", True),  # the fence would be expected output
            ("print(1)\n\n", True),
            ("", True),
            ("from lrp.core import LRP\n", False),
            ("from lrpy.core import LRP\n", True),
        ],
    )
    def test_python(self, lines, is_wrong) -> None:
        assert bool(pages.unchecked_python(f"a\n```python\n{lines}```\n")) == is_wrong

    def test_commands(self) -> None:
        text = (
            "```console\n$ captum-lrp-stab plan 'a b' \\\n    --json  # as text\noutput\n"
            "$ captum-lrp-stab compare\noutput\n$ echo $?\n1\n$ pip install x\n```\n"
            "```text\n$ captum-lrp-stab nothing\n```\n"
            "| command | |\n|---|---|\n| `captum-lrp-stab diagnose x` | see `captum-lrp-stab y` |\n"
        )
        assert pages.commands(text) == [
            Command(("diagnose", "x"), None),
            Command(("plan", "a b", "--json"), 0),
            Command(("compare",), 1),
        ]

    def test_arguments_that_do_not_exist(self) -> None:
        command = typer.main.get_command(cli.app).get_command(None, "plan")  # type: ignore[attr-defined]
        with pytest.raises(Exception, match=r"no-such-option|No such option"):
            command.make_context("plan", ["resnet18", "--no-such-option"])


def test_random_weights_fit_their_model() -> None:
    model = torchvision.models.squeezenet1_1(weights=None)
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    model.load_state_dict(setting.random_weights(weights))
    again = setting.random_weights(weights)
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
