"""Heatmaps as matplotlib figures: what is drawn, on which scale, with which words."""

import math
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from captum.attr._utils.visualization import _normalize_attr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from captum_lrp_stab import LRP, presets, stabilizers, visualize
from captum_lrp_stab.errors import InputError
from captum_lrp_stab.images import arrays

R = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
PICTURE = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(1))


def shown(figure: Figure) -> list[Any]:
    """The axes with a heatmap, in order."""
    figure.canvas.draw()
    return [ax for ax in figure.axes if ax.images]


def drawn(ax: Any) -> np.ndarray:
    return np.asarray(ax.images[-1].get_array())


def limit(ax: Any) -> float:
    low, high = ax.images[-1].get_clim()
    assert low == -high
    return float(high)


def words(ax: Any) -> str:
    return "\n".join([ax.get_title(loc="left"), *(text.get_text() for text in ax.texts)])


def bars(figure: Figure) -> list[Any]:
    return [ax for ax in figure.axes if not ax.images and ax.get_ylabel() == "relevance"]


def test_a_heatmap_is_the_sum_over_channels() -> None:
    (ax,) = shown(visualize.heatmap(R, sample=1))
    np.testing.assert_array_equal(drawn(ax), R[1].double().sum(0))
    assert limit(ax) == np.percentile(R[1].double().sum(0).abs().numpy(), 99.5)
    assert words(ax) == f"\nsum {R[1].double().sum():.4g}"


@pytest.mark.parametrize("given", [R[0], R[0].numpy(), R[0].double(), R[:1], R[0].bfloat16()])
def test_kinds_of_relevance(given: Any) -> None:
    (ax,) = shown(visualize.heatmap(given))
    wanted = torch.as_tensor(given).double().reshape(3, 8, 6).sum(0)
    np.testing.assert_array_equal(drawn(ax), wanted)
    (ax,) = shown(visualize.heatmap(wanted))  # without channels
    np.testing.assert_array_equal(drawn(ax), wanted)


def test_relevance_with_a_graph_and_the_score_of_a_model() -> None:
    score = torch.tensor([2.5], requires_grad=True)
    (ax,) = shown(visualize.heatmap(R[0] * score, score=score, name="one"))
    assert words(ax) == f"one\nscore 2.5, sum {2.5 * R[0].double().sum():.4g}"


PICTURES = {
    "batch": PICTURE,
    "tensor": PICTURE[0],
    "float array": PICTURE[0].permute(1, 2, 0).numpy(),
    "bytes": (PICTURE[0] * 255).round().to(torch.uint8),
    "byte array": (PICTURE[0] * 255).round().byte().permute(1, 2, 0).numpy(),
}
PICTURES["PIL"] = Image.fromarray(PICTURES["byte array"])


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_the_picture_shows_below(picture: Any) -> None:
    (ax,) = shown(visualize.heatmap(R, picture))
    below, heat = ax.images
    np.testing.assert_allclose(
        np.asarray(below.get_array()), PICTURES["byte array"].mean(2), atol=1e-9
    )
    assert below.get_extent() == heat.get_extent()
    assert heat.get_alpha() == 1  # the map itself is transparent at 0
    assert heat.get_cmap()(0.5)[3] < 0.02 and heat.get_cmap()(1.0)[3] == 1


def test_a_grey_picture_and_relevance_of_an_inner_layer() -> None:
    (ax,) = shown(visualize.heatmap(R, torch.rand(1, 1, 32, 24)))
    below, heat = ax.images
    assert tuple(below.get_extent()) == tuple(heat.get_extent()) == (-0.5, 23.5, 31.5, -0.5)
    assert drawn(ax).shape == (8, 6)


def test_several_share_a_scale() -> None:
    figure = visualize.heatmaps({"a": R[0], "b": 10 * R[0]}, scores={"b": 3})
    a, b = shown(figure)
    pooled = np.abs([R[0].double().sum(0).numpy(), (10 * R[0]).double().sum(0).numpy()])
    assert limit(a) == limit(b) == np.percentile(pooled, 99.5)
    assert len(bars(figure)) == 1
    assert words(a).startswith("a\nsum") and words(b).startswith("b\nscore 3, sum")
    a, b = shown(visualize.heatmaps({"a": R[0], "b": 10 * R[0]}, shared=False))
    assert limit(b) == pytest.approx(10 * limit(a))
    assert f"colours to ±{limit(a):.3g}" in words(a)


def test_scales() -> None:
    values = R[0].double().sum(0).numpy()
    sizes = np.abs(values)
    wanted = {
        "percentile": np.percentile(sizes, 99.5),
        "max": sizes.max(),
        "cubic": 10 * (sizes**3).mean() ** (1 / 3),
        0.125: 0.125,
    }
    for scale, expected in wanted.items():
        (ax,) = shown(visualize.heatmap(R, scale=scale))
        assert limit(ax) == pytest.approx(expected, rel=1e-12), scale
    assert len({round(v, 6) for v in wanted.values()}) == 4  # they can be told apart


def test_captums_scale_is_captums() -> None:
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(2)).double() ** 3
    (ax,) = shown(visualize.heatmap(values, scale="captum"))
    np.testing.assert_allclose(
        np.clip(drawn(ax) / limit(ax), -1, 1), _normalize_attr(values.numpy(), "all"), rtol=1e-12
    )


@given(
    st.lists(
        st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, 0.0, 5e-324]),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(arrays.SCALES),
)
def test_every_scale_is_positive_and_finite(values: list[float], scale: str) -> None:
    found = arrays.limit(scale, [np.array(values)])
    assert 0 < found < math.inf


@pytest.mark.parametrize("scale", arrays.SCALES)
def test_scales_go_with_the_values(scale: str) -> None:
    values = R.double().numpy()
    once, twice = arrays.limit(scale, [values]), arrays.limit(scale, [values * 2, -2 * values])
    assert twice == pytest.approx(2 * once, rel=2e-2)


def test_channels() -> None:
    figure = visualize.channels(R, PICTURE, score=1.0)
    every = shown(figure)
    assert [ax.get_title(loc="left") for ax in every] == ["all channels", "red", "green", "blue"]
    for ax, values in zip(every, [R[0].double().sum(0), *R[0].double()], strict=True):
        np.testing.assert_array_equal(drawn(ax), values)
    assert ["score" in words(ax) for ax in every] == [True, False, False, False]
    assert len({limit(ax) for ax in every}) == 1
    five = shown(visualize.channels(torch.ones(5, 4, 4)))
    assert [ax.get_title(loc="left") for ax in five][-1] == "channel 4"
    named = shown(visualize.channels(torch.ones(1, 2, 4, 4), names=["left", "right"]))
    assert [ax.get_title(loc="left") for ax in named] == ["all channels", "left", "right"]


def test_a_grid_has_named_rows_and_columns() -> None:
    rows = {"one": {"a": R[0], "b": R[1]}, "two": {"b": 5 * R[0]}}
    figure = visualize.grid(rows, scores={"one": 1}, shared="rows", title="$many$")
    first, second, third = shown(figure)
    assert words(first).split("\n")[0] == "a" and words(first).endswith("one")
    assert limit(first) == limit(second) != limit(third)
    assert len(bars(figure)) == 2
    assert figure.get_suptitle() == "$many$"
    assert "two" in {text.get_text() for ax in figure.axes for text in ax.texts}  # an empty corner
    # b of the second row stands below b of the first
    assert third.get_position().x0 == pytest.approx(second.get_position().x0, abs=0.02)


def test_a_grid_has_a_score_for_each_panel() -> None:
    rows = {"one": {"a": R[0], "b": R[1]}, "two": {"a": R[0]}}
    said = shown(visualize.grid(rows, scores={"one": {"b": 7.0}, "two": 8.0}))
    assert ["score 7" in words(ax) for ax in said] == [False, True, False]
    assert ["score 8" in words(ax) for ax in said] == [False, False, True]
    assert all("score 3" in words(ax) for ax in shown(visualize.grid(rows, scores=3.0)))
    for scores in ({"three": 1.0}, {"two": {"b": 1.0}}):
        with pytest.raises(InputError, match="a score is given for"):
            visualize.grid(rows, scores=scores)


def test_long_names_are_cut_in_the_middle() -> None:
    long = "modified-forward, quadratic-mean with epsilon 0.1"
    (ax,) = shown(visualize.heatmap(R, name=long))
    found = ax.get_title(loc="left")
    assert len(found) <= 34 and found.startswith("modified-forward") and found.endswith("0.1")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 48, 2)
    )


def test_rules_by_stabilizers_runs_each() -> None:
    model, rules = network(), {"zero": presets.zero(), "plus": presets.epsilon_plus()}
    several = {"signed": 0.1, "clip": stabilizers.Clip(1.0)}
    figure = visualize.rules_by_stabilizers(model, R, 1, rules, several, PICTURE, sample=1)
    panels_ = shown(figure)
    score = float(model(R)[1, 1].detach())
    at = iter(panels_)
    for some in rules.values():
        for stabilizer in several.values():
            ((wanted,),) = LRP(model, some).attribute_many(R, [1], stabilizers=[stabilizer])
            ax = next(at)
            np.testing.assert_array_equal(drawn(ax), wanted[1].double().sum(0))
            assert f"score {score:.4g}, sum" in words(ax)
    assert not np.array_equal(drawn(panels_[0]), drawn(panels_[1]))


def test_what_is_not_finite_is_marked() -> None:
    bad = R.clone()
    bad[0, :, :2] = math.nan
    bad[0, 0, 7, 0] = math.inf
    (ax,) = shown(visualize.heatmap(bad))
    heat, mark = ax.images
    assert np.isfinite(np.asarray(heat.get_array())).all()
    assert (np.asarray(mark.get_array())[..., 3] > 0).sum() == 13
    assert "sum not finite" in words(ax) and "13 of 48 pixels\nNaN or Inf" in words(ax)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e300, math.nan])
def test_odd_sizes_of_relevance(value: float) -> None:
    """Captum's own scaling fails at 0 and warns near it."""
    (ax,) = shown(
        visualize.heatmap(
            torch.full((1, 3, 4, 4), value, dtype=torch.float64), PICTURE[:, :, :4, :4]
        )
    )
    assert ax.images[1].get_clim()[1] > 0


def test_values_that_overflow_when_added() -> None:
    """No warning of NumPy's, and no scale that cannot be drawn."""
    infinite = torch.tensor([[[math.inf, 1.0]], [[-math.inf, 2.0]]])
    (ax,) = shown(visualize.heatmap(infinite))
    assert "1 of 2 pixels" in words(ax)
    large = torch.full((2, 1, 2), 1.7e308, dtype=torch.float64)
    (ax,) = shown(visualize.heatmap(large))
    assert "2 of 2 pixels" in words(ax)
    for scale in (*arrays.SCALES, 1.7e308):
        shown(visualize.heatmap(torch.tensor([[1.7e308, -1.7e308]]).double(), scale=scale))
    assert len(shown(visualize.channels(large))) == 3


def test_rows_without_panels_have_no_colour_bar() -> None:
    for rows in ({"a": {}, "b": {"x": R}}, {"a": {"x": R}, "b": {}}):
        figure = visualize.grid(rows, shared="rows")
        (ax,) = shown(figure)
        (bar,) = bars(figure)
        low, high = sorted((ax.get_position().y0, ax.get_position().y1))
        assert low - 0.1 < bar.get_position().y0 < bar.get_position().y1 < high + 0.1


def test_names_need_not_be_strings() -> None:
    panels_ = shown(visualize.heatmaps({1e-6: R, 3: R}, scores={3: 1.0}))
    assert [ax.get_title(loc="left") for ax in panels_] == ["1e-06", "3"]
    assert "score 1" in words(panels_[1])
    with pytest.raises(InputError, match="a score is given for 4; there is 3"):
        visualize.heatmaps({3: R}, scores={4: 1.0})
    shown(visualize.grid({1: {2: R}}))
    shown(visualize.channels(R, names=[1, 2, 3]))


def test_pictures_of_more_than_8_bits_and_transparent_ones() -> None:
    wide = Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16))
    assert len(np.unique(arrays.picture_of(wide, 0))) > 50
    floating = Image.fromarray(np.linspace(0, 1, 64).reshape(8, 8).astype(np.float32))
    assert len(np.unique(arrays.picture_of(floating, 0))) > 50
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (arrays.picture_of(clear, 0) == 255).all()


def test_what_is_wrong_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LRP, "attribute_many", lambda *args, **kw: pytest.fail("it ran"))
    for options, message in (
        ({"sample": 5}, "sample is 5"),
        ({"columns": 2}, "leave columns out"),
        ({"picture": torch.rand(3, 30, 60)}, "30 x 60"),
    ):
        with pytest.raises(InputError, match=message):
            visualize.rules_by_stabilizers(
                network(), R, 1, {"a": presets.zero()}, {"b": 1e-6}, **options
            )


def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    figure = visualize.heatmap(R)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_captions_have_the_colour_of_a_styles_text() -> None:
    with matplotlib.style.context("dark_background"):
        (ax,) = shown(visualize.heatmap(R, score=1.0))
        assert {text.get_color() for text in ax.texts} == {"white"}


def test_pyplot_and_what_is_given_are_left_alone() -> None:
    figures, backend = pyplot.get_fignums(), dict.__getitem__(matplotlib.rcParams, "backend")
    before = R.clone(), PICTURE.clone(), torch.get_rng_state()
    visualize.grid({"a": {"b": R}}, PICTURE)
    visualize.channels(R)
    assert torch.equal(R, before[0]) and torch.equal(PICTURE, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert pyplot.get_fignums() == figures
    assert dict.__getitem__(matplotlib.rcParams, "backend") == backend


def test_colours() -> None:
    (ax,) = shown(visualize.heatmap(R, PICTURE, colours="seismic"))
    assert ax.images[-1].get_cmap().name == "seismic" and ax.images[-1].get_alpha() == 0.6
    (ax,) = shown(visualize.heatmap(R, colours=matplotlib.colormaps["PuOr_r"]))
    assert ax.images[-1].get_cmap().name == "PuOr_r" and ax.images[-1].get_alpha() == 1
    (ax,) = shown(visualize.heatmap(R, PICTURE, colours="coldnhot", alpha=0.3))
    assert ax.images[-1].get_alpha() == 0.3
    assert max(ax.images[-1].get_cmap()(0.5)[:3]) < 0.02  # black at 0


WRONG = {
    "no image": (lambda: visualize.heatmap(torch.ones(2, 5, 3, 4, 4)), r"\(2, 5, 3, 4, 4\)"),
    "tokens": (lambda: visualize.heatmap(torch.ones(7)), r"shape \(7,\)"),
    "empty": (lambda: visualize.heatmap(torch.ones(1, 3, 0, 4)), "no image"),
    "a list": (lambda: visualize.heatmap([[1.0]]), "a list of 1; give one relevance of them"),
    "a tuple": (lambda: visualize.heatmap((R, R)), "a tuple of 2; give one relevance of them"),
    "sparse": (lambda: visualize.heatmap(R[0, 0].to_sparse()), "to_dense"),
    "sample of a kind": (lambda: visualize.heatmap(R, sample=1.0), "sample is 1.0"),
    "columns of a kind": (lambda: visualize.heatmaps({"a": R}, columns="2"), "columns is '2'"),
    "alpha of a kind": (lambda: visualize.heatmap(R, alpha="x"), "alpha is a str 'x'"),
    "a scale too large": (lambda: visualize.heatmap(R, scale=10**400), "scale is a"),
    "complex": (lambda: visualize.heatmap(R * 1j), "complex"),
    "sample": (lambda: visualize.heatmap(R, sample=2), "sample is 2; the relevance has 2"),
    "normalised": (lambda: visualize.heatmap(R, 4 * PICTURE - 2), "before normalisation"),
    "nan picture": (lambda: visualize.heatmap(R, PICTURE * math.nan), "run from nan"),
    "two channels": (lambda: visualize.heatmap(R, PICTURE[:, :2]), "shape"),
    "uncropped": (lambda: visualize.heatmap(R, torch.rand(3, 300, 400)), "300 x 400"),
    "transposed": (lambda: visualize.heatmap(R, PICTURE.transpose(2, 3)), "6 x 8"),
    "scale": (lambda: visualize.heatmap(R, scale="mean"), "percentile, max, captum, cubic"),
    "scale 0": (lambda: visualize.heatmap(R, scale=0), "scale is 0"),
    "scale nan": (lambda: visualize.heatmap(R, scale=math.nan), "scale is nan"),
    "shared": (lambda: visualize.heatmaps({"a": R}, shared="columns"), "'columns'"),
    "alpha": (lambda: visualize.heatmap(R, alpha=2), "alpha is 2"),
    "columns": (lambda: visualize.heatmaps({"a": R}, columns=0), "columns is 0"),
    "columns of a grid": (lambda: visualize.grid({"a": {"b": R}}, columns=2), "leave columns out"),
    "colours": (lambda: visualize.heatmap(R, colours="pink and blue"), "no colour map"),
    "option": (lambda: visualize.heatmap(R, cmap="bwr"), "no option is called 'cmap'"),
    "nothing": (lambda: visualize.heatmaps({}), "no relevance"),
    "an empty row": (lambda: visualize.grid({"a": {}}), "no relevance"),
    "score": (lambda: visualize.heatmap(R, score="high"), "score is a str"),
    "scores": (lambda: visualize.heatmap(R, score=torch.ones(3)), r"of shape \(3,\)"),
    "score of none": (lambda: visualize.heatmaps({"a": R}, scores={"b": 1}), "'b'"),
    "names": (lambda: visualize.channels(R, names=["a"]), "1 names for 3 channels"),
    "same names": (lambda: visualize.channels(R, names=["a", "a", "b"]), "not distinct"),
    "a picture of text": (lambda: visualize.heatmap(R, "cat.jpg"), "a str"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_drawn_is_said(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_titles_stay_inside_the_figure_and_apart() -> None:
    for shared in (True, False, "rows"):
        figure = visualize.grid(
            {"first row": {"a": R, "b": R}, "second": {"a": R, "b": R}},
            PICTURE,
            shared=shared,
            title="above",
        )
        figure.canvas.draw()
        width, height = figure.canvas.get_width_height()
        texts = [
            text.get_window_extent()
            for ax in figure.axes
            for text in (ax._left_title, *ax.texts)
            if text.get_text()
        ]
        texts.append(figure._suptitle.get_window_extent())
        for index, box in enumerate(texts):
            assert 0 <= box.x0 and 0 <= box.y0 and box.x1 <= width and box.y1 <= height
            assert not any(box.overlaps(other) for other in texts[index + 1 :])
