"""What depends on the version of zennit that is installed."""

import importlib.metadata

import pytest

LEAVES_EPS = int(importlib.metadata.version("zennit").partition(".")[0]) < 1
"""Whether zennit leaves eps in the batch norms it merges, as it did before 1.0."""

leaving_eps = pytest.mark.skipif(not LEAVES_EPS, reason="zennit 1.0 sets their eps to 0")
