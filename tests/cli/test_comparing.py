"""The command ``captum-lrp-stab compare``: its table, files and exit statuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.commands import TINY, command, failed, in_a_process
from tests.helpers.zennit_version import LEAVES_EPS

SMALL = (*TINY, "--rules", "epsilon_plus")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report"


def compared(out: Path, *arguments: str | Path) -> tuple[Any, dict[str, Any]]:
    result = command("compare", *arguments, "--out", out)
    return result, json.loads((out / "comparison.json").read_text())


@pytest.mark.slow
def test_without_arguments_in_a_process_of_its_own(tmp_path: Path) -> None:
    """A real network on a real picture against zennit, offline."""
    shown = in_a_process(tmp_path, "compare")
    assert max(map(len, shown.splitlines()[3:-12])) <= 80
    assert "espresso" in shown
    folder = tmp_path / "lrp-comparison"
    assert {p.name for p in folder.iterdir()} == {"comparison.json", "comparison.png"}
    content = json.loads((folder / "comparison.json").read_text())
    # the network has batch norms and residual additions, and zennit has no canonizer for it
    assert content["verdict"] == "known difference"
    *merged, doubled = content["differences"]
    assert [d["name"] for d in merged] == ["eps of merged batch norms"] * LEAVES_EPS
    assert doubled["name"] == "doubled at a functional addition"
    assert doubled["where"] == "_blocks.14.add_0"
    assert content["first"]["name"] == ("_conv_stem" if LEAVES_EPS else "_blocks.14.add_0")
    assert content["overall"]["relative_l2"] > 0.1


def test_equal_is_0_and_different_is_1(out: Path) -> None:
    result, content = compared(out, *SMALL, "--dtype", "float64")
    assert (result.exit_code, content["verdict"]) == (0, "equal"), result.output
    assert content["overall"]["relative_l2"] < 1e-10
    assert "\nequal\n" in result.stdout
    result, content = compared(out, *SMALL, "--dtype", "float64", "--tolerance", "1e-30")
    assert (result.exit_code, content["verdict"]) == (1, "different"), result.output
    assert "\ndifferent\n" in result.stdout
    assert f"at '{content['first']['name']}'" in " ".join(result.stdout.split())


def test_every_option_at_once(tmp_path: Path, out: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    result, content = compared(
        *(out, tmp_path / "noise.png", "--reference", "modified-forward"),
        *(*TINY, "--target", "7", "--seed", "3"),
        *("--rules", "epsilon", "--stabilizer", "clip:0.01", "--form", "relevance"),
        *("--attention", "cp", "--no-merge-batch-norm", "--dtype", "float64"),
        *("--tolerance", "1e-6"),
    )
    assert result.exit_code == 0, result.output
    assert (content["reference"], content["verdict"]) == ("modified_forward", "known difference")
    assert (content["target"], content["form"], content["tolerance"]) == (7, "relevance", 1e-6)
    assert (content["rules"], content["stabilizer"]) == ("epsilon", "clip:0.01")
    assert all(
        "Clip(epsilon=0.01)" in row["rule"] for row in content["layers"] if "(" in row["rule"]
    )


def test_half_precision_against_float64(out: Path) -> None:
    result, content = compared(out, *SMALL, "--dtype", "float16", "--reference", "float64")
    assert (result.exit_code, content["dtype"]) == (0, "float16"), result.output
    assert content["verdict"] in ("equal", "rounding")
    assert 1e-4 < content["overall"]["relative_l2"] < 1


def test_a_reference_that_is_not_finite(out: Path) -> None:
    # where the picture is black, the first layer, which has no bias, divides 0 by 0
    Image.new("RGB", (30, 30)).save(out.parent / "black.png")
    result, content = compared(
        *(out, out.parent / "black.png", *TINY),
        *("--rules", "zero", "--reference", "zennit"),
    )
    assert result.exit_code == 0, result.output
    assert content["verdict"] == "reference not finite"
    assert content["overall"]["reference_nonfinite"] > 0
    assert content["overall"]["nonfinite"] == 0
    assert content["overall"]["relative_l2"] is None
    assert "NaN/Inf" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--reference", "zenit"), ("'zenit'", "captum_driver")),
        (("--model", "resnet19"), ("'resnet19'", "did you mean resnet18")),
        (("--stabilizer", "sined"), ("'sined'", "did you mean signed")),
        (("--rules", "lrp"), ("'lrp'", "epsilon_gamma_box")),
        (("--form", "grad"), ("'grad'", "modified-forward")),
        (("--dtype", "int8"), ("'int8'", "float64")),
        (("--attention", "none"), ("'none'", "attnlrp")),
        (("--target", "1000"), ("target 1000 is out of range", "0 to 999")),
        (("--tolerance", "-1"), ("tolerance is -1.0",)),
        (("--stabilizer", "rounding"), ("'0'", "zennit", "float64")),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_wrong_words(arguments: tuple[str, ...], parts: tuple[str, ...], out: Path) -> None:
    failed(command("compare", *SMALL, *arguments, "--out", out), *parts)


def test_stock_captum_refuses_a_model(out: Path) -> None:
    chosen = ("--model", "efficientnet_lite0", "--weights", "none")
    result = command("compare", "--reference", "captum", *chosen, "--out", out)
    failed(result, "'_conv_stem' (Conv2dStaticSamePadding) contains a module", "another reference")


def test_a_folder_that_cannot_be_made_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = command("compare", "--out", tmp_path / "file" / "folder")
    failed(result, "cannot make the folder", "--out")
