"""A comparison as text, as files and as a picture; and the helper for a user's own tests."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from captum_lrp_stab import LRP, EpsilonRule, GammaRule, compare, presets
from captum_lrp_stab.comparison import Comparison, drawing, report
from captum_lrp_stab.comparison.known_differences import KNOWN
from captum_lrp_stab.errors import InputError, ReportError
from captum_lrp_stab.testing import assert_agrees
from captum_lrp_stab.zoo.prediction import Prepared, prepare
from tests.helpers.networks import build, cnn
from tests.helpers.studies import classifier, picture


@pytest.fixture(scope="module")
def ready() -> Prepared:
    return prepare(classifier(), picture())


def against(ready: Prepared, reference: Any) -> Comparison:
    return compare(ready.model, ready.x, ready.target, presets.epsilon(), reference)


def gamma_first(ready: Prepared) -> LRP:
    return LRP(ready.model, [(["0"], GammaRule, {}), (["2", "5"], EpsilonRule, {})])


def broken(model: nn.Module, inputs: Tensor, target: int) -> Tensor:
    return torch.full_like(inputs, torch.nan)


def test_json_and_picture(ready: Prepared, tmp_path: Path) -> None:
    done = against(ready, gamma_first(ready))
    about = report.About(ready, "noise", "epsilon", "gradient", None, ())
    written = report.write(done, about, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["comparison.json", "comparison.png"]
    content = json.loads(written[0].read_text())
    assert (content["verdict"], content["first"]["name"]) == ("different", "0")
    assert (content["picture"], content["label"]) == ("noise", ready.label)
    assert [row["name"] for row in content["layers"]] == ["0", "1", "2", "3", "4", "5"]
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_folder_that_cannot_be_written_to(ready: Prepared, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").mkdir()
    about = report.About(ready, "noise", "epsilon", "gradient", None, ())
    with pytest.raises(ReportError, match="--out"):
        report.write(against(ready, "float64"), about, tmp_path)


def texts(done: Comparison, ready: Prepared) -> str:
    figure = drawing.draw(done, ready.picture, "what was compared")
    figure.canvas.draw()
    inside = [t for ax in figure.axes for t in (ax._left_title, *ax.texts)]
    return "\n".join(t.get_text() for t in (*figure.texts, *inside))


def test_drawing_leaves_pyplot_alone(ready: Prepared) -> None:
    backend, figures = dict.__getitem__(matplotlib.rcParams, "backend"), pyplot.get_fignums()
    drawn = texts(against(ready, "float64"), ready)
    assert dict.__getitem__(matplotlib.rcParams, "backend") == backend
    assert pyplot.get_fignums() == figures
    for part in ("what was compared", "equal", "captum-lrp-stab", "float64", "the same scale"):
        assert part in drawn


def test_drawing_of_another_size(ready: Prepared) -> None:
    """Relevance on a quite different scale would otherwise leave one panel empty."""
    explain = LRP(ready.model, presets.epsilon())

    def larger(model: nn.Module, inputs: Tensor, target: int) -> Tensor:
        return 100 * explain.attribute(inputs.float(), target=target)

    drawn = texts(against(ready, larger), ready)
    assert "a scale of its own" in drawn
    assert "larger" in drawn


def test_drawing_says_what_is_not_finite(ready: Prepared) -> None:
    drawn = texts(against(ready, broken), ready)
    assert "256 of 256 pixels\nNaN or Inf" in drawn
    assert "reference not finite" in drawn


def test_drawing_of_nothing(ready: Prepared) -> None:
    def silent(model: nn.Module, inputs: Tensor, target: int) -> Tensor:
        return torch.zeros_like(inputs)

    assert "relative L2 inf" in texts(against(ready, silent), ready)


def test_print_has_verdict_differences_and_layers(ready: Prepared) -> None:
    rules = [(["0", "2", "5"], GammaRule, {"gamma": 0.5})]
    other = LRP(ready.model, [(["0", "2", "5"], GammaRule, {"gamma": 0.5, "bias": "captum"})])
    lines = str(compare(ready.model, ready.x, ready.target, rules, other)).splitlines()
    assert lines[0].startswith("known difference: gamma's bias; relative difference")
    assert lines[1].startswith("- gamma's bias: the gamma rule can scale")
    header, *rows = lines[3:]
    assert header.split()[:2] == ["layer", "rule"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3", "4", "5", "input"]


def test_short_table_has_what_mixes_and_where_they_part(ready: Prepared) -> None:
    done = against(ready, gamma_first(ready))
    names = [row[0] for row in done.table(every=False)[1]]
    assert names == ["0", "2", "5", "input"]
    assert [row[0] for row in done.table()[1]] == ["0", "1", "2", "3", "4", "5", "input"]


def test_names_of_known_differences_are_unique() -> None:
    assert len({difference.name for difference in KNOWN}) == len(KNOWN) >= 10


# assert_agrees


def test_agreement_is_asserted() -> None:
    model, x = build(cnn), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert assert_agrees(model, x, 1, presets.epsilon()).verdict == "equal"
    rules = [(["0", "3", "6"], GammaRule, {"gamma": 0.5})]
    with pytest.raises(AssertionError, match=r"captum: known difference: .*gamma's bias"):
        assert_agrees(model, x, 1, rules, "captum")
    known = [difference.name for difference in KNOWN]
    assert assert_agrees(model, x, 1, rules, "captum", known=known).verdict == "known difference"
    other = LRP(
        model, [(["0"], GammaRule, {"gamma": 0.1}), (["3", "6"], GammaRule, {"gamma": 0.5})]
    )
    with pytest.raises(AssertionError, match=r"different: .* they part at '0'"):
        assert_agrees(model, x, 1, rules, other, known=known)
    assert_agrees(model, x, 1, rules, other, tolerance=1e3)


def test_unknown_known_difference() -> None:
    with pytest.raises(InputError, match=r"'gamma bias'; they are: .*gamma's bias"):
        assert_agrees(build(cnn), torch.rand(1, 3, 8, 8).double(), 1, known=["gamma bias"])


def test_agreement_of_nothing_is_none() -> None:
    model = build(cnn)
    nn.init.zeros_(model[6].weight)
    nn.init.zeros_(model[6].bias)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    done = compare(model, x, 1, presets.epsilon())
    assert (done.verdict, done.explanation[:10]) == ("equal", "both sides")
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_agrees(model, x, 1, presets.epsilon())
