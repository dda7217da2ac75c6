"""The study: its findings against hand-made ones."""

import math

import pytest
import torch
from torch import nn

from captum_lrp_stab import EpsilonRule, GammaRule, PassRule, ZeroRule, by_name
from captum_lrp_stab.errors import InputError, ModelError
from captum_lrp_stab.rules.rule_set import RuleSet
from captum_lrp_stab.stabilizers import Clip, Signed
from captum_lrp_stab.study import investigation_report
from captum_lrp_stab.study.investigation import Investigation, investigate
from tests.helpers.studies import classifier, picture


@pytest.fixture(scope="module")
def study() -> Investigation:
    return investigate(classifier(), picture(), form="relevance", rules="zero")


def test_the_stabilizer_goes_into_every_rule_that_takes_one() -> None:
    gamma, passing = GammaRule(0.1), PassRule()
    rules = RuleSet({"0": gamma, "1": passing}).changed(lambda rule: rule.with_stabilizer(Clip(1)))
    assert repr(rules.named["0"]) == repr(GammaRule(0.1, stabilizer=Clip(1)))
    assert rules.named["1"] is passing
    assert repr(rules.default) == repr(EpsilonRule(stabilizer=Clip(1)))
    assert gamma.stabilizer == Signed(1e-6)  # the rule given is as before


def test_one_finding_per_stabilizer(study: Investigation) -> None:
    assert [f.name for f in study.findings] == list(by_name.DEFAULT_STABILIZERS)
    assert [f.finite for f in study.findings] == [False, True, True, True, True]
    assert (study.model, study.form, study.rules, study.dtype) == (
        "small",
        "relevance",
        "zero",
        "float32",
    )
    assert [h.shape for h in study.heatmaps] == [(16, 16)] * 5


def test_the_target_is_what_the_model_finds(study: Investigation) -> None:
    c = classifier()
    with torch.no_grad():
        output = c.model(c.preprocessing.input(study.picture))[0]
    assert study.target == int(output.argmax())
    assert study.label == c.label(study.target)
    assert study.score == pytest.approx(float(output.max()))
    assert study.probability == pytest.approx(float(output.softmax(0).max()))


def test_nan_is_located(study: Investigation) -> None:
    bare = study.findings[0]
    assert bare.origin is not None
    assert (bare.origin.name, bare.origin.direction) == ("0", "backward")
    assert bare.values.nan > 0
    assert (bare.values.total, bare.sum_over_score) == (None, None)
    assert bare.finite_values is not None and bare.finite_pixels is not None
    assert bare.finite_values.negative + bare.finite_values.positive > 0
    assert bare.largest is not None  # of the finite values


def test_the_numbers_of_a_finding_are_those_of_its_heatmap() -> None:
    found = investigate(classifier(), picture(), rules="zero", names=["none"])
    (finding,), (heatmap,) = found.findings, found.heatmaps
    assert finding.finite and finding.origin is None and finding.finite_values is None
    c = classifier()
    x = c.preprocessing.input(found.picture).requires_grad_()
    (gradient,) = torch.autograd.grad(c.model(x)[0, found.target], x)
    relevance = (gradient * x)[0].detach()
    torch.testing.assert_close(heatmap, relevance.sum(0).double(), rtol=1e-4, atol=1e-6)
    assert finding.values.maximum == pytest.approx(float(relevance.max()), rel=1e-4)
    assert finding.pixels.minimum == pytest.approx(float(relevance.sum(0).min()), rel=1e-4)
    assert finding.values.total == pytest.approx(float(relevance.sum()), rel=1e-4)
    assert finding.sum_over_score == pytest.approx(float(relevance.sum()) / found.score, rel=1e-4)
    top = finding.largest
    assert top is not None
    assert relevance[top.channel, top.row, top.column] == relevance.max()
    assert top.gradient == pytest.approx(float(gradient[0, top.channel, top.row, top.column]))
    assert top.pixel == found.picture.getpixel((top.column, top.row))
    assert top.input == pytest.approx(top.pixel[top.channel] / 255)


def test_modified_forward_reports_both_scores() -> None:
    found = investigate(
        classifier(), picture(), rules="zero", form="modified-forward", names=["none", "signed:1"]
    )
    bare, signed = found.findings
    assert bare.score is None
    assert bare.origin is not None and bare.origin.direction == "forward"
    assert signed.score is not None and signed.score != pytest.approx(found.score, rel=0.01)
    assert "changes the score" in "\n".join(investigation_report.notes(found))


def test_gradient_form_is_finite_and_says_why() -> None:
    found = investigate(classifier(), picture(), rules="zero", names=["none"])
    assert "0/0 as 0" in "\n".join(investigation_report.notes(found))


def test_a_name_map_is_taken_too() -> None:
    name_map = [(["5"], ZeroRule, {})]
    found = investigate(classifier(), picture(), rules=name_map, names=["signed"])
    assert found.rules == "name_map"


def test_target_dtype_and_progress() -> None:
    seen: list[str] = []
    found = investigate(
        classifier(),
        picture(),
        target=3,
        dtype="float64",
        names=["signed", "none"],
        progress=seen.append,
    )
    assert (found.target, found.label, found.dtype) == (3, "castle", "float64")
    assert seen == ["signed:1e-6", "none"]


@pytest.mark.parametrize("target", [4, -1])
def test_target_out_of_range(target: int) -> None:
    with pytest.raises(InputError, match=rf"target {target} is out of range: .* 0 to 3"):
        investigate(classifier(), picture(), target=target)


def test_warnings_become_part_of_the_finding() -> None:
    found = investigate(classifier(), picture(), dtype="float16", names=["quadratic-mean:0.1"])
    assert any("too small for torch.float16" in text for text in found.findings[0].warnings)


def test_anomaly_detection() -> None:
    found = investigate(
        classifier(),
        picture(),
        rules="zero",
        form="modified-forward",
        names=["none", "signed"],
        detect_anomaly=True,
    )
    bare, signed = found.findings
    assert bare.anomaly is not None and "returned nan values" in bare.anomaly
    assert signed.anomaly == "nothing found"
    assert not torch.is_anomaly_enabled()


def test_operations_without_a_rule_are_reported() -> None:
    found = investigate(
        classifier(lambda: nn.Sequential(nn.Conv2d(3, 4, 16), nn.Sigmoid(), nn.Flatten())),
        picture(),
        names=["signed"],
    )
    assert found.fallbacks == (
        "1 (Sigmoid: it makes the output, and saturates: explain what it reads)",
    )
    assert "plain gradient" in investigation_report.to_markdown(found, "x")


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
