"""Reading the documentation's pages: code blocks, commands, links, anchors."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.repository import ROOT

PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts
)

_FENCE = re.compile(r"^(`{3,}|~{3,})\s*(\S*)")
_LINK = re.compile(r"(?<!\\)\[(?:[^][]|\[[^]]*\])*\]\(([^()\s]+)\)")
_ELSEWHERE = re.compile(r"^(?:from|import) lrp\b", re.MULTILINE)  # the castle study's own package
_HEADING = re.compile(r"^#{1,6} +(.+?) *$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, and the number of the first of them."""

    language: str
    lines: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Command:
    """A command a page shows, and the exit status it promises; None for any but a mistake."""

    arguments: tuple[str, ...]
    status: int | None


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    fence, language, start = "", "", 0
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        found = _FENCE.match(line)
        if not fence:
            if found:
                fence, language, start, lines = found[1], found[2], number + 1, []
        elif line.strip() == fence:
            yield Block(language, tuple(lines), start)
            fence = ""
        else:
            lines.append(line)


def prose(text: str) -> str:
    """Return a page without its fenced blocks and its code spans."""
    kept, fence = [], ""
    for line in text.splitlines():
        found = _FENCE.match(line)
        if not fence and found:
            fence = found[1]
        elif fence:
            if line.strip() == fence:
                fence = ""
        else:
            kept.append(line)
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", "\n".join(kept), flags=re.DOTALL)


def unchecked_python(text: str) -> list[int]:
    """Return the first lines of the blocks of Python that doctest would not run, or run wrongly.

    The line before the closing fence must be blank, or the fence would count as expected output.
    Programs of packages that are no dependency of the tests are left out.
    """
    return [
        block.line
        for block in blocks(text)
        if block.language in ("python", "pycon", "py", "python3")
        and not (block.lines and block.lines[0].startswith(">>> ") and not block.lines[-1].strip())
        and not _ELSEWHERE.search("\n".join(block.lines))
    ]


def commands(text: str, program: str = "captum-lrp-stab") -> list[Command]:
    """Return the commands of the console blocks, and those that begin a row of a table.

    Lines that begin with ``$ `` are typed, the others are output. A ``$ echo $?`` after a command
    promises the status in the line below it; without one the command promises 0. In a table it
    promises to be no mistake.
    """
    found = [Command(tuple(shlex.split(words)), None) for words in cells(text, program)]
    for block in blocks(text):
        if block.language != "console":
            continue
        typed = re.sub(r"\\\n\s*", " ", "\n".join(block.lines)).splitlines()
        for index, line in enumerate(typed):
            words = shlex.split(line[2:], comments=True) if line.startswith("$ ") else []
            if not words or words[0] != program:
                continue
            rest = typed[index + 1 :]
            after = next((i for i, other in enumerate(rest) if other.startswith("$ ")), None)
            promised = 0
            if after is not None and rest[after] == "$ echo $?":
                promised = int(rest[after + 1])
            found.append(Command(tuple(words[1:]), promised))
    return found


def cells(text: str, program: str) -> list[str]:
    """Return what follows a program's name in the first cells of tables' rows."""
    return re.findall(rf"^\| `{program} ([^`]+)` \|", text, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return what the headings of a page are linked by, as on GitHub."""
    fenced = {n for b in blocks(text) for n in range(b.line - 1, b.line + len(b.lines) + 1)}
    found: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        heading = None if number in fenced else _HEADING.match(line)
        if heading:
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
            slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
            again = sum(other == slug or other.startswith(f"{slug}-") for other in found)
            found.add(f"{slug}-{again}" if slug in found else slug)
    return found


def broken_links(path: Path, text: str) -> list[str]:
    """Return the relative links of a page that lead to no file, or to no heading in it."""
    broken = []
    for link in _LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(text if not name else target.read_text()):
            broken.append(link)
    return broken
