"""What tests of many tiny networks share."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from captum_lrp_stab import blocks

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


@pytest.fixture(params=[None, 7], ids=["whole", "in blocks"])
def block(request: Any, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Tensors small and large: a block of 7 elements takes the way of millions."""
    if request.param is not None:
        monkeypatch.setattr(blocks, "_SIZE", request.param)
    return request.param  # type: ignore[no-any-return]
