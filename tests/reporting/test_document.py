"""A report as a document: what the HTML and the Markdown say, and how they are written."""

import base64
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import matplotlib
import pytest
from matplotlib.figure import Figure

from captum_lrp_stab.reporting.document import (
    Code,
    Document,
    Facts,
    Notes,
    Paragraph,
    Picture,
    Section,
    Table,
    to_html,
    to_markdown,
    write,
)

HOSTILE = "<script>alert('x')</script> \"quoted\" &amp; $x$ | `_*[a](b)"
UNDECODABLE = os.fsdecode(b"caf\xe9.jpg")
VOID = {"meta", "link", "img", "br", "hr", "wbr", "input", "source"}


class Page(HTMLParser):
    """What is on a page: its elements, their text, and whether they nest."""

    def __init__(self, html):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open and self._open[-1]["tag"] == tag, f"</{tag}> in {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]

    def texts(self, tag):
        return [" ".join(element["text"].split()) for element in self.all(tag)]

    def of_class(self, name):
        return [e for e in self.elements if name in (e.get("class") or "").split()]


def figure(layout=None):
    drawn = Figure(figsize=(4, 2), layout=layout)
    axes = drawn.subplots()
    axes.plot([1, 3, 2])
    axes.set_title("relevance")
    return drawn


def document(**changes):
    table = Table(
        ("layer", "rel. L2", "cosine"),
        (("features.12.block.0.conv", "1.5e-07", "1"), ("fc", "0.25", "-0.125")),
        words=("layer",),
        bad=frozenset({1}),
        caption="From the output to the input.",
    )
    sections = (
        Section("Subject", (Facts((("model", "vgg16"), ("picture", "castle.jpg"))),)),
        Section("Heatmaps", (Picture(figure(), "heatmaps", "One line.", "Red is for it."),)),
        Section("Layers", (Paragraph("Some text."), table, Notes(("first", "second")))),
        Section("Rules", (Code('name_map = [\n    (["fc"], EpsilonRule()),\n]'),)),
    )
    made = Document("Comparison", "One layer differs.", "bad", sections, "torch 2.9")
    return replace(made, **changes)


def one(*blocks, **changes):
    return document(sections=(Section("Only", blocks),), **changes)


def test_the_page_stands_alone():
    html = to_html(document())
    page = Page(html)
    assert "http:" not in html and "https:" not in html and "url(" not in html
    assert "@import" not in html
    sources = [e[key] for e in page.elements for key in ("src", "srcset", "data") if key in e]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    targets = [element["href"] for element in page.elements if "href" in element]
    assert targets and all(target.startswith("#") for target in targets)
    assert not {e["tag"] for e in page.elements} & {"script", "link", "iframe", "object"}
    assert not [key for e in page.elements for key in e if key.startswith("on")]
    policies = [e["content"] for e in page.all("meta") if "http-equiv" in e]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")


def test_the_page_says_everything():
    page = Page(to_html(document()))
    assert page.all("html")[0]["lang"] == "en"
    assert page.texts("title") == page.texts("h1") == ["Comparison"]
    assert [e["content"] for e in page.all("meta") if e.get("name") == "viewport"]
    assert page.texts("h2") == ["Contents", "Subject", "Heatmaps", "Layers", "Rules"]
    assert page.texts("dt") == ["model", "picture"]
    assert page.texts("dd") == ["vgg16", "castle.jpg"]
    assert "Some text." in page.texts("p")
    assert page.texts("li")[-2:] == ["first", "second"]
    assert page.all("code")[0]["text"] == 'name_map = [\n    (["fc"], EpsilonRule()),\n]'
    assert page.texts("figcaption") == ["Red is for it.", "From the output to the input."]
    assert page.texts("td") == ["1.5e-07", "1", "0.25", "-0.125"]
    assert page.texts("footer") == ["torch 2.9"]
    assert page.all("img")[0]["alt"] == "One line."


@pytest.mark.parametrize(
    ("tone", "symbol", "word"),
    [("good", "✓", "Good"), ("warning", "!", "Caution"), ("bad", "✗", "Problem")],
)
def test_the_tone_is_a_word_as_well_as_a_colour(tone, symbol, word):
    told = document(tone=tone)
    (verdict,) = Page(to_html(told)).of_class("verdict")
    assert verdict["class"].split() == ["verdict", tone]
    assert verdict["text"].split() == [symbol, word, *"One layer differs.".split()]
    assert f"> **{symbol} {word}.** One layer differs.\n" in to_markdown(told)


@pytest.mark.parametrize("count", [3, 4])
def test_contents_lead_to_more_than_three_sections(count):
    page = Page(to_html(document(sections=document().sections[:count])))
    targets = [element["href"].removeprefix("#") for element in page.all("a")]
    assert len(targets) == (count if count > 3 else 0)
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(set(ids)) == len(ids) and set(targets) <= set(ids)


def test_columns_are_aligned_and_bad_rows_marked():
    page = Page(to_html(document()))
    header, rows = page.all("th")[:3], page.all("tr")[1:]
    assert ["words" in (e.get("class") or "") for e in header] == [True, False, False]
    assert [e.get("class") for e in rows] == [None, "bad"]
    assert [" ".join(e["text"].split()) for e in page.all("th")[3:]] == [
        "features.12.block.0.conv",
        "✗ fc",
    ]


def test_long_names_break_but_numbers_do_not():
    name, number = "encoder.layers.11.self_attention", "0.125"
    html = to_html(one(Facts(((name, f"{name} {number}"),))))
    broken = "encoder.<wbr>layers.<wbr>11.<wbr>self_<wbr>attention 0.125"
    assert f"<dd>{broken}</dd>" in html


def test_figures_are_png_at_their_natural_size():
    (image,) = Page(to_html(document())).all("img")
    assert (image["width"], image["height"]) == ("384", "192")  # 4 x 2 inches in CSS pixels
    png = base64.b64decode(image["src"].partition(",")[2])
    assert png.startswith(b"\x89PNG") and b"Software" not in png
    assert int.from_bytes(png[16:20], "big") == 600


def test_the_backend_stays_as_it_is():
    before = matplotlib.get_backend(auto_select=False) if _asks_quietly() else None
    to_html(document())
    if _asks_quietly():
        assert matplotlib.get_backend(auto_select=False) == before
    source = resources.files("captum_lrp_stab.reporting").joinpath("document.py").read_text("utf-8")
    assert "pyplot" not in source


def _asks_quietly():
    return tuple(map(int, matplotlib.__version__.split(".")[:2])) >= (3, 10)


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
def test_the_same_document_gives_the_same_bytes(layout):
    def make():
        return one(Picture(figure(layout), "line", "A line."))

    told = make()
    assert to_html(told) == to_html(told) == to_html(make())


@pytest.mark.parametrize("name", [HOSTILE, UNDECODABLE, "\x1b[31mred\x00", "\ud800", "</title>"])
def test_any_name_is_shown_as_it_is(name):
    told = document(
        title=name,
        verdict=name,
        footer=name,
        sections=(
            Section(
                name,
                (
                    Paragraph(name),
                    Facts(((name, name),)),
                    Notes((name,)),
                    Table((name,), ((name,),), words=(name,), bad=frozenset({0}), caption=name),
                    Picture(figure(), "line", name, name),
                    Code(name),
                ),
            ),
        ),
    )
    html, markdown = to_html(told), to_markdown(told)
    page = Page(html)
    shown = re.sub(
        "[\x00-\x1f\ud800-\udfff]", lambda c: c[0].encode("unicode_escape").decode(), name
    )
    assert "script" not in {element["tag"] for element in page.elements}
    assert page.texts("title") == page.texts("h1") == page.texts("h2") == [shown]
    for tag in ("dt", "dd", "li", "figcaption", "code", "footer"):
        assert set(page.texts(tag)) == {shown}, tag
    assert page.texts("th") == [shown, f"✗ {shown}"]
    assert page.all("img")[0]["alt"] == page.of_class("scroll")[0]["aria-label"] == shown
    html.encode("utf-8"), markdown.encode("utf-8")


def test_undecodable_names_can_be_written(tmp_path):
    html, markdown, _ = write(one(Paragraph(UNDECODABLE)), tmp_path, "{}")
    assert r"caf\udce9.jpg" in html.read_text("utf-8")
    assert r"caf\udce9.jpg" in markdown.read_text("utf-8")


def test_markdown_says_everything():
    assert to_markdown(document()) == (
        "# Comparison\n\n"
        "> **✗ Problem.** One layer differs.\n\n"
        "## Subject\n\n- **model**: vgg16\n- **picture**: castle.jpg\n\n"
        "## Heatmaps\n\n![One line.](heatmaps.png)\n\nRed is for it.\n\n"
        "## Layers\n\nSome text.\n\nFrom the output to the input.\n\n"
        "| layer | rel. L2 | cosine |\n| :--- | ---: | ---: |\n"
        "| features.12.block.0.conv | 1.5e-07 | 1 |\n| ✗ **fc** | 0.25 | -0.125 |\n\n"
        "- first\n- second\n\n"
        '## Rules\n\n```python\nname_map = [\n    (["fc"], EpsilonRule()),\n]\n```\n\n'
        "---\n\ntorch 2.9\n"
    )


@pytest.mark.parametrize(
    ("cell", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\nb\r\n\nc", "a b c"),
        ("a\u2028b", "a b"),
        ("<b>", r"\<b>"),
        ("< 0", "< 0"),
        ("&lt;", r"\&lt;"),
        ("a & b", "a & b"),
        ("$x$", r"\$x\$"),
        ("*x*", r"\*x\*"),
        ("`x`", r"\`x\`"),
        ("[x](y)", r"\[x\](y)"),
        ("__init__", r"\_\_init\_\_"),
        ("layer_1.self_attention", "layer_1.self_attention"),
        ("-", "-"),
        ("-3.5e-07", "-3.5e-07"),
    ],
)
def test_a_cell_stays_one_cell(cell, escaped):
    lines = to_markdown(one(Table((cell, "b"), ((cell, "1"),)), footer="")).splitlines()
    assert lines[-3:] == [f"| {escaped} | b |", "| ---: | ---: |", f"| {escaped} | 1 |"]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("- x", r"\- x"),
        ("+ x", r"\+ x"),
        ("# x", r"\# x"),
        ("> x", r"\> x"),
        (">x", r"\>x"),
        ("12. x", r"12\. x"),
        ("3) x", r"3\) x"),
        ("---", r"\---"),
        ("    x", "x"),
        ("1.5 times", "1.5 times"),
        ("-0.5 is less", "-0.5 is less"),
    ],
)
def test_text_stays_text(text, escaped):
    assert f"## Only\n\n{escaped}\n\n---" in to_markdown(one(Paragraph(text)))


def test_code_may_hold_a_fence():
    assert '\n````python\nx = "```"\n````\n' in to_markdown(one(Code('x = "```"\n')))


def test_write_makes_the_folder_and_all_files(tmp_path):
    told, folder = document(), tmp_path / "new" / "folder"
    paths = write(told, folder, "{}")
    names = ("report.html", "report.md", "report.json", "heatmaps.png")
    assert paths == [folder / name for name in names]
    assert sorted(folder.iterdir()) == sorted(paths)  # nothing else is left
    assert paths[0].read_bytes() == to_html(told).encode()
    assert paths[1].read_bytes() == to_markdown(told).encode()
    assert paths[2].read_bytes() == b"{}\n"
    assert base64.b64encode(paths[3].read_bytes()).decode() in to_html(told)


def test_rows_are_as_long_as_the_header():
    with pytest.raises(ValueError, match="row 0 has 1 cells under 2 columns"):
        Table(("a", "b"), (("1",),))


def test_a_table_may_be_empty():
    told = one(Table(("a", "b"), (), words=("a",)))
    assert Page(to_html(told)).texts("th") == ["a", "b"]
    assert "| a | b |\n| :--- | ---: |\n" in to_markdown(told)


def test_colours_have_contrast():
    """WCAG AA, of text and of the marks that mean something, in both schemes."""
    css = resources.files("captum_lrp_stab.reporting").joinpath("templates/report.html.jinja")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for block in re.findall(r":root \{([^}]*--[^}]*)\}", css.read_text("utf-8"))
    ]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    for colours in schemes:
        grounds = [colours[name] for name in ("ground", "raised")]
        text = [(colours[name], ground) for name in ("ink", "quiet") for ground in grounds]
        text.append((colours["link"], colours["ground"]))
        for tone in ("good", "warning", "bad"):
            ground = colours[f"{tone}-ground"]
            text += [(colours["ink"], ground), (colours[tone], ground)]
        assert min(_contrast(*pair) for pair in text) >= 4.5
        assert _contrast(colours["thumb"], colours["ground"]) >= 3


def _contrast(one_colour, other):
    lighter, darker = sorted(map(_luminance, (one_colour, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
