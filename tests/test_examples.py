"""Every example runs, prints what it promises and makes its picture."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import vgg16

from captum_lrp_stab import LRP, LayerLRP, presets, zoo
from captum_lrp_stab.images import reading
from tests.helpers.repository import EXAMPLES

FOLDER = EXAMPLES
EXAMPLES = sorted(FOLDER.glob("*.py"))
NUMBER = r"(-?\d+\.?\d*(?:e[-+]?\d+)?)"

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> Run:
    """Run an example with arguments after the folder, and return what it printed."""

    def run_it(name: str, *arguments: str) -> str:
        path = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path), *arguments])
        runpy.run_path(str(path), run_name="__main__")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
        return capsys.readouterr().out

    return run_it


def numbers(pattern: str, text: str) -> list[float]:
    """Return the numbers in the first place that a pattern matches, # standing for one."""
    found = re.search(pattern.replace("#", NUMBER), text)
    assert found is not None, f"{pattern!r} is not in {text!r}"
    return [float(number) for number in found.groups()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_listed(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 80
    assert f"[`{path.name}`]({path.name})" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
def test_castle_study(run: Run) -> None:
    printed = run("castle_study")
    rewritten, gradient = printed.split("gradient form:")
    assert "none                 NaN, which arose in _avg_pooling" in rewritten
    assert "NaN" not in gradient
    signed = r"signed:1e-6 +largest pixel # times the median"
    # the signed stabilizer's heatmap has no patches; the unsigned ones' do, in either form: their
    # poles are real. The study saw 48 against 4e4 and more on VGG16.
    for form in (rewritten, gradient):
        (good,) = numbers(signed, form)
        assert good < 100
        for name in "additive:0.1", "quadratic-mean:0.1":
            (patches,) = numbers(rf"{name} +largest pixel # times", form)
            assert patches > 50 * good
    # without a stabilizer the gradient form is that with a small one; rewriting changes the score
    (score,) = numbers("score #", gradient)
    assert numbers("none +largest pixel #", gradient) == pytest.approx(
        numbers(signed, gradient), rel=1e-2
    )
    for name in "none", "additive:0.1", "quadratic-mean:0.1":
        assert numbers(f"{name} .* score of #", gradient) == pytest.approx([score], rel=1e-2)
    (rewritten_score,) = numbers("quadratic-mean:0.1 .* score of #", rewritten)
    assert abs(rewritten_score - score) > score / 2


@pytest.mark.slow
def test_castle_study_on_the_studys_own_network(run: Run) -> None:
    printed = run("castle_study", str(FOLDER.parent / "data" / "textured.png"), "none")
    gradient = printed.split("gradient form:")[1]
    assert "NaN" not in gradient
    assert numbers("signed:1e-6 +largest pixel #", gradient)[0] < 1000


def test_the_studys_map_is_the_presets_on_vgg16() -> None:
    name_map_of = runpy.run_path(str(FOLDER / "castle_study.py"))["name_map_of"]
    with torch.device("meta"):
        model = vgg16(init_weights=False)
    preprocessing = zoo.load("squeezenet1_1", "none").preprocessing
    classifier = zoo.Classifier("vgg16", "none", model, preprocessing)
    preset = presets.lrp_tutorial(preprocessing.low, preprocessing.high)(model)
    by_index = name_map_of(classifier)
    assert [(names, rule) for names, rule, _ in by_index] == [(n, rule) for n, rule, _ in preset]
    assert [p for _, _, p in by_index[1:]] == [p for _, _, p in preset[1:]]


def test_drop_in(run: Run) -> None:
    printed = run("drop_in")
    squeezenet, lite0 = printed.split("efficientnet_lite0")
    # stock Captum's default is an epsilon of 1e-9, ours of 1e-6: the same to the digits shown
    stock, ours = (numbers(f"{who}: sum #, delta #", squeezenet) for who in ("Captum", "package"))
    assert ours == pytest.approx(stock, abs=2e-3)
    (score,) = numbers("espresso, #", squeezenet)
    assert sum(ours) == pytest.approx(score, abs=2e-3)
    assert "stock Captum: TypeError: Module of type" in lite0
    (score,) = numbers("espresso, #", lite0)
    assert sum(numbers("package: sum #, delta #", lite0)) == pytest.approx(score, abs=2e-3)


def test_name_map(run: Run) -> None:
    printed = run("name_map")
    counts = [int(count) for count in re.findall(r"Rule +(\d+) layers", printed)]
    assert counts == [1, 18, 7, 1]
    # SqueezeNet has 26 convolutions and an average pool, and each has a rule
    assert numbers("# operations, # with a rule", printed) == [66, sum(counts)]
    assert "0 features.0 (Conv2d): ZBoxRule" in printed
    assert "1 features.1 (ReLU): passed" in printed
    assert printed.splitlines()[-1].endswith("EpsilonRule 1, GammaRule 22, ZPlusRule 3")


@pytest.mark.slow
def test_stock_captum(run: Run) -> None:
    printed = run("stock_captum")
    (attached, score) = numbers("our rules +sum # of #", printed)
    # zB and gamma keep nearly all of the score, of which biases absorb the rest
    assert numbers("this package +sum #", printed) == pytest.approx([attached], rel=1e-4)
    assert attached == pytest.approx(score, rel=0.05)
    assert "stock Captum with our rules against this package: equal" in printed
    assert "its own epsilon rule against ours: equal" in printed
    ours, stock, score = numbers("ResNet-18 sum #, stock Captum #, score #", printed)
    assert ours == pytest.approx(score, rel=0.05)
    assert abs(stock) > 1e6 * score
    assert printed.endswith("known difference: doubled at a functional addition\n")


@pytest.mark.slow
def test_compare_zennit(run: Run) -> None:
    printed = run("compare_zennit")
    (difference,) = numbers("the same rules: equal, relative difference #", printed)
    assert difference < 2.5e-5  # the tolerance for float32 and 27 layers with a rule
    assert "gamma 0.5 in zennit: different, they part at classifier.1" in printed
    cosine, common = numbers("cosine #, strongest 1% in common #%", printed)
    assert 0.9 < cosine < 1 and 50 < common < 100


def test_diagnose_nan(run: Run) -> None:
    printed = run("diagnose_nan")
    assert printed.startswith("not finite: it starts at layer 'features.0'")
    assert "the denominator is exactly 0, and nothing stabilizes it: 0/0" in printed
    top, bottom, left, right = numbers("sees rows # to #, columns # to #", printed)
    assert bottom - top == right - left == 2  # the first convolution is 3 x 3
    assert "features.0: ZBoxRule" in printed and "with the advice: stable" in printed
    (error,) = numbers("not finite as it is, # after the change", printed)
    assert error < 0.05
    assert "in gradient form: 0 values are NaN or Inf" in printed


def test_diagnose_nan_with_nothing_to_repair(run: Run, tmp_path: Path, capsys: Any) -> None:
    reading.default_picture().save(tmp_path / "coffee.png")  # no neuron sums up to exactly 0
    with pytest.raises(FileNotFoundError):  # it draws nothing
        run("diagnose_nan", str(tmp_path / "coffee.png"))
    assert capsys.readouterr().out.startswith("stable: ")


@pytest.mark.slow
def test_resnet_and_vit(run: Run) -> None:
    printed = run("resnet_and_vit")
    resnet, vit = printed.split("vit_b_16")
    for part in resnet, vit:
        assert "operations, 0 without a rule" in part
        score, picture = numbers("score #: picture #", part)
        bias, softmax = numbers("constants #, softmax #", part)
        (stabilizer,) = numbers("stabilizers #", part)
        # four numbers with three decimals each
        assert picture + bias + softmax + stabilizer == pytest.approx(score, abs=3e-3)
        assert numbers("unaccounted #", part)[0] < 1e-4
    # the design's oracle, in float32 over 54 layers
    assert numbers("gradient x input: #", resnet)[0] < 1e-4
    assert "16 LRP-0" in resnet and "12 softmax by its gradient" in vit
    assert abs(numbers("softmax #", vit)[0]) > 1  # so that the sum above has something to add up


def test_layer_relevance(run: Run) -> None:
    printed = run("layer_relevance")
    (score,) = numbers("score #", printed)
    (inner,) = numbers("sum over the layer #", printed)
    assert inner == pytest.approx(score, rel=0.05)  # biases absorb the rest
    channels = re.findall(rf"channel \d+: {NUMBER}, in the picture {NUMBER}", printed)
    assert len(channels) == 4
    for of_channel, in_picture in channels:
        assert float(in_picture) == pytest.approx(float(of_channel), rel=0.02)


def test_the_heatmaps_of_all_channels_sum_up_to_the_whole() -> None:
    example = runpy.run_path(str(FOLDER / "layer_relevance.py"))
    classifier = zoo.load("squeezenet1_1_caffe")
    model, preprocessing = classifier.model, classifier.preprocessing
    x = preprocessing.input(preprocessing.picture(reading.default_picture()))
    rules = presets.epsilon_gamma_box(preprocessing.low, preprocessing.high)
    inner = LayerLRP(model, model.features[example["LAYER"]], rules).attribute(x, 967)
    below = model.features[: example["LAYER"] + 1]
    output = below(x).detach()

    def relevance(weight: torch.Tensor) -> torch.Tensor:
        class Together(example["Through"]):  # type: ignore[misc]
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x).sum(1)

        return LRP(Together(below, weight), rules).attribute(x)

    whole = LRP(model, rules).attribute(x, 967)
    together = relevance(torch.where(output != 0, inner / output, 0.0))
    assert (together - whole).norm() < 1e-5 * whole.norm()
    assert (relevance(torch.ones_like(output)) - whole).norm() > whole.norm()  # another weight


@pytest.mark.slow
def test_noise_tunnel(run: Run) -> None:
    printed = run("noise_tunnel")
    found = {
        name: numbers(f"{name} +infidelity #, sensitivity #", printed)
        for name in ("LRP-0", "epsilon 1", "epsilon-gamma-box", "epsilon-plus")
    }
    # LRP-0 is gradient x input, which predicts a small change of the input best; the composites
    # are the less sensitive
    (infidelity, sensitivity), *others = found.values()
    assert all(infidelity < other[0] for other in others)
    assert found["epsilon-plus"][1] < 0.5 * sensitivity
    assert found["epsilon-gamma-box"][1] < 0.5 * sensitivity


@pytest.mark.slow
def test_evaluation(run: Run) -> None:
    printed = run("evaluation")
    rows = re.findall(r"(.+?) +most (\S+), least (\S+), between (\S+)", printed)
    assert len(rows) == 6
    most = {name: float(first) for name, first, _, _ in rows}
    between = {name: float(area) for name, _, _, area in rows}
    for name, first, least, area in rows:
        assert abs(float(least) - float(first) - float(area)) < 2e-3, name
    assert abs(between["random order"]) < 0.05
    for name in ("epsilon_plus", "epsilon_gamma_box"):
        assert between[name] > 0.15
        assert between[name] > between["gradient x input"] + 0.05
    assert most["epsilon_gamma_box"] < most["random order"] - 0.03
    assert between["Additive(0.1)"] < 0.05  # the control: patches order as well as chance
