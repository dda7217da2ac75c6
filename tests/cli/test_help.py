"""The help of the commands, and the completion of what one types."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from captum_lrp_stab import names, presets, zoo
from captum_lrp_stab.cli import app, comparing, diagnosing, investigating, main, options, planning
from captum_lrp_stab.comparison import references
from captum_lrp_stab.diagnosis import sweeping
from tests.helpers.commands import command

MODULES = {
    "investigate": investigating,
    "compare": comparing,
    "diagnose": diagnosing,
    "plan": planning,
}
PROGRAM = "captum-lrp-stab"


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", [*MODULES, None])
def test_examples_and_statuses_at_any_width(
    name: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = command(*([name] if name is not None else []), "--help").stdout
    assert "\x1b" not in shown
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= width
    end = lines[lines.index(" Examples") :]
    assert " Exit status" in end
    statuses = [
        line.split()[1].rstrip(":") for line in end[end.index(" Exit status") :] if "•" in line
    ]
    assert statuses == (["0", "2", "130"] if name == "plan" else ["0", "1", "2", "130"])
    examples = [line for line in end[: end.index(" Exit status")] if "•" in line]
    assert len(examples) >= 4
    assert all(line.startswith(f"  • {PROGRAM}") for line in examples)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_accepted(name: str) -> None:
    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    examples = [
        line.strip("-` ") for line in MODULES[name].EPILOG.splitlines() if line.startswith("- `")
    ]
    assert len(examples) >= 4
    for example in examples:
        program, given, *arguments = example.split("||")[0].split("&&")[0].split(">")[0].split()
        assert (program, given) == (PROGRAM, name)
        known.make_context(name, arguments)
    with pytest.raises(Exception, match="--no-such-option"):
        known.make_context(name, ["--no-such-option"])


def test_names_are_those_of_the_library() -> None:
    assert options.models() == zoo.names()
    defined = inspect.getmembers(presets, inspect.isfunction)
    public = [n for n, f in defined if f.__module__ == presets.__name__ and not n.startswith("_")]
    assert list(names.PRESETS) == public
    assert names.REFERENCES == tuple(references.NAMES)
    assert names.SWEPT == get_args(sweeping.Parameter)


def completed(*words: str) -> list[str]:
    """What Bash is told where the last of the words is incomplete."""
    asked = {
        "_CAPTUM_LRP_STAB_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join((PROGRAM, *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(app, [], env=asked, prog_name=PROGRAM)
    assert result.exit_code == 0 and result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("inv",), ["investigate"]),
        (("diagnose", "--mod"), ["--model"]),
        (("diagnose", "--model", "squeezenet1_1"), ["squeezenet1_1", "squeezenet1_1_caffe"]),
        (("plan", "efficientnet_l"), ["efficientnet_lite0"]),
        (("compare", "--rules", "epsilon_p"), ["epsilon_plus", "epsilon_plus_flat"]),
        (("investigate", "--stabilizer", "r"), ["relative", "rounding"]),
        (("investigate", "--stabilizer", "none", "--stabilizer", "c"), ["clip"]),
        (("compare", "--form", "m"), ["modified-forward"]),
        (("diagnose", "--form", "st"), ["stock"]),
        (("compare", "--form", "st"), []),
        (("diagnose", "--dtype", "float"), ["float16", "float32", "float64"]),
        (("plan", "resnet18", "--attention", "c"), ["cp"]),
        (("compare", "--reference", "captum"), ["captum", "captum_driver"]),
        (("diagnose", "--sweep", "g"), ["gamma"]),
        (("diagnose", "--weights", "n"), ["none"]),
        # left to the shell, which completes the names of files
        (("diagnose", "ca"), []),
        (("investigate", "ca"), []),
        (("diagnose", "--out", "lrp"), []),
        (("diagnose", "--weights", "vgg"), []),
    ],
    ids=lambda value: "-".join(value) or "nothing",
)
def test_completion(words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_completion_and_help_import_nothing_slow() -> None:
    program = (
        "import sys; from captum_lrp_stab.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'captum', 'PIL'} & set(sys.modules)"
    )
    completing = {
        "_CAPTUM_LRP_STAB_COMPLETE": "complete_bash",
        "COMP_WORDS": f"{PROGRAM} plan vgg1",
        "COMP_CWORD": "2",
    }
    for arguments, more, part in (((), completing, "vgg16_bn"), (("plan", "--help"), {}, "plan")):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=os.environ | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert part in done.stdout


def test_completion_that_cannot_be_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", os.devnull)
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "bash"))
    monkeypatch.setattr(sys, "argv", [PROGRAM, "--install-completion"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no Bash")
def test_in_bash(tmp_path: Path) -> None:
    """The script that Bash is given, run by it."""
    run = tmp_path / PROGRAM
    run.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m captum_lrp_stab.cli "$@"\n')
    run.chmod(0o755)
    script = f"""
        eval "$(_CAPTUM_LRP_STAB_COMPLETE=source_bash {PROGRAM})" || exit 3
        COMP_WORDS=({PROGRAM} diagnose --form re) COMP_CWORD=3
        _captum_lrp_stab_completion {PROGRAM}
        echo "${{COMPREPLY[@]}}"
        complete -p {PROGRAM}
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "relevance",
        f"complete -o default -F _captum_lrp_stab_completion {PROGRAM}",
    ]
