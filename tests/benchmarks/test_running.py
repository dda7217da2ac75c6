"""The benchmark: its arithmetic, what it shows of contenders that fail, one quick run of it all."""

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks import drawing, machine, many, memory, memory_child, models, report, running
from benchmarks.__main__ import main
from benchmarks.contenders import Explainer, Method, NotInstalledError, select
from benchmarks.contenders.ours import Ours
from benchmarks.correctness import (
    DIFFERENT,
    NOT_INSTALLED,
    OK,
    REFUSED,
    WRONG,
    Checker,
)
from benchmarks.memory import Memory
from benchmarks.models import Subject
from benchmarks.records import Results
from benchmarks.settings import Settings
from benchmarks.targets import MET, MISSED, NOT_MEASURED

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = Settings(models=("tiny",), batches=(1,), rounds=1, size=16, memory=False, many=False)


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(196, 12)
    )


def residual_model() -> nn.Module:
    """Wrong under stock Captum, which doubles the relevance of an addition."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.act, self.pool, self.last = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.pool(self.act(self.inner(x) + x)).flatten(1))

    torch.manual_seed(0)
    return Residual()


def subject(make: Callable[[], nn.Module] = tiny_model) -> Subject:
    bound = torch.ones(1, 3, 1, 1)
    return Subject("tiny", "random", make().eval(), -bound, 2 * bound, 16, 0)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], nn.Module]], None]:
    """Let the benchmark load a tiny model."""

    def plant(make: Callable[[], nn.Module]) -> None:
        monkeypatch.setattr(models, "load", lambda name, settings: subject(make))

    plant(tiny_model)
    return plant


def verdicts(results: Results) -> dict[str, str]:
    return {row.method: row.correctness.verdict for row in results.rows}


# memory ------------------------------------------------------------------------------------------


class Hungry(Explainer):
    """Keeps 3 MB from its first call on, and needs 5 MB more for a moment in each."""

    kept: Tensor | None = None

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.ones(750_000)
        torch.ones(1_250_000)
        return torch.zeros_like(inputs)


def test_memory_counts_what_is_kept_and_what_is_needed_for_a_moment(
    planted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = memory_child.measure("tiny", 1, Method("planted", "", Hungry, ""), TINY)
    assert found.kept == 3_000_000
    assert found.peak is not None
    assert found.peak == 8_000_000
    if sys.platform == "linux":
        assert found.resident is not None


def test_what_the_process_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def child(status: int, out: str, err: str) -> None:
        done = subprocess.CompletedProcess([], status, out, err)
        monkeypatch.setattr(memory.subprocess, "run", lambda *given, **options: done)

    child(0, 'noise\n{"peak": 3, "kept": 1, "resident": null, "note": ""}\n', "noise")
    assert memory.measure("vgg16", 1, "gradient", TINY) == Memory(3, 1)
    child(1, "", "Traceback\nRuntimeError: out of memory\n")
    found = memory.measure("vgg16", 1, "gradient", TINY)
    assert found == Memory(note="not measured: RuntimeError: out of memory")
    child(-9, "", "")
    assert memory.measure("vgg16", 1, "gradient", TINY).note == "not measured: exit status -9"


@pytest.mark.slow
def test_the_process_itself() -> None:
    settings = Settings(models=("squeezenet1_1",), size=64)
    gradient, again, own = (
        memory.measure("squeezenet1_1", 1, name, settings)
        for name in ("gradient", "gradient", "ours:epsilon")
    )
    assert gradient.note == own.note == ""
    assert gradient.peak == again.peak  # to the byte
    assert gradient.peak < own.peak
    assert memory.measure("no_such_model", 1, "gradient", settings).note.startswith("not measured")


# correctness -------------------------------------------------------------------------------------


class Halved(Ours):
    """A wrong contender, which is off by a factor."""

    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        return 0.5 * super().attribute(inputs, target)


class Otherwise(Halved):
    """One that says so."""

    def known_difference(self) -> str:
        return "halves on purpose"


class NotFinite(Ours):
    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        return super().attribute(inputs, target) * math.nan


class Refusing(Explainer):
    def attribute(self, inputs: Tensor, target: Tensor) -> Tensor:
        raise TypeError("no rule\nfor this layer")


class Missing(Ours):
    def __init__(self, subject: Subject, rules: str = "") -> None:
        raise NotInstalledError("it is not installed; pip install it")


KINDS = {"fine": Ours, "halved": Halved, "other": Otherwise, "nan": NotFinite}
KINDS |= {"refusing": Refusing, "missing": Missing}


def test_every_way_to_fail_is_told(planted: object, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_methods = [Method(name, "epsilon", kind, "epsilon") for name, kind in KINDS.items()]
    monkeypatch.setattr(
        running, "select", lambda *given: [*select(("gradient",)), *planted_methods]
    )
    results = running.run(TINY)
    assert verdicts(results) == {
        "gradient": OK,
        "fine:epsilon": OK,
        "halved:epsilon": WRONG,
        "other:epsilon": DIFFERENT,
        "nan:epsilon": WRONG,
        "refusing:epsilon": REFUSED,
        "missing:epsilon": NOT_INSTALLED,
    }
    rows = {row.method: row for row in results.rows}
    halved = rows["halved:epsilon"].correctness
    assert halved.relative_l2 == pytest.approx(0.5, abs=1e-4)
    assert halved.sum_over_score == pytest.approx(0.5 * halved.expected_sum_over_score, rel=1e-4)
    assert rows["halved:epsilon"].timing is not None  # a fast wrong method is shown
    assert rows["refusing:epsilon"].timing is rows["missing:epsilon"].timing is None
    for text in (report.as_text(results), report.as_markdown(results)):
        for word in ("WRONG", "REFUSED", "NOT INSTALLED", "DIFFERENT"):
            assert word in text
        for note in ("TypeError: no rule for this layer", "pip install it", "halves on purpose"):
            assert note in text
    marked = report.row_table(results.rows)
    assert {row[1] for i, row in enumerate(marked.rows) if i in marked.bad} == {
        "halved:epsilon",
        "other:epsilon",
        "nan:epsilon",
        "refusing:epsilon",
    }
    facts = json.loads(report.as_json(results))
    assert {row["method"]: row["correctness"]["verdict"] for row in facts["rows"]} == verdicts(
        results
    )
    assert len(drawing.draw(results).axes) == 1


def test_a_functional_addition_shows_who_is_wrong(
    planted: Callable[[Callable[[], nn.Module]], None],
) -> None:
    methods = ("ours:epsilon", "captum", "zennit:epsilon")
    planted(residual_model)
    found = verdicts(running.run(replace(TINY, methods=methods)))
    assert found["ours:epsilon"] == OK
    assert found["captum:epsilon"] == found["captum:gamma"] == WRONG
    assert found["zennit:epsilon"] == WRONG  # there is no canonizer for this class


def test_contenders_agree_where_they_should() -> None:
    whole = subject(
        lambda: nn.Sequential(*list(tiny_model())[:3], nn.Conv2d(4, 3, 7), nn.Flatten())
    )
    checker = Checker(whole, "float32")
    for method in select(("ours", "zennit")):
        explainer = method.build(whole.copied())
        explainer.prepare()
        relevance = explainer.attribute(checker.inputs, checker.target)
        explainer.finish()
        found = checker.check(method, relevance)
        assert found.relative_l2 < 1e-4, method.name
        assert found.independent_l2 is None or found.independent_l2 < 1e-9, method.name


def test_stock_captum_gets_its_rules_anew_and_leaves_none() -> None:
    whole = subject()
    method = next(m for m in select() if m.name == "captum:gamma")
    explainer = method.build(whole)
    for _ in range(2):
        explainer.prepare()
        assert type(whole.model[0].rule).__name__ == "GammaRule"
        assert type(whole.model[4].rule).__name__ == "EpsilonRule"
        assert not hasattr(whole.model[2], "rule")
        explainer.finish()
        assert not any(hasattr(module, "rule") for module in whole.model)


def test_a_library_that_is_missing_is_said(
    planted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("zennit", "autolrp"):
        monkeypatch.setitem(sys.modules, name, None)
    methods = ("zennit:epsilon", "autolrp:gamma", "ours:epsilon")
    results = running.run(replace(TINY, methods=methods))
    assert verdicts(results)["zennit:epsilon"] == NOT_INSTALLED
    assert verdicts(results)["autolrp:gamma"] == NOT_INSTALLED
    assert "pip install zennit" in report.as_text(results)
    assert all(row.correctness.independent_l2 is None for row in results.rows)


# several in one call --------------------------------------------------------------------------


def test_many_calls_it_with_targets_and_stabilizers(
    planted: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: set[tuple[int, int | None]] = set()

    def attribute_many(
        self: object,
        inputs: Tensor,
        targets: list[int],
        additional_forward_args: object = None,
        *,
        stabilizers: list[object] | None = None,
    ) -> None:
        calls.add((len(targets), None if stabilizers is None else len(stabilizers)))

    monkeypatch.setattr(many.LRP, "attribute_many", attribute_many, raising=False)
    found = many.measure(TINY)
    assert calls == {(1, 8), (10, None)}
    assert all(one.timing is not None for one in found)


# the whole ---------------------------------------------------------------------------------------


def test_the_machine_is_described_without_its_name() -> None:
    facts = machine.describe()
    assert {"processor", "cores", "threads of torch", "memory", "python", "torch"} <= set(facts)
    text = json.dumps(facts)
    if platform.node():
        assert platform.node() not in text.replace(facts["processor"], "").split('"')
    assert "/" not in text.replace(facts["processor"], "")


def test_a_quick_run_writes_everything(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "md", "png")}
    status = main(
        [
            *("--quick", "--no-memory", "--no-many"),
            *("--methods", "ours:epsilon", "captum:epsilon"),
            *("--json", str(files["json"]), "--markdown", str(files["md"])),
            *("--plot", str(files["png"])),
        ]
    )
    assert status == 0
    facts = json.loads(files["json"].read_text())
    assert facts["settings"]["models"] == ["squeezenet1_1"]
    assert [row["method"] for row in facts["rows"]] == [
        "gradient",
        "ours:epsilon",
        "captum:epsilon",
    ]
    assert all(row["correctness"]["verdict"] == "ok" for row in facts["rows"])
    assert {o["status"] for o in facts["targets"]} <= {MET, MISSED, NOT_MEASURED}
    markdown = files["md"].read_text()
    assert "(bench.png)" in markdown
    assert str(tmp_path) not in markdown + files["json"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "ours:epsilon" in capsys.readouterr().out


def test_mistakes_end_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--methods", "zenit:epsilon"]) == 2
    assert "zennit:epsilon" in capsys.readouterr().err
    assert main(["--models", "vgg17", "--methods", "ours:epsilon"]) == 2
    assert "vgg17" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--plot", "plot.svg"])


def test_any_preset_can_be_measured() -> None:
    names = [method.name for method in select(rules=("zero", "gamma"))]
    assert names == ["gradient", "ours:gamma", "captum:gamma", "autolrp:gamma", "ours:zero"]
    assert [m.name for m in select(("ours:lrp_tutorial",))] == ["gradient", "ours:lrp_tutorial"]
    with pytest.raises(ValueError, match="no rules has the name 'epsilom'; give one of epsilon"):
        select(rules=("epsilom",))


def test_inputs_lie_in_the_box_and_do_not_depend_on_the_batch() -> None:
    whole = subject()
    x = whole.inputs(3)
    assert x.min() >= -1
    assert x.max() <= 2
    assert torch.equal(x[:1], whole.inputs(1))
    assert not torch.equal(x[0], x[1])
    assert whole.targets(x).shape == (3,)
