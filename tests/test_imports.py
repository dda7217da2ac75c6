"""What importing the package does: little, until a name is asked for; then in any order."""

import subprocess
import sys

import pytest

import captum_lrp_stab

EVERY = """
import os, pkgutil, sys
import matplotlib.figure, torchvision, typer, captum.attr, captum.metrics, zennit
import captum_lrp_stab
names = [m.name for m in pkgutil.walk_packages(captum_lrp_stab.__path__, "captum_lrp_stab.")]
failed = []
for name in names:
    if name.endswith("__main__"):
        continue
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException as error:
            print(name, repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(len(names), failed)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_importing_does_not_load_pytorch() -> None:
    code = "import sys, captum_lrp_stab as p; print('torch' in sys.modules, p.__version__)"
    assert run(code) == f"False {captum_lrp_stab.__version__}"


THREADS = """
import threading, captum_lrp_stab as package
names = [name for name in package.__all__ if name != "__version__"]
together, failed = threading.Barrier(len(names)), []
def ask(name):
    together.wait()
    try:
        getattr(package, name)
    except BaseException as error:
        failed.append((name, error))
threads = [threading.Thread(target=ask, args=(name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failed)
"""


def test_threads_may_ask_at_once() -> None:
    assert run(THREADS) == "[]"


def test_every_name_is_there() -> None:
    for name in captum_lrp_stab.__all__:
        assert getattr(captum_lrp_stab, name) is not None
        assert name in dir(captum_lrp_stab)
    with pytest.raises(AttributeError, match="nothing"):
        captum_lrp_stab.nothing  # noqa: B018


def test_the_names_of_the_design() -> None:
    """These are fixed: people's scripts use them."""
    fixed = "LRP LayerLRP ZBoxRule GammaRule EpsilonRule ZeroRule AlphaBetaRule ZPlusRule"
    fixed += " WSquareRule FlatRule PassRule LayerFilter attach_rules plan stabilizers presets"
    fixed += " compare diagnose visualize types __version__"
    assert sorted(captum_lrp_stab.__all__) == sorted(fixed.split())


def test_every_module_can_be_imported_first() -> None:
    """The modules refer to each other; none may rely on another one's being there."""
    count, failed = run(EVERY).split(" ", 1)
    assert int(count) > 100 and failed == "[]"
