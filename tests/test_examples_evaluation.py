"""The evaluation example: what its numbers say."""

import re

from test_examples import run


def test_evaluation(tmp_path, monkeypatch, capsys) -> None:
    printed = run("evaluation", tmp_path, monkeypatch, capsys)
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
