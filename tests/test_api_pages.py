"""Every public name stands on an API page, and every name on an API page exists.

Sphinx itself builds the pages (`make docs`); here the directives are read, which needs no Sphinx.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

import captum_lrp_stab
from tests.helpers.repository import ROOT

PAGES = ROOT / "docs" / "api"
MODULES = (
    "captum_lrp_stab",
    "captum_lrp_stab.comparison",
    "captum_lrp_stab.diagnosis",
    "captum_lrp_stab.errors",
    "captum_lrp_stab.propagation.forms",
    "captum_lrp_stab.rules.input_layer",
    "captum_lrp_stab.study.investigation",
    "captum_lrp_stab.images.reading",
    "captum_lrp_stab.presets",
    "captum_lrp_stab.rules",
    "captum_lrp_stab.stabilizers",
    "captum_lrp_stab.testing",
    "captum_lrp_stab.types",
    "captum_lrp_stab.visualize",
    "captum_lrp_stab.zoo",
)
INNER = {  # names without underscore that serve the package itself
    "captum_lrp_stab.propagation.forms": {"Form", "NAMES"},
    "captum_lrp_stab.images.reading": {"DEFAULT_PICTURE"},
    "captum_lrp_stab.presets": {"Choice", "Layers"},
    "captum_lrp_stab.rules": {"Sign", "half"},
    "captum_lrp_stab.stabilizers": {"StabilizerLike"},
    "captum_lrp_stab.zoo": {"CAFFE_SQUEEZENET", "LITE0", "OFFLINE"},
}
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(\w+):: (\S+)\n((?:   .*\n?)*)", re.MULTILINE)


def public_names(module: ModuleType) -> set[str]:
    """``__all__``, or what a module without one defines itself."""
    if hasattr(module, "__all__"):
        return set(module.__all__)
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", None) in (None, module.__name__)
    }
    imported = set(re.findall(r"^from \S+ import (.+)$", inspect.getsource(module), re.MULTILINE))
    brought = {name.strip() for line in imported for name in re.split(r",|\bas\b", line)}
    return defined - brought


def option(body: str, name: str) -> list[str] | None:
    found = re.search(rf"^   :{name}:(.*)$", body, re.MULTILINE)
    return None if found is None else [one for one in re.split(r"[,\s]+", found[1]) if one]


def documented(text: str) -> Iterator[str]:
    """The full names that the directives of a page document."""
    for kind, name, body in DIRECTIVE.findall(text):
        yield name
        members = option(body, "members")
        if kind != "module" or members is None:
            continue
        module = importlib.import_module(name)
        left_out = option(body, "exclude-members") or []
        for member in members or sorted(public_names(module) - set(left_out)):
            yield f"{name}.{member}"


def resolved(name: str) -> object:
    """What a full name stands for."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"{name} is in no package")


def everything() -> str:
    return "\n".join(page.read_text() for page in sorted(PAGES.glob("*.rst")))


def missing(text: str, module: ModuleType) -> list[str]:
    """The public names of a module that no directive documents, under any of their full names."""
    names = set(documented(text))
    values = [resolved(name) for name in names]

    def stands_there(name: str) -> bool:
        value = getattr(module, name)
        if f"{module.__name__}.{name}" in names:
            return True
        known = inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)
        return known and any(value is one for one in values)

    left = public_names(module) - INNER.get(module.__name__, set())
    return sorted(name for name in left if not stands_there(name))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_on_a_page(name: str) -> None:
    assert missing(everything(), importlib.import_module(name)) == []


def test_a_missing_name_is_found() -> None:
    without = everything().replace("autofunction:: captum_lrp_stab.attach_rules", "")
    assert missing(without, captum_lrp_stab) == ["attach_rules"]
    stabilizers = importlib.import_module("captum_lrp_stab.stabilizers")
    text = everything().replace(":exclude-members: is_elementwise", ":exclude-members: Clip")
    assert "Clip" in missing(text, stabilizers)


def test_every_name_on_a_page_exists() -> None:
    for name in documented(everything()):
        resolved(name)


def test_every_name_on_a_page_has_a_docstring() -> None:
    for name in documented(everything()):
        value = resolved(name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), name


def test_every_page_is_in_the_list() -> None:
    index = (PAGES / "index.rst").read_text()
    for page in PAGES.glob("*.rst"):
        if page.stem != "index":
            assert f":doc:`{page.stem}`" in index and f"\n   {page.stem}\n" in index, page.name
