"""Layer-wise relevance propagation with injectable stabilizers, as a plugin for Captum.

What is offered here stands in ``__init__.pyi`` and is imported when it is first asked for: the
command's help and completion need none of it, and importing PyTorch takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
