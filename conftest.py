"""Where the snippets of README.md and of the documentation are run."""

from importlib.util import find_spec

import matplotlib
import pytest
from torchvision.models import WeightsEnum

from docs import setting

collect_ignore = [] if find_spec("quantus") else ["docs/howto/quantus.md"]
collect_ignore_glob = ["docs/*.py", "docs/_build", "examples"]


@pytest.fixture(autouse=True)
def where_a_reader_is(request: pytest.FixtureRequest) -> None:
    """Run pages in a folder with pictures, without network and display."""
    if request.node.path.suffix != ".md":
        return
    folder = request.getfixturevalue("tmp_path")
    monkeypatch = request.getfixturevalue("monkeypatch")
    setting.fill(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", setting.random_weights)
    matplotlib.use("Agg")
