"""What a program meets that starts with it: pages, printed name maps, pickled objects."""

import base64
import doctest
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from captum.attr._utils import lrp_rules as captum_rules

from captum_lrp_stab import EpsilonRule, ZBoxRule
from captum_lrp_stab.diagnosis.advice import Advice
from docs import setting
from tests.helpers import fresh, held, pages
from tests.helpers.layers import RULES, STABILIZERS
from tests.helpers.pages import PAGES, ROOT

_WITHOUT_NETWORK = """
from docs import setting
from torchvision.models import WeightsEnum
WeightsEnum.get_state_dict = setting.random_weights
"""


def first_program(page: Path) -> str:
    """Return the first Python block of a page as a program, empty without one."""
    for block in pages.blocks(page.read_text()):
        text = "\n".join(block.lines)
        if block.language == "python" and not pages._ELSEWHERE.search(text):
            examples = doctest.DocTestParser().get_examples(text)
            return "".join(e.source for e in examples if e.exc_msg is None)
    return ""


def test_the_first_block_of_every_page(tmp_path, monkeypatch) -> None:
    programs = {str(page.relative_to(ROOT)): first_program(page) for page in PAGES}
    named = {name: _WITHOUT_NETWORK + text for name, text in programs.items() if text}
    assert len(named) > 20
    setting.fill(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    failed = fresh.failures(list(named.values()), cwd=tmp_path)
    assert dict(zip(named, failed, strict=True)) == dict.fromkeys(named, "")


def advice(rule: type, parameters: dict[str, Any]) -> Advice:
    name_map = [(["0"], rule, parameters)]
    return Advice(1e-3, None, 0.0, False, True, (), name_map, None, ())


def test_every_name_map_that_a_diagnosis_prints() -> None:
    rules = [pair.rule for pair in RULES.values()]
    built = [make() for make in rules] + [
        EpsilonRule(stabilizer=t) for t, _ in STABILIZERS.values()
    ]
    maps = [advice(type(rule), rule.parameters()) for rule in built]
    maps.append(advice(ZBoxRule, {"low": torch.zeros(1, 3, 1, 1), "high": 1.0}))
    maps.append(advice(captum_rules.GammaRule, {"gamma": 0.1}))
    using = "from torch import nn\nfrom captum_lrp_stab import LRP\n"
    using += "LRP(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), name_map)\n"
    programs = [one.to_python() + "\n" + using for one in maps]
    assert fresh.failures(programs) == [""] * len(programs)


def test_each_object_unpickles() -> None:
    texts = {
        name: base64.b64encode(pickle.dumps(one)).decode() for name, one in held.by_name().items()
    }
    read = "import base64, pickle\none = pickle.loads(base64.b64decode({!r}))\n"
    use = "import torch\nif hasattr(one, 'attribute'): one.attribute(torch.rand(2, 3), target=0)\n"
    failed = fresh.failures([read.format(text) + use for text in texts.values()])
    assert dict(zip(texts, failed, strict=True)) == dict.fromkeys(texts, "")


def test_failures_are_seen() -> None:
    """The control, with a process that a signal ends."""
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    fine, wrong, ended = fresh.failures(["print(1)", "import captum_lrp_stab.nothing", killed])
    assert fine == "" and "ModuleNotFoundError" in wrong and ended == "ended by a signal"
