"""Layer-wise relevance propagation with injectable stabilizers, as a plugin for Captum.

What is offered here stands in ``__init__.pyi`` and is imported when it is first asked for: the
command's help and completion need none of it, and importing PyTorch takes seconds.
"""

from importlib import import_module
from typing import Any

import lazy_loader

_offered, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__ and name != "__version__":
        # One way in: modules here and in Captum import each other in circles, and threads that
        # begin at different places would wait for each other.
        import_module(f"{__name__}.lrp")
    return _offered(name)
