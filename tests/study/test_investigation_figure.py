"""The heatmaps side by side."""

from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot
from PIL import Image
from torch import nn

from captum_lrp_stab.study import investigation_figure
from captum_lrp_stab.study.investigation import Investigation, investigate
from tests.helpers.studies import classifier, picture


@pytest.fixture(scope="module")
def study() -> Investigation:
    return investigate(classifier(), picture(), form="relevance", rules="zero")


def test_drawing_leaves_pyplot_alone(study: Investigation) -> None:
    backend, figures = dict.__getitem__(matplotlib.rcParams, "backend"), pyplot.get_fignums()
    figure = investigation_figure.draw(study)
    assert dict.__getitem__(matplotlib.rcParams, "backend") == backend
    assert pyplot.get_fignums() == figures
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 6


def texts(figure: Any) -> str:
    return "\n".join(t.get_text() for ax in figure.axes for t in [ax._left_title, *ax.texts])


def test_drawing_says_where_nan_arose(study: Investigation) -> None:
    drawn = texts(investigation_figure.draw(study))
    for part in ("none", "clip:0.1", "NaN", "first arose in layer\n0\n(backward pass)"):
        assert part in drawn


def test_titles_do_not_overlap(study: Investigation) -> None:
    figure = investigation_figure.draw(study)
    figure.canvas.draw()
    titles = [t.get_window_extent() for ax in figure.axes for t in (ax._left_title, ax.texts[-1])]
    for index, first in enumerate(titles):
        assert not any(first.overlaps(second) for second in titles[index + 1 :])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_drawing_any_number_of_stabilizers(count: int) -> None:
    found = investigate(classifier(), picture(), names=["signed"] * count)
    assert sum(bool(ax.images) for ax in investigation_figure.draw(found).axes) == count + 1


def test_drawing_relevance_that_is_0_everywhere() -> None:
    def silent() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten())

    c = classifier(silent)
    nn.init.zeros_(c.model[0].weight)
    assert "0 everywhere" in texts(
        investigation_figure.draw(investigate(c, picture(), names=["signed"]))
    )


def test_drawing_relevance_that_is_nowhere_finite() -> None:
    black = Image.new("RGB", (16, 16))
    found = investigate(classifier(), black, rules="zero", form="relevance", names=["none"])
    assert "no finite pixel" in texts(investigation_figure.draw(found))
