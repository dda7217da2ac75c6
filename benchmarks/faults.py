"""How many planted faults the tests catch: a measure to take before and after thinning them.

``python -m benchmarks.faults`` plants faults in the core, one at a time, in a copy of the working
tree, and runs the tests until the first one fails. A fault is one changed token: a sign, a
comparison, a dropped term, operands in the wrong order. The faults are drawn by a seed, and
``--as-in REVISION`` draws them from the lines that stand there too, so that two revisions can be
asked for the same ones: run it once in a checkout of each. A fault that changes nothing, such as a
tolerance that is a little larger, counts as one that is not caught; there are always some.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "captum_lrp_stab"
_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: (" is ", " is not "),
    ast.IsNot: (" is not ", " is "),
    ast.In: (" in ", " not in "),
    ast.NotIn: (" not in ", " in "),
}
_OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
}


class Fault(NamedTuple):
    """One line of the package, and what is planted in its place."""

    line: str  # as it is, without its indentation
    planted: str


def faults_in(source: str) -> Iterator[Fault]:
    """Yield the faults that can be planted in a module, each within one line.

    Example:
        >>> [fault.planted for fault in faults_in("y = a - b if not c else 0")]
        ['y = a - b if c else 0', 'y = a + b if not c else 0', 'y = a if not c else 0']
    """
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.expr) or node.lineno != node.end_lineno:
            continue
        line = lines[node.lineno - 1]
        if len(line) != len(line.encode()):  # columns are in bytes
            continue
        for start, end, text in _changes(node, line):
            yield Fault(line.strip(), (line[:start] + text + line[end:]).strip())


def _changes(node: ast.expr, line: str) -> Iterator[tuple[int, int, str]]:
    """Yield what can be planted in an expression: a part of its line, and what replaces it."""

    def swapped(one: ast.expr, other: ast.expr, words: tuple[str, str]) -> tuple[int, int, str]:
        start, end = one.end_col_offset or 0, other.col_offset
        return start, end, line[start:end].replace(*words, 1)

    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield swapped(node.left, node.comparators[0], _COMPARISONS[type(node.ops[0])])
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield swapped(node.left, node.right, _OPERATORS[type(node.op)])
        if isinstance(node.op, (ast.Add, ast.Sub)):
            yield node.left.end_col_offset or 0, node.end_col_offset or 0, ""
    elif isinstance(node, ast.BoolOp) and len(node.values) == 2:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        yield swapped(node.values[0], node.values[1], words)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.col_offset, node.operand.col_offset, ""
    elif isinstance(node, ast.Call) and len(node.args) >= 2:
        first, second = node.args[:2]
        if not isinstance(first, ast.Starred) and not isinstance(second, ast.Starred):
            one = line[first.col_offset : first.end_col_offset]
            other = line[second.col_offset : second.end_col_offset]
            if one != other:
                yield first.col_offset, second.end_col_offset or 0, f"{other}, {one}"


def modules_of(tree: Path, rooms: Sequence[str]) -> dict[Path, str]:
    """Return the modules of a checkout that faults are planted in, with their source.

    Args:
        tree: The checkout.
        rooms: Sub-packages; where there are none of these names, all of the package.
    """
    package = tree / PACKAGE
    folders = [package / room for room in rooms if (package / room).is_dir()] or [package]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    return {path.relative_to(tree): path.read_text("utf-8") for path in paths}


def drawn(
    modules: dict[Path, str], count: int, seed: int, elsewhere: Counter[str] | None = None
) -> list[tuple[Path, Fault]]:
    """Return faults by a seed, in lines that stand once in the package.

    Args:
        modules: See :func:`modules_of`.
        count: How many.
        seed: Of the draw.
        elsewhere: How often each line stands in another revision, once to be drawn; None for none.
    """
    here = lines_of(modules.values())
    found = {
        fault: path
        for path, source in modules.items()
        for fault in faults_in(source)
        if here[fault.line] == 1 and (elsewhere is None or elsewhere[fault.line] == 1)
    }
    ordered = sorted(found)
    random.Random(seed).shuffle(ordered)
    programs = (fault for fault in ordered if _is_program(modules[found[fault]], fault))
    return [(found[fault], fault) for fault in islice(programs, count)]


def _is_program(source: str, fault: Fault) -> bool:
    """Return whether a module can still be read: not so where half of a bracket is gone."""
    try:
        ast.parse(source.replace(fault.line, fault.planted, 1))
    except SyntaxError:
        return False
    return True


def lines_of(sources: Iterable[str]) -> Counter[str]:
    """Return how often each line stands in some modules, without its indentation."""
    return Counter(line.strip() for source in sources for line in source.splitlines())


def is_caught(tree: Path, path: Path, fault: Fault, tests: Sequence[str], limit: float) -> bool:
    """Plant a fault in a checkout, run the tests, take it out again, and return whether one failed.

    Args:
        tree: The checkout, which is changed meanwhile.
        path: The module.
        fault: What to plant.
        tests: Arguments of pytest.
        limit: Seconds after which the run counts as failed: an endless loop is caught, too.
    """
    source = (tree / path).read_text("utf-8")
    (tree / path).write_text(source.replace(fault.line, fault.planted, 1), "utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=limit, check=False
        )
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        (tree / path).write_text(source, "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Plant faults and print which of them the tests catch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=1800, metavar="SECONDS")
    parser.add_argument("--rooms", nargs="*", default=["rules", "dispatch", "fast", "propagation"])
    parser.add_argument("--as-in", metavar="FOLDER", help="checkout of another revision")
    parser.add_argument("tests", nargs="*", help="arguments of pytest")
    given = parser.parse_args(arguments)
    modules = modules_of(ROOT, given.rooms)
    elsewhere = None
    if given.as_in is not None:
        elsewhere = lines_of(modules_of(Path(given.as_in), given.rooms).values())
    chosen = drawn(modules, given.count, given.seed, elsewhere)
    caught = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "*cache*", "_build"))
        for number, (path, fault) in enumerate(chosen, 1):
            is_seen = is_caught(tree, path, fault, given.tests, given.limit)
            caught += is_seen
            word = "caught" if is_seen else "NOT CAUGHT"
            print(
                f"{number:3} {word:10} {path}\n    - {fault.line}\n    + {fault.planted}",
                flush=True,
            )
    print(f"{caught} of {len(chosen)} faults caught")


if __name__ == "__main__":
    main()
