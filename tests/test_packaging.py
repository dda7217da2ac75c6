"""What is packed, what it says of itself, and that no fact of it is written down twice unlike."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from captum_lrp_stab import __version__
from tests.helpers.repository import ROOT

NAME = "captum-lrp-stab"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
OLD = "what is installed is older than setup.cfg: pip install -e '.[test]'"
# What a working tree gathers, which must not be packed.
JUNK = [
    ".hypothesis/examples/x",
    ".import_linter_cache/x.json",
    ".mypy_cache/3.11/x.json",
    "benchmarks/__pycache__/x.cpython-311.pyc",
    "build/lib/captum_lrp_stab/old.py",
    "captum_lrp_stab/__pycache__/x.cpython-311.pyc",
    "captum_lrp_stab/cli/__pycache__/x.cpython-311.pyc",
    "dist/captum_lrp_stab-0.0.1.tar.gz",
    "docs/.DS_Store",
    "docs/_build/html/index.html",
    "examples/.ipynb_checkpoints/x.ipynb",
    "lrp-investigation/report.html",
    "secrets.txt",
    "tests/.hypothesis/examples/x",
    "tests/.mypy_cache/3.11/x.json",
    "tests/.pytest_cache/README.md",
    "tests/.ruff_cache/x",
    "tests/__pycache__/x.cpython-311.pyc",
    "venv/pyvenv.cfg",
]


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files that git tracks."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout: what git tracks is unknown")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def built(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built where also lies what must not be packed."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in JUNK:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("junk")
    build = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"
    for kind in ("sdist", "wheel"):
        done = subprocess.run(
            [sys.executable, "-c", build.format(kind), str(out)],
            cwd=source,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shutil.rmtree(source / "build", ignore_errors=True)
    return out


def test_sdist_holds_what_git_tracks_and_nothing_else(built: Path, tracked: set[str]) -> None:
    (path,) = built.glob("*.tar.gz")
    assert path.name == f"captum_lrp_stab-{__version__}.tar.gz"
    with tarfile.open(path) as packed:
        names = {m.name.partition("/")[2] for m in packed.getmembers() if m.isfile()}
    made = {name for name in names if name == "PKG-INFO" or ".egg-info/" in name}
    assert names - made == tracked


def test_wheel_holds_the_package_and_nothing_else(built: Path, tracked: set[str]) -> None:
    (path,) = built.glob("*.whl")
    assert path.name == f"captum_lrp_stab-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as packed:
        names = set(packed.namelist())
    about = {name for name in names if name.startswith(f"captum_lrp_stab-{__version__}.dist-info/")}
    assert names - about == {name for name in tracked if name.startswith("captum_lrp_stab/")}
    assert any(name.endswith("/LICENSE") for name in about)


@pytest.mark.parametrize("name", ["py.typed", "reporting/templates/report.html.jinja"])
def test_data_of_the_package_are_there(name: str) -> None:
    assert resources.files("captum_lrp_stab").joinpath(name).is_file()


def test_version_is_the_same_everywhere() -> None:
    installed = importlib.metadata.version(NAME)
    assert installed == __version__, OLD
    assert re.findall(r"^version: (.+)$", text("CITATION.cff"), re.MULTILINE) == [__version__]
    releases = re.findall(r"^## \[(\d\S*)\] - (\S+)$", text("CHANGELOG.md"), re.MULTILINE)
    (date,) = re.findall(r'^date-released: "(.+)"$', text("CITATION.cff"), re.MULTILINE)
    assert releases[0] == (__version__, date)


def test_license_and_authors_are_the_same_everywhere() -> None:
    about = importlib.metadata.metadata(NAME)
    assert about["Author"] == "captum-lrp-stab contributors"
    assert f"name: {about['Author']}" in text("CITATION.cff")
    assert "MIT" in (about["License"] or about["License-Expression"])
    assert "\nlicense: MIT\n" in text("CITATION.cff")
    assert text("LICENSE").startswith("MIT License")


def test_pythons_are_the_same_everywhere() -> None:
    about = importlib.metadata.metadata(NAME)
    told = [c.rpartition(" ")[2] for c in about.get_all("Classifier") if ":: Python :: 3." in c]
    assert told == PYTHONS, OLD
    assert SpecifierSet(about["Requires-Python"]) == SpecifierSet(f">={PYTHONS[0]}")
    target = re.search(r'target-version = "py3(\d+)"', text("pyproject.toml"))
    assert target is not None
    assert f"3.{target[1]}" == PYTHONS[0]
    for workflow in ("test", "wheel"):
        (matrix,) = re.findall(r"python: \[(.+)\]", text(f".github/workflows/{workflow}.yml"))
        assert re.findall(r'"(.+?)"', matrix) == PYTHONS
    assert f"{{PYTHON:-python{PYTHONS[0]}}}" in text(".ci/lowest")


def test_extras_are_those_declared() -> None:
    declared = ConfigParser()
    declared.read_string(text("setup.cfg"))
    extras = set(declared["options.extras_require"])
    assert {canonicalize_name(extra) for extra in extras} == extras
    installed = set(importlib.metadata.metadata(NAME).get_all("Provides-Extra"))
    assert installed == extras, OLD
    lists = [declared["options"]["install_requires"], *declared["options.extras_require"].values()]
    for line in "\n".join(lists).split("\n"):
        if line:
            required = Requirement(line)
            assert required.specifier or required.name == NAME, f"{line}: no bound is tested"
            assert required.extras <= extras
    told = re.findall(r"pip install (?:-e )?'\.\[([\w,]+)\]'", text("README.md"))
    told += re.findall(r"pip install (?:-e )?'\.\[([\w,]+)\]'", text("CONTRIBUTING.md"))
    assert len(told) >= 4
    assert {extra for names in told for extra in names.split(",")} <= extras


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
OF_A_TAG = 'grep -Fx "__version__ = \\"${GITHUB_REF_NAME#v}\\"" captum_lrp_stab/_version.py'


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_the_commands_that_people_run(path: Path) -> None:
    workflow = path.read_text()
    commands = re.findall(r"^ *(?:- )?run: (.+)$", workflow, re.MULTILINE)
    assert len(commands) == workflow.count("run:") > 0
    known = text("README.md") + text("CONTRIBUTING.md")
    for command in commands:
        if command.startswith(".ci/"):
            assert os.access(ROOT / command.split()[0], os.X_OK)
        elif command != OF_A_TAG:
            assert command in known, f"{path.name}: {command}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_may_do_little(path: Path) -> None:
    workflow = path.read_text()
    assert "\npermissions:\n  contents: read\n\njobs:\n" in workflow
    assert "secrets." not in workflow
    used = re.findall(r"uses: (\S+)", workflow)
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)
    jobs = re.findall(r"^  [\w-]+:$", workflow.partition("\njobs:\n")[2], re.MULTILINE)
    assert workflow.count("timeout-minutes:") == len(jobs)


def test_make_describes_each_target() -> None:
    makefile = text("Makefile")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert targets is not None
    assert re.findall(r"^(\w+): ## \S", makefile, re.MULTILINE) == targets[1].split()


def test_linters_are_the_same_everywhere() -> None:
    recipes = dict(re.findall(r"^(\w+):.*\n((?:\t.+\n)+)", text("Makefile"), re.MULTILINE))
    hooks = re.findall(r"entry: (.+)", text(".pre-commit-config.yaml"))
    commands = [
        line.strip() for name in ("lint", "types", "test") for line in recipes[name].splitlines()
    ]
    assert commands == hooks
    run = text(".ci/run")
    assert all(
        re.search(rf"(^|&& ){re.escape(command)}(?!\S)", run, re.MULTILINE) for command in commands
    )


# In pieces, so that this file has none of them.
OF_A_MACHINE = [
    "/".join(pieces)
    for pieces in [
        ("", "root", ""),
        ("", "home", ""),
        ("", "Users", ""),
        ("", "work", ""),
        ("", "tmp", ""),
        ("", ".pyenv", ""),
        ("site-packages", "captum"),
        ("file:", "", ""),
    ]
]
OF_A_REGISTRY = [
    ".".join(pieces)
    for pieces in [
        ("pypi", "org"),
        ("files", "pythonhosted"),
        ("registry", "npmjs"),
        ("deb", "debian"),
        ("download", "pytorch"),
    ]
] + ["-".join(pieces) for pieces in [("index", "url"), ("find", "links"), ("trusted", "host")]]


def found_in(content: bytes) -> list[str]:
    return [word for word in OF_A_MACHINE + OF_A_REGISTRY if word.encode() in content]


def test_no_file_names_a_machine_or_a_registry(tracked: set[str]) -> None:
    found = {name: found_in((ROOT / name).read_bytes()) for name in tracked}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("word", OF_A_MACHINE + OF_A_REGISTRY)
def test_such_a_name_would_be_found(word: str) -> None:
    assert found_in(f"see {word}x".encode()) == [word]
