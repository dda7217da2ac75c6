"""What importing the package does: little, until a name is asked for; then in any order."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import captum_lrp_stab
from tests.helpers import fresh

PACKAGE = Path(captum_lrp_stab.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__main__.py"
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_importing_does_not_load_pytorch() -> None:
    code = "import sys, captum_lrp_stab as p; print('torch' in sys.modules, p.__version__)"
    assert run(code) == f"False {captum_lrp_stab.__version__}"


THREADS = """
import sys
import threading
import captum_lrp_stab as package
sys.setswitchinterval(1e-5)
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
    """None may rely on another one's being there."""
    assert len(MODULES) > 100
    failed = fresh.failures([f"import {name}" for name in MODULES])
    assert dict(zip(MODULES, failed, strict=True)) == dict.fromkeys(MODULES, "")


def asked_of_the_package(source: str) -> Iterator[str]:
    """Yield what a module takes from the package's lazy names instead of from a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "captum_lrp_stab":
            yield from (a.name for a in node.names if a.name in captum_lrp_stab.__all__)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield ast.unparse(node)  # behind a relative path the same could hide
        elif isinstance(node, ast.Import):
            names = [a for a in node.names if a.name.partition(".")[0] == "captum_lrp_stab"]
            yield from (a.name for a in names if not a.asname or "." not in a.name)


def test_no_module_asks_for_a_lazy_name() -> None:
    """The package's lazy names import other modules, in the middle of the one that asks."""
    asking = {name: list(asked_of_the_package(path.read_text())) for name, path in MODULES.items()}
    assert {name: found for name, found in asking.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from captum_lrp_stab import kernel, types", ["types"]),
        ("def f():\n    from captum_lrp_stab import LRP as Ours", ["LRP"]),
        ("import captum_lrp_stab as package", ["captum_lrp_stab"]),
        ("import captum_lrp_stab.types", ["captum_lrp_stab.types"]),
        ("from . import types", ["from . import types"]),
        ("import captum_lrp_stab.types as types\nfrom captum_lrp_stab import kernel", []),
        ("from captum_lrp_stab.types import Linear\nimport torch.types", []),
    ],
)
def test_what_counts_as_asking(source, found) -> None:
    assert list(asked_of_the_package(source)) == found
