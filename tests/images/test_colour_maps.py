"""The colour maps tell the signs apart without telling red from green."""

from typing import Any

import numpy as np
import pytest

from captum_lrp_stab.images import grid

# Linear RGB to linear RGB as seen with each deficiency, complete: Machado et al. 2009, table 1
DEFICIENCIES = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = np.array([0.9505, 1.0, 1.089])


def lab(colour: Any, deficiency: str) -> np.ndarray:
    """A colour over white as it is seen, in CIELAB."""
    rgb = np.array(colour[:3]) * colour[3] + 1 - colour[3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(np.array(TO_XYZ) @ seen / WHITE, 1e-3))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(colours: str, deficiency: str) -> float:
    """How far the two signs are apart as seen, the least over several strengths."""
    chosen = grid.Options(colours=colours).map
    return min(
        float(np.linalg.norm(lab(chosen(at), deficiency) - lab(chosen(1 - at), deficiency)))
        for at in (0.0, 0.1, 0.2)
    )


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_maps_do_not_depend_on_telling_red_from_green(deficiency: str) -> None:
    named = ("relevance", "coldnhot", "seismic", "bwr", "coolwarm", "RdBu_r", "PuOr_r")
    for colours in named:
        assert apart(colours, deficiency) > 30, colours  # plainly different
    assert apart("RdYlGn", deficiency) < 20  # the negative control, close to Captum's own
