"""The words the options take, for their help and for completion, without importing PyTorch.

They are read from the source of the modules that define them: importing those takes seconds, and
neither ``--help`` nor the TAB key should.
"""

import ast
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
# A function that torchvision lists as a model, below its decorators.
_MODEL = re.compile(r"^@register_model\(\)\n(?:@.*\n)*def (\w+)", re.MULTILINE)


def defined(module: str, name: str) -> Any:
    """Return a constant of a module of this package: of a dict its keys, of a Literal its values.

    Args:
        module: Its name below the package.
        name: What is assigned to at its top level.

    Raises:
        KeyError: Nothing of this name is assigned there.

    Example:
        >>> defined("propagation.forms", "NAMES")
        ('gradient', 'relevance', 'modified-forward')
    """
    assigned = {}
    for statement in _source(module).body:
        if isinstance(statement, ast.Assign):
            assigned.update({ast.unparse(target): statement.value for target in statement.targets})
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            assigned[ast.unparse(statement.target)] = statement.value

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return value(assigned[node.id])
        if isinstance(node, ast.Subscript):
            return value(node.slice)
        if isinstance(node, ast.Dict):
            return tuple(ast.literal_eval(key) for key in node.keys if key is not None)
        if isinstance(node, ast.Tuple):
            return tuple(value(item) for item in node.elts)
        return ast.literal_eval(node)

    return value(assigned[name])


@cache
def _source(module: str) -> ast.Module:
    base = _PACKAGE.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def presets() -> list[str]:
    """Return what ``choices.preset_names`` returns."""
    functions = [node.name for node in _source("presets").body if isinstance(node, ast.FunctionDef)]
    return sorted(name for name in functions if not name.startswith("_"))


def models() -> list[str]:
    """Return what ``zoo.names`` returns."""
    found = list(OFFLINE)
    spec = find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in Path(folder, "models").glob("*.py"):
            found += _MODEL.findall(path.read_text(encoding="utf-8"))
    return sorted(found)


OFFLINE: tuple[str, ...] = defined("zoo", "OFFLINE")
STABILIZERS: tuple[str, ...] = defined("by_name", "STABILIZERS")
DEFAULT_STABILIZERS: tuple[str, ...] = defined("by_name", "DEFAULT_STABILIZERS")
SWEPT_STABILIZERS: tuple[str, ...] = defined("study.grid", "SWEPT")
FORMS: tuple[str, ...] = defined("propagation.forms", "NAMES")
STOCK: str = defined("diagnosis.stock", "NAME")
ATTENTION: tuple[str, ...] = defined("rules.rule_set", "Attention")
DTYPES: tuple[str, ...] = defined("by_name", "DTYPES")
REFERENCES: tuple[str, ...] = defined("comparison.references", "NAMES")
THRESHOLD: float = defined("ledger.locating", "THRESHOLD")
SWEPT = ("epsilon", "gamma")
WEIGHTS = ("DEFAULT", "none")


def completing(words: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what completes a beginning to those of the words that begin like it.

    Example:
        >>> completing(("clip", "signed"))("s")
        ['signed']
    """

    def complete(incomplete: str) -> list[str]:
        known = words() if callable(words) else words
        return [word for word in known if word.startswith(incomplete)]

    return complete


files = completing(())
"""Completes nothing, which leaves it to the shell, and that completes the names of files."""
