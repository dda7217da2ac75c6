"""Which network a command takes where none is given: one that can be run."""

import pytest

from captum_lrp_stab import zoo
from tests.helpers.commands import command

SAID = "stock Captum cannot run efficientnet_lite0; this is squeezenet1_1_caffe, --model takes"
# the target ends the command as soon as there is a network
ENDING = ("--weights", "none", "--target", "1000")


@pytest.mark.parametrize(
    ("arguments", "network"),
    [
        (("compare", "--reference", "captum"), "squeezenet1_1_caffe"),
        (("compare", "--reference", "captum_driver"), "squeezenet1_1_caffe"),
        (("compare", "--reference", "captum-driver", "--quiet"), "squeezenet1_1_caffe"),
        (("diagnose", "--form", "stock"), "squeezenet1_1_caffe"),
        (("compare",), "efficientnet_lite0"),
        (("compare", "--reference", "float64"), "efficientnet_lite0"),
        (("diagnose",), "efficientnet_lite0"),
        (("compare", "--reference", "captum", "--model", "squeezenet1_0"), "squeezenet1_0"),
        (("diagnose", "--form", "stock", "--model", "squeezenet1_0"), "squeezenet1_0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_network(arguments, network, tmp_path, monkeypatch) -> None:
    load, asked = zoo.load, []

    def noted(name: str, *others: object, **options: object) -> zoo.Classifier:
        asked.append(name)
        return load("squeezenet1_1", "none")

    monkeypatch.setattr(zoo, "load", noted)
    monkeypatch.chdir(tmp_path)
    result = command(*arguments, *ENDING)
    assert result.exit_code == 2 and "target 1000 is out of range" in result.stderr
    assert asked == [network]
    is_said = network == "squeezenet1_1_caffe" and "--quiet" not in arguments
    assert (SAID in result.stderr) == is_said
