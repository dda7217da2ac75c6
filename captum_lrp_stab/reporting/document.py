"""A report as a document: one HTML file that needs nothing else, and the same as Markdown.

A :class:`Document` holds sections, a section holds blocks; all of them are values, written down
once and rendered by :func:`to_html` and :func:`to_markdown`. The HTML holds its pictures and its
style, fetches nothing and runs nothing, so that it can be mailed or kept. Names of models, layers
and files go into both as they are, whatever they mean in HTML or Markdown; characters that cannot
be encoded or seen are spelled out. Runs of spaces and line breaks count as one space, except in
:class:`Code`.

Example:
    >>> table = Table(("layer", "rel. L2"), (("conv", "1e-07"),), words=("layer",))
    >>> section = Section("Layers", (Paragraph("From the output to the input."), table))
    >>> document = Document("Comparison", "Both sides agree.", "good", (section,))
    >>> print(to_markdown(document))
    # Comparison
    <BLANKLINE>
    > **✓ Good.** Both sides agree.
    <BLANKLINE>
    ## Layers
    <BLANKLINE>
    From the output to the input.
    <BLANKLINE>
    | layer | rel. L2 |
    | :--- | ---: |
    | conv | 1e-07 |
    <BLANKLINE>
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from captum_lrp_stab.reporting import files

Tone: TypeAlias = Literal["good", "warning", "bad"]

_DPI = 150  # sharp on a dense screen, at about 100 kB a figure
_CSS_DPI = 96
_TONES = {"good": ("✓", "Good"), "warning": ("!", "Caution"), "bad": ("✗", "Problem")}
_BAD_ROW = "✗"
_WRAPPED = 28  # a column of words that are longer is broken into lines


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Notes:
    """A bulleted list."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Python to copy, shown exactly as it is."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Args:
        header: The names of the columns.
        rows: The cells, as many in each row as there are columns.
        words: The names of the columns that hold words, which are aligned to the left. The others
            hold numbers.
        bad: The indices of the rows to mark as bad.
        caption: What the table shows.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    bad: frozenset[int] = frozenset()
    caption: str = ""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise ValueError(
                    f"row {index} has {len(row)} cells under {len(self.header)} columns: {row}"
                )

    @property
    def longest(self) -> list[int]:
        """The number of characters of each column's longest cell."""
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]


@dataclass(frozen=True)
class Picture:
    """A figure on a white ground.

    Args:
        figure: What to show. It is drawn once, when it is first needed.
        name: What its file is called, without ``.png``.
        description: The picture in words, for those who do not see it.
        caption: What stands below it.
    """

    figure: Figure
    name: str
    description: str
    caption: str = ""

    # Kept, since a figure with an automatic layout may come out differently when drawn again.
    @cached_property
    def png(self) -> bytes:
        """The content of the file."""
        buffer = io.BytesIO()
        self.figure.savefig(
            buffer,
            format="png",
            dpi=_DPI,
            transparent=False,
            metadata={"Software": None},  # it would name the version of matplotlib
        )
        return buffer.getvalue()

    @property
    def uri(self) -> str:
        """The content as an address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height at which to show it, in CSS pixels."""
        sides = self.png[16:20], self.png[20:24]  # of the IHDR chunk, which always comes first
        width, height = (round(int.from_bytes(side, "big") * _CSS_DPI / _DPI) for side in sides)
        return width, height


Block: TypeAlias = Paragraph | Facts | Notes | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report.

    Args:
        title: What it is about.
        verdict: What came out, in one or two plain sentences.
        tone: Whether that is good.
        sections: The body.
        footer: Versions and the like.
    """

    title: str
    verdict: str
    tone: Tone
    sections: tuple[Section, ...]
    footer: str = ""

    @property
    def pictures(self) -> list[Picture]:
        """The pictures of all sections."""
        blocks = (block for section in self.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Picture)]


def write(document: Document, folder: Path, facts: str) -> list[Path]:
    """Write a report: as HTML, as Markdown, its facts as JSON, and its pictures as PNG.

    Args:
        document: What to write.
        folder: Where to; it is made if it does not exist.
        facts: What the report says, as JSON.

    Returns:
        The paths, in this order.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    return files.write(
        folder,
        {
            "report.html": to_html(document).encode(),
            "report.md": to_markdown(document).encode(),
            "report.json": f"{facts}\n".encode(),
            **{f"{picture.name}.png": picture.png for picture in document.pictures},
        },
    )


def _visible(text: str) -> str:
    r"""Return text without what cannot be encoded or seen, such as '\udcff' and '\x1b'."""
    return re.sub(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]",
        lambda found: found[0].encode("unicode_escape").decode("ascii"),
        text,
    )


def to_html(document: Document) -> str:
    """Return the document as one HTML file."""
    symbol, word = _TONES[document.tone]
    return _visible(
        _TEMPLATES.get_template("report.html.jinja").render(
            document=document, symbol=symbol, word=word, bad_row=_BAD_ROW
        )
    )


def _breakable(name: str) -> Markup:
    """Let a line end within a long dotted name, but not within a number."""
    return Markup(
        re.sub(r"(?<=[^\W\d])[._/](?=\w)|[._/](?=[^\W\d])", r"\g<0><wbr>", str(escape(name)))
    )


def _classes(table: Table) -> list[str]:
    """Return the classes of the cells of each column, if it holds words."""
    return ["words wrap" if longest > _WRAPPED else "words" for longest in table.longest]


def _kind(block: Block) -> str:
    return type(block).__name__


_TEMPLATES = Environment(
    loader=PackageLoader("captum_lrp_stab.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"breakable": _breakable, "classes": _classes, "kind": _kind}


def to_markdown(document: Document) -> str:
    """Return the document as Markdown, with links to ``<name>.png`` beside it."""
    symbol, word = _TONES[document.tone]
    parts = [f"# {_inline(document.title)}", f"> **{symbol} {word}.** {_inline(document.verdict)}"]
    for section in document.sections:
        parts.append(f"## {_inline(section.title)}")
        parts += [_markdown(block) for block in section.blocks]
    if document.footer:
        parts += ["---", _plain(document.footer)]
    return _visible("\n\n".join(parts) + "\n")


def _markdown(block: Block) -> str:
    match block:
        case Paragraph(text):
            return _plain(text)
        case Facts(items):
            return "\n".join(f"- **{_inline(name)}**: {_inline(value)}" for name, value in items)
        case Notes(lines):
            return "\n".join(f"- {_plain(line)}" for line in lines)
        case Table():
            return _markdown_table(block)
        case Picture():
            image = f"![{_inline(block.description)}]({block.name}.png)"
            return f"{image}\n\n{_plain(block.caption)}" if block.caption else image
        case Code(text):
            ticks = max((len(run) for run in re.findall("`+", text)), default=0)
            fence = "`" * max(3, ticks + 1)
            return f"{fence}python\n{text.rstrip()}\n{fence}"


def _markdown_table(table: Table) -> str:
    rules = [":---" if name in table.words else "---:" for name in table.header]
    lines = [_cells(table.header), rules]
    for index, row in enumerate(table.rows):
        first, *others = _cells(row)
        lines.append([f"{_BAD_ROW} **{first}**" if index in table.bad else first, *others])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{_plain(table.caption)}\n\n{text}" if table.caption else text


def _cells(row: Sequence[str]) -> list[str]:
    return [_inline(cell).replace("|", r"\|") for cell in row]


def _plain(text: str) -> str:
    """Return text that starts a line, in which no character has a meaning of its own."""
    return re.sub(
        r"^(?:(?=>|[+-](?:\s|-|$))|(\d+)(?=[.)](?:\s|$)))",
        r"\1\\",
        _inline(text),
    )


def _inline(text: str) -> str:
    """Return text in one line, in which no character has a meaning of its own within a line."""
    # An underscore within a word, '<' before a space and the like mean nothing and stay legible.
    return re.sub(
        r"[\\`*\[\]$~]|(?<![^\W_])_|_(?![^\W_])|(?<!\S)#|<(?=[\w/!?])|&(?=#?\w+;)",
        r"\\\g<0>",
        " ".join(text.split()),
    )
