"""Draw each stabilizer: z -> s(z), and the factor z -> z / s(z) of the gradient form.

    python docs/draw_stabilizers.py

writes docs/pictures/stabilizer_*.png, and the numbers in them, docs/pictures/stabilizers.json.
"""

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from captum_lrp_stab import stabilizers
from captum_lrp_stab.stabilizers import Stabilizer

FOLDER = Path(__file__).parent / "pictures"
EPSILON = 0.25
SHOWN: dict[str, Stabilizer] = {
    "stabilizer_identity": stabilizers.Identity(),
    "stabilizer_signed": stabilizers.Signed(EPSILON),
    "stabilizer_clip": stabilizers.Clip(EPSILON),
    "stabilizer_rounding_aware": stabilizers.RoundingAware(8.0),
    "stabilizer_root_mean_square": stabilizers.RootMeanSquare(0.5),
    "stabilizer_additive": stabilizers.Additive(EPSILON),
}
_MAGNITUDE = 2.0**20  # of which float32 keeps 1/16: in its noise lies all of |z| < 0.5
_LINE, _PALE = "#0072B2", "0.75"


def curves() -> dict[str, dict[str, list[float | None]]]:
    """Return z, s(z) and z / s(z) for each stabilizer; None where a value is not finite."""
    z = torch.linspace(-1, 1, 201)
    found = {}
    for name, stabilizer in SHOWN.items():
        s = stabilizer.stabilize(z[None], torch.full_like(z[None], _MAGNITUDE))[0]
        found[name] = {
            "z": _numbers(z),
            "s": _numbers(s),
            "factor": _numbers(z / s),
        }
    return found


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [round(v, 4) if np.isfinite(v) else None for v in values.tolist()]


def draw(curve: dict[str, list[float | None]]) -> Figure:
    """Return a figure of one stabilizer: s(z) beside the factor."""
    figure = Figure(figsize=(6.4, 2.9), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    z = np.array(curve["z"], dtype=float)
    left.plot(z, z, color=_PALE, linestyle="--")
    _line(left, z, np.array(curve["s"], dtype=float))
    left.set(ylim=(-1.6, 1.6))
    left.set_title("s(z)", fontsize=13, loc="left")
    right.axhline(1, color=_PALE, linestyle="--")
    _line(right, z, np.array(curve["factor"], dtype=float))
    right.set(ylim=(-3, 5))
    right.set_title("z / s(z)", fontsize=13, loc="left")
    for ax in (left, right):
        ax.axhline(0, color="black", linewidth=0.6)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(xlim=(-1, 1), xticks=(-1, 0, 1))
        ax.set_xlabel("z", fontsize=13)
        ax.tick_params(labelsize=12)
    return figure


def _line(ax: Axes, z: np.ndarray, y: np.ndarray) -> None:
    """Draw a curve without joining the two sides of a jump or a pole."""
    jumps = np.flatnonzero((np.abs(np.diff(y)) > 0.2) & (y[1:] * y[:-1] < 0)) + 1
    z, y = np.insert(z, jumps, np.nan), np.insert(y, jumps, np.nan)
    ax.plot(z, y, color=_LINE, linewidth=2)


def main() -> None:
    """Write the picture and its data."""
    FOLDER.mkdir(exist_ok=True)
    found = curves()
    for name, curve in found.items():
        draw(curve).savefig(FOLDER / f"{name}.png")
    (FOLDER / "stabilizers.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
