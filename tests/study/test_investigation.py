"""The study of one picture: its record against hand-made numbers, its report and its heatmaps."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torch import nn

from captum_lrp_stab import EpsilonRule, GammaRule, PassRule, ZeroRule, names
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.stabilizers import Clip, Signed
from captum_lrp_stab.study import heatmaps, report, tables
from captum_lrp_stab.study.investigation import investigate
from captum_lrp_stab.study.records import Run
from captum_lrp_stab.study.result import Study
from tests.helpers.studies import classifier, picture


@pytest.fixture(scope="module")
def study() -> Study:
    return investigate(classifier(), picture(), name="noise.png", form="relevance", rules="zero")


def runs_of(**options: Any) -> tuple[Run, ...]:
    return investigate(classifier(), picture(), **{"rules": "zero", **options}).records[0].runs


def test_the_stabilizer_goes_into_every_rule_that_takes_one() -> None:
    gamma, passing = GammaRule(0.1), PassRule()
    rules = RuleSet({"0": gamma, "1": passing}).changed(lambda rule: rule.with_stabilizer(Clip(1)))
    assert repr(rules.named["0"]) == repr(GammaRule(0.1, stabilizer=Clip(1)))
    assert rules.named["1"] is passing
    assert repr(rules.default) == repr(EpsilonRule(stabilizer=Clip(1)))
    assert gamma.stabilizer == Signed(1e-6)  # the rule given is as before


def test_one_run_per_stabilizer(study: Study) -> None:
    (record,), settings = study.records, study.settings
    assert [run.name for run in record.runs] == list(names.DEFAULT_STABILIZERS)
    assert [run.finite for run in record.runs] == [False, True, True, True, True]
    assert [settings[name] for name in ("model", "form", "rules", "dtype")] == [
        *("small", "relevance", "zero", "float32")
    ]
    assert [heatmap.shape for heatmap in study.heatmaps] == [(16, 16)] * 5


def test_the_target_is_what_the_model_finds(study: Study) -> None:
    c, (record,) = classifier(), study.records
    assert study.picture is not None
    with torch.no_grad():
        output = c.model(c.preprocessing.input(study.picture))[0]
    assert record.target == int(output.argmax())
    assert record.label == c.label(record.target)
    assert record.score == pytest.approx(float(output.max()))
    assert record.probability == pytest.approx(float(output.softmax(0).max()))


def test_nan_is_located(study: Study) -> None:
    bare = study.records[0].runs[0]
    assert bare.start is not None
    assert (bare.start.layer, bare.start.direction) == ("0", "backward")
    assert bare.values.nan > 0
    assert (bare.values.total, bare.sum_over_score, bare.growth) == (None, None, None)
    assert bare.finite_values is not None and bare.finite_pixels is not None
    assert bare.finite_values.negative + bare.finite_values.positive > 0
    assert bare.largest is not None  # of the finite values


def test_the_numbers_of_a_run_are_those_of_its_heatmap() -> None:
    found = investigate(classifier(), picture(), rules="zero", names=["none"])
    (record,), (heatmap,) = found.records, found.heatmaps
    (run,) = record.runs
    assert run.finite and run.finite_values is None and found.picture is not None
    c = classifier()
    x = c.preprocessing.input(found.picture).requires_grad_()
    (gradient,) = torch.autograd.grad(c.model(x)[0, record.target], x)
    relevance = (gradient * x)[0].detach()
    torch.testing.assert_close(heatmap, relevance.sum(0).double(), rtol=1e-4, atol=1e-6)
    assert run.values.maximum == pytest.approx(float(relevance.max()), rel=1e-4)
    assert run.pixels.minimum == pytest.approx(float(relevance.sum(0).min()), rel=1e-4)
    assert run.values.total == pytest.approx(float(relevance.sum()), rel=1e-4)
    assert run.sum_over_score == pytest.approx(float(relevance.sum()) / record.score, rel=1e-4)
    top = run.largest
    assert top is not None
    assert relevance[top.channel, top.row, top.column] == relevance.max()
    assert top.gradient == pytest.approx(float(gradient[0, top.channel, top.row, top.column]))
    assert top.pixel == found.picture.getpixel((top.column, top.row))
    assert top.input == pytest.approx(top.pixel[top.channel] / 255)


def test_modified_forward_reports_both_scores() -> None:
    found = investigate(
        classifier(), picture(), rules="zero", form="modified-forward", names=["none", "signed:1"]
    )
    bare, signed = found.records[0].runs
    assert bare.score is None
    assert bare.start is not None and bare.start.direction == "forward"
    assert signed.score is not None
    assert signed.score != pytest.approx(found.records[0].score, rel=0.01)
    assert "signed:1: this form changes the score" in "\n".join(tables.notes(found))


def test_gradient_form_is_finite_and_says_why() -> None:
    found = investigate(classifier(), picture(), rules="zero", names=["none"])
    assert "0/0 as 0" in "\n".join(tables.notes(found))


def test_a_name_map_target_dtype_and_progress() -> None:
    seen: list[str] = []
    found = investigate(
        classifier(),
        picture(),
        rules=[(["5"], ZeroRule, {})],
        target=3,
        dtype="float64",
        names=["signed", "none"],
        progress=seen.append,
    )
    assert (found.settings["rules"], found.settings["dtype"]) == ("name_map", "float64")
    assert (found.records[0].target, found.records[0].label) == (3, "castle")
    assert seen == ["signed:1e-6", "none"]


@pytest.mark.parametrize("target", [4, -1])
def test_target_out_of_range(target: int) -> None:
    with pytest.raises(InputError, match=rf"target {target} is out of range: .* 0 to 3"):
        runs_of(target=target)


def test_anomaly_detection() -> None:
    bare, signed = runs_of(form="modified-forward", names=["none", "signed"], detect_anomaly=True)
    assert "anomaly detection: Function" in bare.warnings[-1] and "nan" in bare.warnings[-1]
    assert signed.warnings[-1] == "anomaly detection: nothing found"
    assert not torch.is_anomaly_enabled()


def test_operations_without_a_rule_are_reported(tmp_path: Path) -> None:
    found = investigate(
        classifier(lambda: nn.Sequential(nn.Conv2d(3, 4, 16), nn.Sigmoid(), nn.Flatten())),
        picture(),
        names=["signed"],
    )
    fallback = "1 (Sigmoid: it makes the output, and saturates: explain what it reads)"
    assert found.settings["fallbacks"] == [fallback]
    text = report.write(found, tmp_path)[1].read_text()
    assert f"under their plain gradient\n\n- {fallback}" in text


def test_a_model_with_nan_is_refused() -> None:
    broken = classifier()
    with torch.no_grad():
        broken.model[2].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ModelError, match=r"'2\.weight' has 1 non-finite"):
        investigate(broken, picture())


def test_an_output_that_overflows_is_refused() -> None:
    loud = classifier()
    with torch.no_grad():
        loud.model[5].weight.fill_(1e4)
    with pytest.raises(InputError, match=r"not finite in torch\.float16, before any rule"):
        investigate(loud, picture(), dtype="float16")


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_the_files_of_the_report(study: Study, tmp_path: Path) -> None:
    paths = report.write(study, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        *("report.html", "report.md", "report.json", "heatmaps.png", "amplification.png")
    ]
    content = json.loads(paths[2].read_text(), parse_constant=refuse)
    (record,) = content["pictures"]
    assert (record["picture"], len(record["runs"])) == ("noise.png", 5)
    bare, signed = record["runs"][:2]
    assert (bare["finite"], bare["values"]["total"]) == (False, None)
    assert bare["start"]["layer"] == "0"
    mine = study.records[0].runs[1]
    assert signed["values"]["total"] == mine.values.total
    assert mine.largest is not None and signed["largest"]["row"] == mine.largest.row
    text = paths[1].read_text()
    for part in ("noise.png", "(heatmaps.png)", "none is not finite, from '0'.", "exact zero"):
        assert part in text
    with Image.open(paths[3]) as drawn:
        assert drawn.width > 900
        assert len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 100


def texts(figure: Any) -> str:
    return "\n".join(t.get_text() for ax in figure.axes for t in [ax._left_title, *ax.texts])


def test_the_heatmaps_leave_pyplot_alone_and_say_where_nan_arose(study: Study) -> None:
    backend, figures = dict.__getitem__(matplotlib.rcParams, "backend"), pyplot.get_fignums()
    figure = heatmaps.heatmaps(study)
    assert dict.__getitem__(matplotlib.rcParams, "backend") == backend
    assert pyplot.get_fignums() == figures
    assert len([ax for ax in figure.axes if ax.images]) == 6
    for part in ("none", "clip:0.1", "NaN", "first arose in layer\n0\n(backward pass)"):
        assert part in texts(figure)


def test_titles_do_not_overlap(study: Study) -> None:
    figure = heatmaps.heatmaps(study)
    figure.canvas.draw()
    titles = [t.get_window_extent() for ax in figure.axes for t in (ax._left_title, ax.texts[-1])]
    for index, first in enumerate(titles):
        assert not any(first.overlaps(second) for second in titles[index + 1 :])


@pytest.mark.parametrize("count", [1, 7])
def test_heatmaps_of_any_number_of_stabilizers(count: int) -> None:
    found = investigate(classifier(), picture(), names=[f"signed:{i + 1}" for i in range(count)])
    assert sum(bool(ax.images) for ax in heatmaps.heatmaps(found).axes) == count + 1


def test_relevance_that_is_0_everywhere() -> None:
    c = classifier(lambda: nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten()))
    nn.init.zeros_(c.model[0].weight)
    found = investigate(c, picture(), names=["signed"])
    assert "0 everywhere" in texts(heatmaps.heatmaps(found))


def test_relevance_that_is_nowhere_finite() -> None:
    black = Image.new("RGB", (16, 16))
    found = investigate(classifier(), black, rules="zero", form="relevance", names=["none"])
    assert "no finite pixel" in texts(heatmaps.heatmaps(found))
