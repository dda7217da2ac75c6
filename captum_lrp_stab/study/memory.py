"""Memory of one attribution at a time.

An attribution leaves cycles of references behind that hold its activations, some hundred megabytes
of a large network, until Python's garbage collector comes by; it counts objects, not bytes, and may
come by late.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def frugal() -> Iterator[Callable[[], int]]:
    """Yield what frees the cycles that were left since the beginning.

    What is there before is passed over, which makes it fast enough to be called after each
    attribution, unless someone else has set objects aside by ``gc.freeze``.
    """
    gc.collect()
    is_ours = gc.get_freeze_count() == 0
    if is_ours:
        gc.freeze()
    try:
        yield gc.collect
    finally:
        if is_ours:
            gc.unfreeze()
