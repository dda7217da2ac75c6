"""What the pictures share: a heatmap over a picture, and its scale."""

import math

import numpy as np
from matplotlib.figure import Figure

from captum_lrp_stab.images import style


def test_the_panels_draw_what_they_get() -> None:
    axes = Figure().subplots()
    values = np.array([[1.0, -2.0], [math.nan, 0.0]])
    heat = style.overlay(axes, None, values, 2.0, note="because")
    np.testing.assert_array_equal(np.asarray(heat.get_array()), [[1, -2], [0, 0]])
    assert heat.get_clim() == (-2, 2) and axes.texts[0].get_text() == "because"


def test_scale_by_share() -> None:
    assert style.scale_by_share(np.array([0.0, math.nan]), 0.1) == 1
    assert style.scale_by_share(np.array([1.0, -1.0, 8.0]), 0.5) == 8
    assert style.scale_by_share(np.array([1e308, 1e308, -1e308]), 0.05) == 1e308
