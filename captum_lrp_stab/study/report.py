"""A study as files: ``report.html``, ``report.md``, ``report.json`` and the figures.

They hold no time and no date: the same records give the same bytes.
"""

from pathlib import Path

from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.reporting import document
from captum_lrp_stab.reporting.document import (
    Block,
    Document,
    Facts,
    Notes,
    Paragraph,
    Picture,
    Section,
)
from captum_lrp_stab.study import words
from captum_lrp_stab.study.figures import MOST_PANELS, curves_of, draw_amplification, draw_peaks
from captum_lrp_stab.study.records import STABLE
from captum_lrp_stab.study.result import Study, to_json
from captum_lrp_stab.study.store import write_whole

_MOST_ROWS = 500  # of the list of all that is unstable
_MOST_COLUMNS = MOST_PANELS  # stabilizers side by side in a table

FOLLOW_UP_LEGEND = (
    "Medians over the pictures, and the worst picture, of those with finite relevance. std: "
    "standard deviation of relevance, of every value (val) and of the sums over channels (px); "
    "max/med: largest over median absolute value of pixels; growth: sum of absolute relevance of "
    "the input over the score. Unstable: not finite, or a layer or a single neuron hands down more "
    "than {threshold:g} times the relevance that the layer received, or the stabilizer adds more "
    "than all of it."
)


def write(study: Study, folder: Path) -> list[Path]:
    """Write the report and return the paths.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    paths = document.write(to_document(study), folder)
    facts = folder / "report.json"
    try:
        write_whole(facts, (to_json(study, words.verdict(study)) + "\n").encode())
    except OSError as error:
        raise ReportError(
            f"cannot write the report into {folder}: {error}; give another folder with --out"
        ) from error
    return [*paths[:2], facts, *paths[2:]]


def to_document(study: Study) -> Document:
    """Return the report."""
    settings = study.settings
    sections = [Section("What was studied", (_facts(study),))]
    if study.measured:
        sections.append(_stabilizers(study))
        if study.layers:  # none took part if all relevance is 0
            sections.append(_layers(study))
        sections += _unstable(study)
    sections.append(_pictures(study))
    if said := words.warnings(study):
        sections.append(Section("Warnings", (Notes(tuple(said)),)))
    return Document(
        "Stability of relevance over many pictures",
        words.verdict(study),
        words.tone(study),
        tuple(sections),
        ", ".join(f"{name} {settings[name]}" for name in ("captum-lrp-stab", "captum", "torch")),
    )


def _facts(study: Study) -> Facts:
    settings = study.settings
    target = "the class the model finds" if settings["target"] is None else settings["target"]
    lost = len(study.records) - len(study.measured)
    return Facts(
        (
            ("model", f"{settings['model']} ({settings['weights']})"),
            ("pictures", f"{len(study.records)}" + (f", {lost} not measured" if lost else "")),
            ("stabilizers", ", ".join(study.names)),
            ("rules", settings["rules"]),
            ("form", settings["form"]),
            ("attention", settings["attention"]),
            ("dtype", settings["dtype"]),
            ("target", str(target)),
        )
    )


def _stabilizers(study: Study) -> Section:
    header, rows = words.follow_up(study)
    bad = frozenset(i for i, s in enumerate(study.summaries()) if not s.is_stable)
    legend = FOLLOW_UP_LEGEND.format(threshold=study.settings["threshold"])
    table = document.Table(header, tuple(rows), ("stabilizer", "starts mostly at"), bad, legend)
    if curves_of(study.names):
        caption = (
            "Above: the median over the pictures as a line, all of them as a band, of finite "
            "relevance. Below: on how many pictures relevance is not finite, or unstable."
        )
        description = "Maximum over median, and the share of unstable pictures, against epsilon."
    else:
        caption = "Each picture under each stabilizer, where relevance is finite."
        description = "Maximum over median of each picture, by stabilizer."
    return Section(
        "Stabilizers", (table, Picture(draw_peaks(study), "peaks", description, caption))
    )


def _layers(study: Study) -> Section:
    caption = (
        "How many times each layer multiplies the sum of absolute relevance, from the output at "
        "the left to the input at the right. "
    )
    if len(study.names) <= _MOST_COLUMNS:
        caption += "Line: median over the pictures; band: from the smallest to the largest. "
    else:
        caption += "The worst picture; grey: not finite. "
    caption += "Triangles: instability starts here on some picture."
    description = "Amplification of relevance by layer, for each stabilizer."
    blocks: list[Block] = [
        Picture(draw_amplification(study), "amplification", description, caption)
    ]
    if len(study.names) <= _MOST_COLUMNS:
        header, rows = words.amplification(study)
        title = "Median and worst over the pictures, from the output to the input."
        blocks.append(document.Table(header, tuple(rows), ("layer",), caption=title))
    else:
        blocks.append(Paragraph("The numbers are in report.json, under amplification."))
    return Section("Layers", tuple(blocks))


def _unstable(study: Study) -> list[Section]:
    header, rows = words.origins(study)
    if not rows:
        return []
    whole = document.Table(
        header, tuple(rows), ("stabilizer", "layer", "such as", "cause", "what helps")
    )
    header, rows, left = words.unstable(study, _MOST_ROWS)
    each = document.Table(
        header, tuple(rows), ("picture", "stabilizer", "verdict", "layer", "output", "because")
    )
    more = (Paragraph(f"{left} more are in report.json, under pictures."),) if left else ()
    return [
        Section("Where instability starts", (whole,)),
        Section("What is unstable", (each, *more)),
    ]


def _pictures(study: Study) -> Section:
    header, rows = words.per_picture(study)
    bad = {i for i, r in enumerate(study.records) if r.worst is None or r.worst.verdict != STABLE}
    blocks: list[Block] = [
        document.Table(
            header,
            tuple(rows),
            ("picture", "class", "verdict", "worst stabilizer", "at layer"),
            frozenset(bad),
            "The worst stabilizer of each picture, and the layer at which it starts; peak is "
            "maximum over median.",
        )
    ]
    if 1 < len(study.names) <= _MOST_COLUMNS and study.measured:
        header, rows = words.peaks(study)
        caption = "Maximum over median under each stabilizer; '!': unstable."
        blocks.append(document.Table(header, tuple(rows), ("picture",), caption=caption))
    return Section("Pictures", tuple(blocks))
