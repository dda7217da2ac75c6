"""The command: what it writes and prints, and that no mistake ends in a traceback."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import squeezenet1_1

from captum_lrp_stab import __version__, zoo
from tests.helpers.commands import TINY, command, failed, in_a_process
from tests.helpers.repository import DATA
from tests.helpers.study_folders import noise

SMALL = (*TINY, "--stabilizer", "signed")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report"


def content(out: Path) -> Any:
    return json.loads((out / "report.json").read_text())


def test_without_arguments_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The study offline, from beginning to end."""
    shown = in_a_process(tmp_path, "investigate")
    assert "espresso" in shown
    assert "quadratic-mean:0.1" in shown
    folder = tmp_path / "lrp-investigation"
    assert {p.name for p in folder.iterdir()} == {
        *("report.html", "report.json", "report.md", "heatmaps.png", "amplification.png")
    }
    (record,) = content(folder)["pictures"]
    assert record["picture"] == "skimage.data.coffee"
    runs = {run["name"]: run for run in record["runs"]}
    assert list(runs) == [
        "none",
        "signed:0.1",
        "quadratic-mean:0.1",
        "additive:0.1",
        "clip:0.1",
    ]
    assert all(run["finite"] for run in runs.values())
    patches = runs["quadratic-mean:0.1"]["pixels"]["peak_over_median"]
    assert patches > 100 * runs["signed:0.1"]["pixels"]["peak_over_median"]


def test_a_picture_that_does_not_exist() -> None:
    failed(command("investigate", "nothing.png"), "nothing.png does not exist; give the path")


def test_every_option_at_once(tmp_path: Path, out: Path) -> None:
    image = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(
        image
    )
    weights = tmp_path / "weights.pth"
    torch.save(zoo.load("squeezenet1_1", "none", seed=5).model.state_dict(), weights)
    result = command(
        *("investigate", image, "--model", "squeezenet1_1", "--weights", weights),
        *("--target", "7", "--rules", "zero", "--stabilizer", "none"),
        *("--stabilizer", "clip:0.01", "--form", "modified-forward", "--dtype", "float64"),
        *("--detect-anomaly", "--seed", "3", "--out", out),
    )
    assert result.exit_code == 0, result.output
    settings = content(out)["settings"]
    assert (settings["target"], content(out)["pictures"][0]["target"]) == (7, 7)
    assert (settings["model"], settings["weights"]) == ("squeezenet1_1", "weights.pth")
    assert [settings[name] for name in ("form", "rules", "dtype", "stabilizers")] == [
        *("modified-forward", "zero", "float64", ["none", "clip:0.01"])
    ]
    for run in content(out)["pictures"][0]["runs"]:
        assert run["warnings"][-1].startswith("anomaly detection: ")
    assert "heatmaps.png" in result.stdout


def gray() -> Image.Image:
    return Image.fromarray(np.arange(0, 256, dtype=np.uint8).reshape(16, 16))


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16))


def alpha() -> Image.Image:
    image = gray().convert("RGBA")
    image.putalpha(100)
    return image


@pytest.mark.parametrize("make", [gray, sixteen_bits, alpha, lambda: Image.new("RGB", (1, 1))])
def test_pictures_of_every_kind(tmp_path: Path, out: Path, make: Callable[[], Image.Image]) -> None:
    make().save(tmp_path / "x.png")
    result = command("investigate", tmp_path / "x.png", *SMALL, "--out", out)
    assert result.exit_code == 0, result.output


def test_bad_pictures(tmp_path: Path, out: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("castle")
    for name, part in (("half.png", "truncated"), ("text.png", "is not an image file")):
        failed(command("investigate", tmp_path / name, *SMALL, "--out", out), name, part)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--model", "resnet19"), ("'resnet19'", "did you mean resnet18")),
        (("--stabilizer", "sined"), ("'sined'", "did you mean signed")),
        (("--rules", "lrp"), ("'lrp'", "epsilon_gamma_box")),
        (("--form", "grad"), ("'grad'", "modified-forward")),
        (("--dtype", "int8"), ("'int8'", "float64")),
        (("--target", "1000"), ("target 1000 is out of range", "0 to 999")),
        (("--model", "alexnet", "--weights", "nothing.pth"), ("nothing.pth does not exist",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrong_words(arguments: tuple[str, ...], parts: tuple[str, ...], out: Path) -> None:
    failed(command("investigate", *SMALL, *arguments, "--out", out), *parts)


def test_weights_that_do_not_fit(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    result = command("investigate", "--weights", path, "--out", out)
    failed(result, "other.pth does not fit efficientnet_lite0", "such as _conv_stem.weight")


def test_no_network(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    result = command("investigate", "--model", "resnet18", "--out", out)
    failed(result, "resnet18-f37072fd.pth", "--weights", "--weights none")


def test_a_folder_that_cannot_be_made_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = command("investigate", "--out", tmp_path / "file" / "folder")
    failed(result, "cannot make the folder", "--out")


def test_an_option_of_the_wrong_type() -> None:
    result = command("investigate", "--target", "castle")
    assert result.exit_code == 2
    assert "--target" in result.stderr
    assert "Traceback" not in result.output


def test_help_has_examples_and_every_option() -> None:
    result = command("investigate", "--help")
    assert result.exit_code == 0
    assert "captum-lrp-stab investigate cat.jpg" in result.output
    for option in (
        *("--model", "--weights", "--target", "--rules", "--stabilizer", "--form", "--dtype"),
        *("--detect-anomaly", "--seed", "--out"),
    ):
        assert option in result.output


def test_version_and_no_command() -> None:
    assert command("--version").output == f"captum-lrp-stab {__version__}\n"
    assert "investigate" in command().output


def test_a_score_that_is_not_finite_is_reported(out: Path) -> None:
    options = "--form modified-forward --rules zero --stabilizer none".split()
    result = command("investigate", DATA / "constant_areas.png", *TINY, *options, "--out", out)
    assert result.exit_code == 0, result.output
    (run,) = content(out)["pictures"][0]["runs"]
    assert (run["score"], run["sum_over_score"]) == (None, None)
    assert run["verdict"] == "not finite"


@pytest.mark.parametrize(
    "entry", [(1, torch.zeros(1)), ("a", torch.zeros(1) * 1j)], ids=["name", "complex"]
)
def test_a_weights_file_that_is_no_state_dict(tmp_path: Path, out: Path, entry) -> None:
    path = tmp_path / "strange.pth"
    torch.save(dict([entry]), path)
    result = command("investigate", "--model", "resnet18", "--weights", path, "--out", out)
    failed(result, "no state dict; save one by")


def test_dollar_signs_and_names_that_are_no_text(tmp_path: Path, out: Path) -> None:
    weights = tmp_path / "a$_$b.pth"
    torch.save(squeezenet1_1().state_dict(), weights)
    picture = tmp_path / os.fsdecode(b"odd\xff.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture, format="PNG")
    options = ("--model", "squeezenet1_1", "--weights", weights, "--stabilizer", "signed:0.1")
    result = command("investigate", picture, *options, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "heatmaps.png").exists()
    assert content(out)["pictures"][0]["picture"] == "odd\\udcff.png"
    assert "\\\\udcff.png" in (out / "report.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one/cat.png", "two/cat.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True)
        noise(len(name) + ord(name[0])).save(path)
    return tmp_path / "in"


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "bad.png").write_text("castle")
    result = command("investigate", folder, *TINY, "--stabilizer", "signed", "--out", out)
    assert result.exit_code == 0, result.output
    assert [p["picture"] for p in content(out)["pictures"]] == [
        *("bad.png", "one/cat.png", "two/cat.png")
    ]
    assert "tiny (random, seed 0) on 3 pictures" in result.stdout
    assert "bad.png was not measured: the file is not an image file" in result.stdout
    assert "1 picture could not be measured" in " ".join(result.stdout.split())
    for name in ("report.html", "report.md", "report.json", "peaks.png", "amplification.png"):
        assert (out / name).is_file() and name in result.stdout.replace("\n", "")
    changed = ("--stabilizer", "clip", "--out", out)
    result = command("investigate", folder, *TINY, *changed)
    failed(result, "stabilizers was signed:1e-6, now clip:1e-6", "--fresh")
    assert command("investigate", folder, *TINY, *changed, "--fresh").exit_code == 0
    assert content(out)["settings"]["stabilizers"] == ["clip:1e-6"]


def test_one_file_with_a_grid_and_several_files(folder: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", folder / "one" / "cat.png"
    grid = ("--stabilizer", "signed", "--stabilizer", "none", "--epsilon", "1e-6:1e-3:2")
    result = command("investigate", file, *TINY, *grid, "--out", out)
    assert result.exit_code == 0, result.output
    assert content(out)["settings"]["stabilizers"] == ["signed:1e-6", "signed:1e-3", "none"]
    assert (out / "heatmaps.png").exists() and (out / "peaks.png").exists()
    both = (file, folder / "two" / "cat.png")
    result = command("investigate", *both, *TINY, "--stabilizer", "none", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert [p["picture"] for p in content(tmp_path / "b")["pictures"]] == [
        *("one/cat.png", "two/cat.png")
    ]


def test_no_picture_at_all_is_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bad.png").write_text("castle")
    result = command("investigate", folder, *TINY, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "No picture could be measured" in result.stdout


def test_a_wrong_grid_is_quoted_as_it_was_given(folder: Path) -> None:
    failed(command("investigate", folder, *TINY, "--epsilon", "1:x:3"), "'1:x:3'")


def test_default_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of a study in a folder of pictures does not become part of the next one."""
    monkeypatch.chdir(folder)
    for _ in range(2):
        result = command("investigate", ".", *TINY, "--stabilizer", "none")
        assert result.exit_code == 0, result.output
        assert len(content(folder / "lrp-study")["pictures"]) == 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("empty",), ("there is no picture in", "empty")),
        (("in", "nothing.png"), ("nothing.png does not exist",)),
        (("in", "--epsilon", "1e-1:1e-9:9"), ("1e-1:1e-9:9", "the smaller one first")),
        (("in", "--epsilon", "0.1", "--stabilizer", "none"), ("--stabilizer signed",)),
        (("in", "--stabilizer", "sined"), ("'sined'", "did you mean signed")),
        (("in", "--target", "1000"), ("target 1000 is out of range", "0 to 999")),
        (("in", "--out", "file"), ("cannot make the folder file",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_with_many(folder: Path, tmp_path: Path, monkeypatch, arguments, parts) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    failed(command("investigate", *TINY, *arguments), *parts)


def test_help_of_many() -> None:
    shown = command("investigate", "--help").output
    for part in ("--epsilon", "--fresh", "LOW:HIGH:N", "goes on where it was stopped"):
        assert part in " ".join(shown.replace("│", " ").split())
