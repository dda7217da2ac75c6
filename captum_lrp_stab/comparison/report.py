"""A comparison on a picture as files: ``comparison.json`` and ``comparison.png``."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captum
import torch

from captum_lrp_stab._version import __version__
from captum_lrp_stab.comparison import drawing
from captum_lrp_stab.comparison.result import Comparison
from captum_lrp_stab.reporting import files
from captum_lrp_stab.zoo.prediction import Prepared

LEGEND = (
    "Each row compares the relevance of a layer's output on both sides; rel. L2 is |a - b| / |b|, "
    "b being the reference; top 1%: overlap of the strongest pixels. '-': a side is not finite, or "
    "constant. comparison.json has more."
)


@dataclass(frozen=True, eq=False)
class About:
    """What a comparison is about."""

    ready: Prepared
    picture: str
    rules: str
    form: str
    stabilizer: str | None
    warnings: tuple[str, ...]  # of the runs

    def sentence(self, compared: Comparison) -> str:
        """Return it in words."""
        ready, classifier = self.ready, self.ready.classifier
        stabilizer = "" if self.stabilizer is None else f", stabilizer {self.stabilizer}"
        return (
            f"{classifier.name} ({classifier.weights}) on {self.picture}: {ready.label}, score "
            f"{ready.score:.4g}, probability {ready.probability:.3g}; {self.rules}{stabilizer}, "
            f"{self.form} form, {ready.dtype}, against {compared.reference}"
        )

    def facts(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        ready, classifier = self.ready, self.ready.classifier
        return {
            "picture": self.picture,
            "model": classifier.name,
            "weights": classifier.weights,
            "target": ready.target,
            "label": ready.label,
            "probability": ready.probability,
            "rules": self.rules,
            "stabilizer": self.stabilizer,
            "form": self.form,
            "warnings": self.warnings,
        }


def write(compared: Comparison, about: About, folder: Path) -> list[Path]:
    """Write both files and return their paths.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    versions = {
        "captum-lrp-stab": __version__,
        "captum": captum.__version__,
        "torch": torch.__version__,
    }
    content = {**about.facts(), **compared.facts(), "versions": versions}
    figure = drawing.draw(compared, about.ready.picture, about.sentence(compared))
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return files.write(
        folder,
        {
            "comparison.json": (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(),
            "comparison.png": image.getvalue(),
        },
    )
