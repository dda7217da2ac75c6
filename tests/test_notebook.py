"""The notebook of the castle study: stored clean, and it runs from either folder."""

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.repository import ROOT

NOTEBOOK = ROOT / "examples" / "castle_study.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_stored_without_outputs_and_traces_of_a_machine() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize("folder", [ROOT, ROOT / "examples"], ids=["root", "examples"])
def test_it_runs(folder: Path) -> None:
    # torch has a thread pool for each process, and the kernel is one
    notebook = read()
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(o.text for o in outputs if o.get("name") == "stdout")
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4  # the photograph, the stabilizers, two rows of heatmaps
    assert all(len(base64.b64decode(picture)) > 10_000 for picture in pictures)
    assert "espresso: score 11.4" in printed
    assert "none                 NaN, which arose in _avg_pooling" in printed
    assert "not finite: it starts at layer '_avg_pooling'" in printed
    difference = float(printed.rsplit(maxsplit=1)[-1])
    assert difference < 5e-3  # an epsilon of 1e-6, where a few denominators are as small
