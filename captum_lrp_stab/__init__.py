"""Layer-wise relevance propagation with injectable stabilizers, as a plugin for Captum.

What is offered here stands in ``__init__.pyi`` and is imported when it is first asked for: the
command's help and completion need none of it, and importing PyTorch takes seconds. Modules of this
package import each other and never ask here.
"""

from threading import RLock
from typing import Any

import lazy_loader

_offered, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_one_at_a_time = RLock()


def __getattr__(name: str) -> Any:
    # Modules of Captum and of matplotlib import each other in circles: threads that begin at
    # different places would wait for each other.
    with _one_at_a_time:
        return _offered(name)
