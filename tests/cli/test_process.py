"""The commands as processes: signals, pipes, terminals, and an environment that is odd."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.helpers.study_folders import noise

if sys.platform == "win32":
    pytest.skip("signals and terminals as on POSIX", allow_module_level=True)

import pty

pytestmark = pytest.mark.usefixtures("interruptible")
PROGRAM = [sys.executable, "-m", "captum_lrp_stab.cli"]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "GITHUB_ACTIONS", "PY_COLORS", "TERM")
}
NETWORK = ("--model", "squeezenet1_1", "--weights", "none")
PLAN = ("plan", "squeezenet1_1")
COMMANDS = {
    "investigate": ("investigate", "cat.png", *NETWORK, "--stabilizer", "signed"),
    "compare": ("compare", "cat.png", *NETWORK, "--reference", "float64"),
    "diagnose": ("diagnose", "cat.png", *NETWORK, "--rules", "epsilon_plus"),
    "plan": PLAN,
}
HELP = ("diagnose", "--help")
COLOUR = re.compile(r"\x1b\[[\d;]*\b(?:3[0-7]|9[0-7]|38;[25][\d;]*)m")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise(1).save("cat.png")
    return tmp_path


def shell(line: str, environment: Mapping[str, str] = CLEAN) -> subprocess.CompletedProcess[str]:
    """Run a line, in which ``$run`` stands for the command."""
    run = " ".join(f"'{part}'" for part in PROGRAM)
    return subprocess.run(
        ["sh", "-c", line.replace("$run", run)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def terminal(arguments: Sequence[str], **more: str) -> tuple[int, str]:
    """Return the exit status, and what a terminal would be sent."""
    child, descriptor = pty.fork()
    if child == 0:
        os.execve(PROGRAM[0], [*PROGRAM, *arguments], CLEAN | {"TERM": "xterm-256color"} | more)
    shown = b""
    while True:
        try:
            if not select.select([descriptor], [], [], 300)[0]:
                os.kill(child, signal.SIGKILL)
            part = os.read(descriptor, 4096)
        except OSError:  # on Linux where the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def test_help_on_terminals() -> None:
    status, shown = terminal(HELP)
    assert status == 0 and COLOUR.search(shown) and "Exit status" in shown
    status, shown = terminal(HELP, NO_COLOR="1")
    assert status == 0 and not COLOUR.search(shown) and "Exit status" in shown
    status, shown = terminal(HELP, TERM="dumb")
    assert status == 0 and "\x1b" not in shown and "Exit status" in shown


def test_help_without_a_terminal() -> None:
    done = shell("$run diagnose --help")
    assert (done.returncode, done.stderr) == (0, "") and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = shell("$run diagnose --help", CLEAN | {"FORCE_COLOR": "1"})
    assert COLOUR.search(done.stdout)


def test_usage_errors_and_an_unknown_word() -> None:
    for line in ("$run nope", "$run plan", "$run diagnose --nope", "$run plan a --seed 1"):
        done = shell(line)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: captum-lrp-stab" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_results_on_terminals(name: str) -> None:
    """A bar on a terminal that can draw it, colours where they are wanted."""
    arguments = COMMANDS[name]
    has_bar = name != "plan"
    status, shown = terminal(arguments)
    assert status == 0 and ("━" in shown) == has_bar and ("\x1b[?25l" in shown) == has_bar
    status, shown = terminal(arguments, NO_COLOR="1")
    assert status == 0 and not COLOUR.search(shown)
    status, shown = terminal(arguments, TERM="dumb")
    assert status == 0 and "\x1b" not in shown and "━" not in shown
    status, shown = terminal((*arguments, "--json", "--quiet"))
    assert status == 0 and json.loads(shown)
    forced = CLEAN | {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = shell("$run " + " ".join(arguments), forced)
    assert (done.returncode, done.stderr) == (0, "")  # no bar in a file
    assert ("\x1b[1m" in done.stdout) == has_bar and "\x1b[?25l" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "plan"])
def test_ctrl_c(name: str) -> None:
    """Once loading has begun: while Python imports, an interrupt can get lost in a destructor."""
    run = subprocess.Popen(
        [*PROGRAM, *COMMANDS[name], "--out", "out"],
        env=CLEAN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not Path("out").is_dir():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    shown, said = run.communicate()
    assert (run.returncode, shown) == (130, "")
    assert said.startswith("interrupted ") and said.count("\n") == 1


@pytest.mark.slow
def test_pipes_and_full_disks() -> None:
    done = shell("{ $run plan resnet18; echo $? >&2; } | head -1")
    assert done.stdout.startswith("index") and done.stdout.count("\n") == 1
    assert done.stderr == "0\n"
    assert shell("$run plan resnet18 --json >&-").returncode == 0
    for arguments in ("plan resnet18", "plan resnet18 --json"):
        done = shell(f"$run {arguments} > /dev/full")
        assert done.returncode == 2
        said = "error: cannot write to standard output: [Errno 28] No space left on device\n"
        assert done.stderr == said
    done = shell(f"ulimit -f 1; $run {' '.join(COMMANDS['diagnose'])}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot write into lrp-diagnosis")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_odd_names_and_environments(folder: Path) -> None:
    noise(2).save("猫 [bold]ü.png")
    arguments = "'猫 [bold]ü.png' --model squeezenet1_1 --weights none --rules epsilon_plus"
    for more in (
        {"HOME": str(folder / "nowhere"), "LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii", "HOME": ""},
    ):
        done = shell(f"$run diagnose {arguments}", CLEAN | more)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "[bold]" in done.stdout
    assert json.loads((folder / "lrp-diagnosis" / "report.json").read_text())["picture"] == (
        "猫 [bold]ü.png"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to() -> None:
    Path("kept").mkdir(mode=0o500)
    done = shell(f"$run {' '.join(COMMANDS['diagnose'])} --out kept/report")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot make the folder kept/report")
