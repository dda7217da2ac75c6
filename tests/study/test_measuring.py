"""What is measured of each picture, against the study of one picture and hand-made cases."""

import gc
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_lrp_stab import diagnose, presets
from captum_lrp_stab.by_name import stabilizer_of
from captum_lrp_stab.errors import InputError, ModelError, RuleMapError
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.study.investigation import investigate, study_pictures
from captum_lrp_stab.study.measuring import Question, make_measurer
from tests.helpers.studies import classifier
from tests.helpers.study_folders import files, fill, noise, study


@pytest.mark.parametrize("form", forms.NAMES)
def test_the_record_is_that_of_one_picture_alone(tmp_path: Path, form: str) -> None:
    fill(tmp_path / "in")
    names = ("none", "signed:0.1", "quadratic-mean:0.1")
    found = study(tmp_path / "in", tmp_path / "out", names=names, form=form)
    for index, record in enumerate(found.records):
        with Image.open(tmp_path / "in" / record.picture) as image:
            one = investigate(classifier(), image, names=names, form=form, rules="zero")
        alone = replace(one.records[0], picture=record.picture, sha256=record.sha256)
        assert json.dumps(alone.facts()) == json.dumps(record.facts())
        assert one.layers == found.layers
        for name in names:
            np.testing.assert_array_equal(
                one.amplification[name][0], found.amplification[name][index]
            )


def test_amplification_and_growth_are_those_of_a_diagnosis(tmp_path: Path) -> None:
    fill(tmp_path / "in", 1)
    found = study(tmp_path / "in", tmp_path / "out", names=["signed:0.1"])
    c = classifier()
    record = found.records[0]
    x = c.preprocessing.input(c.preprocessing.picture(noise(0)))
    stabilizer = stabilizer_of("signed:0.1")
    alone = diagnose(
        *(c.model, x, record.target, presets.zero()), form="relevance", stabilizer=stabilizer
    )
    expected = {layer.name: layer.amplification for layer in alone.layers}
    assert dict(zip(found.layers, found.amplification["signed:0.1"][0], strict=True)) == expected
    growth = float(alone.relevances[0].double().abs().sum()) / abs(float(alone.score))
    assert record.runs[0].growth == pytest.approx(growth, rel=1e-9)


def test_the_unstable_picture_is_found_with_layer_neuron_and_cause(tmp_path: Path) -> None:
    fill(tmp_path / "in")
    found = study(tmp_path / "in", tmp_path / "out", names=["none", "signed:0.1"])
    ((record, run),) = found.unstable()
    assert (record.picture, run.name, run.verdict) == ("deep/1.png", "none", "not finite")
    assert run.start is not None
    assert (run.start.layer, run.start.cause) == ("0", "exact zero")
    assert run.start.neuron is not None and run.start.neuron[2] < 6  # in the black area
    assert (run.values.standard_deviation, run.pixels.peak_over_median) == (None, None)
    assert run.growth is None and run.values.nan > 0
    at = found.layers.index("0"), found.measured.index(record)
    assert math.isnan(found.amplification["none"][at[1], at[0]])
    (origin,) = found.origins()
    assert (origin.name, origin.layer, origin.pictures, origin.example) == (
        *("none", "0", 1),
        "deep/1.png",
    )


def test_pictures_that_cannot_be_measured_do_not_end_the_study(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    (folder / "0.png").write_bytes((folder / "deep" / "1.png").read_bytes()[:400])
    (folder / "note.png").write_text("castle")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    found = study(folder, tmp_path / "out")
    errors = {record.picture: record.error for record in found.records}
    assert list(errors) == ["0.png", "2.png", "gone.png", "note.png", "deep/1.png"]
    assert [name for name, error in errors.items() if error is None] == ["2.png", "deep/1.png"]
    assert "truncated" in str(errors["0.png"]) and "the file" in str(errors["note.png"])
    assert "cannot be read: No such file" in str(errors["gone.png"])
    assert str(tmp_path) not in str(errors)
    assert len(found.measured) == len(found.amplification["none"]) == 2


def test_an_output_that_is_not_finite_is_the_pictures_error(tmp_path: Path) -> None:
    """White overflows float16, black does not."""
    for value in (0, 255):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.new("RGB", (18, 18), (value,) * 3).save(tmp_path / "in" / f"{value}.png")
    loud = classifier()
    with torch.no_grad():
        for parameter in loud.model.parameters():
            parameter.abs_().mul_(1 if parameter.ndim == 1 else 40)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = study_pictures(
            *(loud, files(tmp_path / "in"), tmp_path / "out"), names=["signed"], dtype="float16"
        )
    errors = {record.picture: record.error for record in found.records}
    assert errors["0.png"] is None
    assert "not finite in torch.float16" in str(errors["255.png"])


def test_warnings_of_this_package_go_into_the_record(tmp_path: Path) -> None:
    fill(tmp_path / "in", 1)
    found = study(tmp_path / "in", tmp_path / "out", dtype="float16", names=["quadratic-mean:0.1"])
    assert any("too small for torch.float16" in text for text in found.records[0].runs[0].warnings)


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"target": 4}, InputError, "target 4 is out of range: .* 0 to 3"),
        ({"target": -1}, InputError, "target -1 is out of range"),
        ({"rules": "lrp"}, RuleMapError, "no preset has the name 'lrp'"),
        ({"dtype": "int8"}, InputError, "no dtype has the name"),
        ({"form": "grad"}, InputError, "no form has the name"),
    ],
)
def test_mistakes_end_the_study_before_the_first_picture(
    tmp_path: Path, options, error, part
) -> None:
    fill(tmp_path / "in", 1)
    seen: list[str] = []
    with pytest.raises(error, match=part):
        study(tmp_path / "in", tmp_path / "out", progress=seen.append, **options)
    assert not seen and not (tmp_path / "out").exists()


def test_a_model_with_nan_ends_the_study(tmp_path: Path) -> None:
    broken = classifier()
    with torch.no_grad():
        broken.model[2].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ModelError, match=r"'2\.weight' has 1 non-finite"):
        make_measurer(Question(broken, ("signed",)))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    """Nothing is left to the garbage collector, which may come by late."""
    fill(tmp_path / "in", 8)
    normed = classifier(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 196, 4)
        )
    )
    alive: list[int] = []

    def count(name: str) -> None:
        alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    gc.collect()
    gc.disable()
    try:
        study_pictures(
            *(normed, files(tmp_path / "in"), tmp_path / "out"),
            names=["signed", "none"],
            progress=count,
        )
    finally:
        gc.enable()
    assert len(alive) == 8
    assert max(alive[1:]) <= alive[1] + 2


def test_the_picture_alone_is_the_same_in_any_company(tmp_path: Path) -> None:
    """Nothing that was measured before has a part in a record."""
    folder = fill(tmp_path / "in", 3)
    together = study(folder, tmp_path / "out")
    for record in together.records:
        alone = tmp_path / "alone" / record.picture
        alone.parent.mkdir(parents=True, exist_ok=True)
        alone.write_bytes((folder / record.picture).read_bytes())
        (again,) = study(alone, tmp_path / f"out {record.sha256}").records
        assert again.runs == record.runs
