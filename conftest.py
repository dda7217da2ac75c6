"""What the tests share, and where the snippets of README.md and of the documentation are run."""

import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from torchvision.models import WeightsEnum

from captum_lrp_stab.tensors import blocks
from docs import setting

collect_ignore = [] if find_spec("quantus") else ["docs/howto/quantus.md"]
collect_ignore_glob = ["docs/*.py", "docs/_build", "examples"]

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # each process takes its share of the cores
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(share)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # and the processes it starts


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: of tiny tensors two threads do no more than wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take Ctrl-C as in a shell: processes of pytest-xdist ignore it, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[None, 7], ids=["whole", "in blocks"])
def block(request: Any, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Tensors small and large: a block of 7 elements takes the way of millions."""
    if request.param is not None:
        monkeypatch.setattr(blocks, "_SIZE", request.param)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def where_a_reader_is(request: pytest.FixtureRequest) -> None:
    """Run pages in a folder with pictures, without network and display."""
    if request.node.path.suffix != ".md":
        return
    folder = request.getfixturevalue("tmp_path")
    monkeypatch = request.getfixturevalue("monkeypatch")
    setting.fill(folder)
    monkeypatch.chdir(folder)
    scripts = str(Path(sys.executable).parent)  # the command, where no environment is active
    monkeypatch.setenv("PATH", scripts, prepend=os.pathsep)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", setting.random_weights)
    matplotlib.use("Agg")
