"""The command ``captum-lrp-stab plan``."""

import json

import pytest

from captum_lrp_stab.planning import PlannedOperation
from tests.helpers.commands import TINY, command, failed


def test_the_table_and_what_it_comes_to() -> None:
    result = command("plan", "squeezenet1_1", "--rules", "epsilon_gamma_box")
    assert result.exit_code == 0, result.output
    header, first, *_, total = result.stdout.splitlines()
    assert header.split() == [*PlannedOperation.__dataclass_fields__]
    assert first.split()[:3] == ["0", "features.0", "Conv2d"]
    assert "ZBoxRule" in first
    assert total == "66 operations, 27 with a rule, 0 with their plain gradient"


def test_json_of_the_layers() -> None:
    result = command("plan", "resnet18", "--layers", "--json", "--rules", "epsilon_plus")
    rows = json.loads(result.stdout)
    assert len(rows) == 22
    assert (rows[0]["name"], rows[0]["rule"], rows[0]["batch_norm"]) == (
        "conv1",
        "ZPlusRule",
        "bn1",
    )
    apart = command("plan", "resnet18", "--json", "--no-merge-batch-norm")
    norms = [row for row in json.loads(apart.stdout) if row["type"] == "BatchNorm2d"]
    assert len(norms) == 20
    assert {row["rule"] for row in norms} == {"LRP-0"}


def test_attention() -> None:
    rows = {}
    for attention in ("attnlrp", "cp"):
        arguments = ("plan", "vit_b_32", "--attention", attention, "--strict", "--json")
        for row in json.loads(command(*arguments).stdout):
            rows[attention, row["name"].removeprefix("encoder.layers.encoder_layer_0.")] = row
    for name in ("matmul_0", "softmax_0"):
        assert rows["cp", f"self_attention.{name}"]["rule"] == "constant"
    assert rows["attnlrp", "self_attention.matmul_1"]["rule"] == "1/2 to each factor"
    assert rows["cp", "self_attention.matmul_1"]["rule"] == "gate held constant"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["resnet1"], ["no model has the name 'resnet1'", "resnet18"]),
        (["resnet18", "--rules", "epsilonplus"], ["no preset has the name", "epsilon_plus"]),
        (["resnet18", "--attention", "rollout"], ["attention is 'rollout'", "attnlrp, cp"]),
    ],
    ids=["model", "rules", "attention"],
)
def test_mistakes(arguments, parts) -> None:
    failed(command("plan", *arguments), *parts)


def test_attention_of_a_study(tmp_path) -> None:
    result = command(
        *("investigate", *TINY, "--attention", "cp", "--stabilizer", "signed", "--out", tmp_path)
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["attention"] == "cp"
    failed(command("investigate", "--attention", "rollout"), "attnlrp, cp")
