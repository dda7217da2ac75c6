"""A study in words, tables, figures and files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from captum_lrp_stab.study import figures, report, tables
from captum_lrp_stab.study.records import PictureRecord, Run, Start, record_of
from captum_lrp_stab.study.result import Spread, Study, gather
from captum_lrp_stab.study.statistics import Place, Statistics
from tests.helpers.study_folders import NAMES, fill, study

START = Start("deep", "relevance amplified", "backward", 5e4, (0, 3, 1), "pole", "near 0", "more")


def moments(deviation: float | None, peak: float | None = None, nan: int = 0) -> Statistics:
    return Statistics(-1.0, 1.0, deviation, 0.5, peak, 1, 2, 3, nan, 0)


def run(name: str, verdict: str = "stable", **given: Any) -> Run:
    values: dict[str, Any] = {
        **{"finite": verdict != "not finite", "score": 2.0, "sum_over_score": 1.0, "growth": 3.0},
        **{"values": moments(given.pop("std_value", 0.1))},
        **{"pixels": moments(0.2, given.pop("peak_over_median", 10.0))},
        **{"finite_values": None, "finite_pixels": None},
        **{"largest": Place(0, 1, 2, 0.5, (1, 2, 3), 0.1, None), "smallest": None},
        **{"warnings": (), "amplification": {"top": 2.0, "deep": 0.5}},
    }
    start = None if verdict == "stable" else START
    return Run(name, verdict, start=start, **(values | given))


def made(*pictures: list[Run] | str) -> Study:
    """A study of pictures, each given by its runs or its error."""
    records = [
        PictureRecord(f"{i}.png", None, p)
        if isinstance(p, str)
        else PictureRecord(f"{i}.png", None, None, 1, "owl", 0.5, 2.0, tuple(p))
        for i, p in enumerate(pictures)
    ]
    names = next(([r.name for r in p] for p in pictures if not isinstance(p, str)), ["signed:1"])
    settings = {
        **{"model": "small", "weights": "random", "rules": "zero", "form": "relevance"},
        **{"attention": "attnlrp", "dtype": "float32", "target": None, "threshold": 1000.0},
        **{"fallbacks": [], "detect_anomaly": False},
        **{"stabilizers": names, "captum-lrp-stab": "1", "captum": "2", "torch": "3"},
    }
    return gather(settings, records)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    return study(fill(folder / "in"), folder / "out")


def test_medians_and_worst_are_of_finite_pictures() -> None:
    rows = [
        [run("a", peak_over_median=p, growth=g, verdict=v, std_value=s)]
        for p, g, v, s in (
            (10.0, 1.0, "stable", 0.1),
            (30.0, 2.0, "unstable", 0.3),
            (50.0, 9.0, "stable", 0.2),
            (None, None, "not finite", None),
        )
    ]
    (summary,) = made(*rows, "broken").summaries()
    assert (summary.pictures, summary.finite, summary.unstable) == (4, 3, 2)
    assert summary.peak_over_median == Spread(30.0, 50.0)
    assert (summary.growth, summary.std_value) == (Spread(2.0, 9.0), Spread(0.2, 0.3))
    assert summary.starts == (("deep", 2),)


def test_amplification_by_layer_over_pictures() -> None:
    found = made(
        [run("a", amplification={"first": 1.0, "top": 2.0})],
        [run("a", amplification={"first": 3.0, "seldom": 7.0, "top": None})],
        [run("a", amplification={"early": 1.0, "first": 8.0, "top": 4.0, "end": 1.0})],
    )
    assert found.layers == ("early", "first", "seldom", "top", "end")
    assert found.by_layer("a")[1:4] == [
        ("first", Spread(3.0, 8.0)),
        ("seldom", Spread(7.0, 7.0)),
        ("top", Spread(3.0, 4.0)),
    ]
    assert all(not r.amplification for record in found.records for r in record.runs)


@pytest.mark.parametrize(
    ("study", "tone", "text"),
    [
        (
            made([run("a"), run("b")], [run("a"), run("b")]),
            "good",
            "Under all 2 stabilizers, relevance is stable on all 2 pictures.",
        ),
        (made([run("a")]), "good", "Under the stabilizer, relevance is stable on the picture."),
        (
            made([run("a")], "cannot be read"),
            "warning",
            "Under the stabilizer, relevance is stable on the picture. 1 picture could not be "
            "measured.",
        ),
        (
            made([run("a"), run("b", "unstable")], [run("a"), run("b", "not finite")]),
            "warning",
            "Stable on all 2 pictures: a. b is unstable on 2 of 2 pictures, and not finite on 1 "
            "of these, always from layer 'deep'.",
        ),
        (
            made([run("a", "not finite")], [run("a")]),
            "bad",
            "No stabilizer is stable on all 2 pictures. a is not finite on 1 of 2 pictures, from "
            "'deep'.",
        ),
        (made("x is broken"), "bad", "No picture could be measured: x is broken"),
    ],
)
def test_the_verdict_in_words(study: Study, tone: str, text: str) -> None:
    assert (tables.tone(study), tables.verdict(study)) == (tone, text)


def test_a_grid_is_told_in_short() -> None:
    names = ["none", *(f"signed:1e-{i}" for i in range(9, 2, -1))]
    found = made([run(name, "unstable" if name == "none" else "stable") for name in names])
    assert tables.verdict(found).startswith("Stable on the picture: signed:1e-9 to 1e-3. none is")


def test_the_worst_stabilizer_of_a_picture() -> None:
    rows = [run("a", peak_over_median=1e9), run("b", "unstable"), run("c", "unstable")]
    rows[2] = run("c", "unstable", peak_over_median=20.0)
    found = made(rows, "broken", [run("a"), run("b"), run("c", "not finite")])
    assert tables.per_picture(found).rows == (
        ("0.png", "owl", "unstable", "2 of 3", "c", "deep", "20 !"),
        ("1.png", "", "not measured: broken", "", "", "", ""),
        ("2.png", "owl", "not finite", "1 of 3", "c", "deep", "not finite"),
    )
    table, left = tables.unstable(found, 2)
    assert table.rows[0] == (
        *("0.png", "b", "unstable", "deep", "0, 3, 1", "5e4"),
        "pole: near 0",
    )
    assert (len(table.rows), left) == (2, 1)


def test_where_instability_starts_is_counted() -> None:
    found = made(
        *([run("a", verdict), run("b")] for verdict in ("unstable", "stable", "not finite")),
        [run("a"), run("b", "unstable")],
    )
    assert [tuple(vars(origin).values()) for origin in found.origins()] == [
        ("a", "deep", "pole", "more", 2, 1, "0.png"),
        ("b", "deep", "pole", "more", 1, 0, "3.png"),
    ]


def test_a_record_comes_back_from_json_as_it_was(real: Study) -> None:
    for record in real.records:
        assert record_of(json.loads(json.dumps(record.facts()))) == record
    odd = PictureRecord("x", None, None, 1, "owl", 0.5, 2.0, (run("a", growth=math.inf),))
    assert odd.facts()["runs"][0]["growth"] is None


def test_files_and_what_they_say(real: Study, tmp_path: Path) -> None:
    paths = report.write(real, tmp_path / "new")
    assert [path.name for path in paths] == [
        *("report.html", "report.md", "report.json"),
        *("peaks.png", "amplification.png"),
    ]
    text = paths[1].read_text()
    for part in ("deep/1.png", "exact zero", "Stable on all 3 pictures: signed:0.1", "not finite"):
        assert part in text
    content = json.loads(paths[2].read_text())
    assert [s["name"] for s in content["stabilizers"]] == list(NAMES)
    assert content["stabilizers"][0]["starts"] == [["0", 1]]
    assert content["pictures"][2]["runs"][0]["start"]["layer"] == "0"
    assert "amplification" not in content["pictures"][2]["runs"][0]


def test_a_report_of_nothing_but_errors(tmp_path: Path) -> None:
    paths = report.write(made("broken", "broken, too"), tmp_path)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json"]
    assert "not measured: broken, too" in paths[1].read_text()


def test_figures_leave_pyplot_alone_and_show_every_stabilizer(real: Study) -> None:
    open_before = pyplot.get_fignums()
    layers, dots = figures.draw_amplification(real), figures.draw_peaks(real)
    assert pyplot.get_fignums() == open_before
    assert [ax.get_title("left") for ax in layers.axes] == list(NAMES)
    low, high = layers.axes[0].get_ylim()
    assert low * high == pytest.approx(1)
    assert [t.get_text() for t in dots.axes[0].get_yticklabels()] == list(NAMES)


def test_a_grid_is_drawn_against_epsilon() -> None:
    names = ["none", *(f"{kind}:{e}" for kind in ("signed", "clip") for e in (0.01, 0.1, 1.0))]
    found = made(
        *([run(name, peak_over_median=p * (i + 1)) for i, name in enumerate(names)] for p in (2, 4))
    )
    figure = figures.draw_peaks(found)
    curves = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(curves) == ["signed", "clip", "none"]
    np.testing.assert_allclose(curves["signed"].get_xdata(), [0.01, 0.1, 1])
    np.testing.assert_allclose(curves["clip"].get_ydata(), [15, 18, 21])
    shown = figures.draw_amplification(found).axes[0]  # more than fit one below the other
    assert [t.get_text() for t in shown.get_yticklabels()] == names


@pytest.mark.parametrize(
    ("amplification", "count"),
    [
        ({}, 1),
        ({"a": None}, 8),
        ({"a": 0.0}, 1),
        ({"a": 0.0}, 8),
        ({"a": 1e200, "b": 1e-200}, 1),
        ({"a": 1e200, "b": 1e-200}, 8),
        ({"$a$": 1.0, "b" * 99: 2.0}, 1),
    ],
    ids=["none", "unknown", "zero", "zeros", "wild", "all wild", "names"],
)
def test_figures_of_odd_numbers(amplification, count, tmp_path: Path) -> None:
    rows = [
        run(f"signed:{i + 1}", "not finite", amplification=amplification, peak_over_median=p)
        for i, p in zip(range(count), [None, 0.0, 1e300, 1e-300] * 2, strict=False)
    ]
    found = made(rows)
    names = [path.name for path in report.write(found, tmp_path)]
    assert ("amplification.png" in names) is bool(amplification)
