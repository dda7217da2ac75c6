"""The study's report as JSON, text and files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.study import investigation_report
from captum_lrp_stab.study.investigation import Investigation, investigate
from tests.helpers.studies import classifier, picture


@pytest.fixture(scope="module")
def study() -> Investigation:
    return investigate(classifier(), picture(), form="relevance", rules="zero")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_json_has_every_number_and_null_for_nan(study: Investigation) -> None:
    content = json.loads(investigation_report.to_json(study, "noise.png"), parse_constant=refuse)
    assert content["picture"] == "noise.png"
    assert len(content["findings"]) == 5
    bare, signed = content["findings"][:2]
    assert bare["finite"] is False
    assert bare["values"]["total"] is None
    assert bare["origin"]["name"] == "0"
    assert signed["values"]["total"] == study.findings[1].values.total
    assert signed["largest"]["row"] == study.findings[1].largest.row


def test_markdown_has_tables_of_equal_width(study: Investigation) -> None:
    text = investigation_report.to_markdown(study, "noise.png")
    lines = text.splitlines()
    for title, header, rows in investigation_report.tables(study):
        first = lines.index(f"## {title}") + 2
        table = lines[first : first + 2 + len(rows)]
        assert {line.count("|") for line in table} == {len(header) + 1}
    assert "![heatmaps over the picture](heatmaps.png)" in text
    assert "non-finite values of relevance first arose in layer '0' under" in text


def test_three_files_are_written(study: Investigation, tmp_path: Path) -> None:
    paths = investigation_report.write(study, tmp_path / "new" / "folder", "noise.png")
    assert [path.name for path in paths] == ["report.json", "report.md", "heatmaps.png"]
    with Image.open(paths[2]) as drawn:
        assert drawn.width > 900
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def test_a_folder_that_cannot_be_made(study: Investigation, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match=r"cannot make the folder .* with --out"):
        investigation_report.write(study, tmp_path / "file" / "folder", "x")


def test_a_file_that_cannot_be_written(study: Investigation, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    with pytest.raises(ReportError, match="cannot write the report"):
        investigation_report.write(study, tmp_path, "x")
