"""What one run of the benchmark measures, and on which device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICES = ("cpu", "cuda")
QUICK = ("ours:epsilon_gamma_box", "captum:epsilon", "zennit:epsilon_gamma_box")
"""Methods of a quick run."""


@dataclass(frozen=True)
class Settings:
    """The options of a run.

    Args:
        models: torchvision's classifiers with random weights, or ``efficientnet_lite0``.
        batches: Batch sizes.
        methods: Names of contenders, ``library:rules``, or of libraries; empty for all.
        presets: Rules by name; empty for the usual ones.
        rounds: How often each contender is timed, after one round that is thrown away.
        threads: Of torch; None leaves them as they are.
        device: ``cpu`` or ``cuda``.
        dtype: Of model and inputs.
        size: Height and width of the inputs.
        seed: Of weights and inputs.
        memory: Measure peak memory, one process per row.
        many: Measure several targets and stabilizers in one call.
    """

    models: tuple[str, ...] = (
        "vgg16",
        "resnet50",
        "convnext_tiny",
        "vit_b_16",
        "efficientnet_lite0",
    )
    batches: tuple[int, ...] = (1, 4, 16)
    methods: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    rounds: int = 7
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    size: int = 224
    seed: int = 0
    memory: bool = True
    many: bool = True

    @staticmethod
    def of(options: Mapping[str, Any]) -> "Settings":
        """Return settings from options by name, in which JSON and argparse make lists of tuples."""
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in options.items()
        }
        return Settings(**given)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return DTYPES[self.dtype]

    def quick(self) -> "Settings":
        """Return the same with one tiny network and few methods, to see that all parts work."""
        chosen = self.methods or (() if self.presets else QUICK)
        return replace(
            self, models=("squeezenet1_1",), batches=(1,), methods=chosen, rounds=2, size=64
        )
