"""Where the snippets of the documentation are run."""

from pathlib import Path

import matplotlib
import pytest
import setting
from torchvision.models import WeightsEnum

collect_ignore_glob = ["*.py", "_build"]


@pytest.fixture(autouse=True)
def where_a_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with pictures, without network and display."""
    setting.fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", setting.random_weights)
    matplotlib.use("Agg")
