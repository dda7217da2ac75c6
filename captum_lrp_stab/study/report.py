"""A study as files: ``report.html``, ``report.md``, ``report.json`` and the figures.

They hold no time and no date: the same records give the same bytes.
"""

from pathlib import Path

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
from captum_lrp_stab.study import heatmaps, tables
from captum_lrp_stab.study.figures import MOST_PANELS, curves_of, draw_amplification, draw_peaks
from captum_lrp_stab.study.result import Study, to_json

_MOST_ROWS = 500  # of the list of all that is unstable
_MOST_COLUMNS = MOST_PANELS  # stabilizers side by side in a table


def write(study: Study, folder: Path) -> list[Path]:
    """Write the report and return the paths.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    return document.write(to_document(study), folder, to_json(study, tables.verdict(study)))


def to_document(study: Study) -> Document:
    """Return the report."""
    settings = study.settings
    shown = [_heatmaps(study)] if study.heatmaps else []
    sections = [Section("What was studied", (_facts(study), *shown))]
    if study.measured:
        sections.append(_stabilizers(study))
        if study.layers:  # none took part if all relevance is 0
            sections.append(_layers(study))
        sections += _unstable(study)
    if not study.heatmaps:
        sections.append(_pictures(study))
    if said := tables.notes(study):
        sections.append(Section("Notes", (Notes(tuple(said)),)))
    if fallbacks := settings["fallbacks"]:
        title = "Operations that relevance passes under their plain gradient"
        sections.append(Section(title, (Notes(tuple(fallbacks)),)))
    return Document(
        "Stability of relevance",
        tables.verdict(study),
        tables.tone(study),
        tuple(sections),
        ", ".join(f"{name} {settings[name]}" for name in ("captum-lrp-stab", "captum", "torch")),
    )


def _facts(study: Study) -> Facts:
    settings = study.settings
    target = "the class the model finds" if settings["target"] is None else settings["target"]
    lost = len(study.records) - len(study.measured)
    about = [("pictures", f"{len(study.records)}" + (f", {lost} not measured" if lost else ""))]
    if study.heatmaps:
        (record,) = study.records
        about = [
            ("picture", record.picture),
            ("class", f"{record.label} ({record.target})"),
            ("score", f"{record.score:.4g}, probability {record.probability:.3g}"),
        ]
    return Facts(
        (
            ("model", f"{settings['model']} ({settings['weights']})"),
            *about,
            ("stabilizers", ", ".join(study.names)),
            ("rules", settings["rules"]),
            ("form", settings["form"]),
            ("attention", settings["attention"]),
            ("dtype", settings["dtype"]),
            ("target", str(target)),
        )
    )


def _heatmaps(study: Study) -> Picture:
    return Picture(
        heatmaps.heatmaps(study),
        "heatmaps",
        "Heatmaps of relevance over the picture, one for each stabilizer.",
        heatmaps.LEGEND,
    )


def _stabilizers(study: Study) -> Section:
    blocks: list[Block] = [table for _, table in tables.tables(study)]
    if curves_of(study.names):
        caption = (
            "Above: the median over the pictures as a line, all of them as a band, of finite "
            "relevance. Below: on how many pictures relevance is not finite, or unstable."
        )
        description = "Maximum over median, and the share of unstable pictures, against epsilon."
        blocks.append(Picture(draw_peaks(study), "peaks", description, caption))
    elif not study.heatmaps:
        caption = "Each picture under each stabilizer, where relevance is finite."
        description = "Maximum over median of each picture, by stabilizer."
        blocks.append(Picture(draw_peaks(study), "peaks", description, caption))
    return Section("Stabilizers", tuple(blocks))


def _layers(study: Study) -> Section:
    caption = (
        "How many times each layer multiplies the sum of absolute relevance, from the output at "
        "the left to the input at the right. "
    )
    if len(study.names) <= _MOST_COLUMNS and not study.heatmaps:
        caption += "Line: median over the pictures; band: from the smallest to the largest. "
    elif len(study.names) > _MOST_COLUMNS:
        caption += "The worst picture; grey: not finite. "
    caption += "Triangle: instability starts here"
    caption += "." if study.heatmaps else " on some picture."
    description = "Amplification of relevance by layer, for each stabilizer."
    blocks: list[Block] = [
        Picture(draw_amplification(study), "amplification", description, caption)
    ]
    if len(study.names) <= _MOST_COLUMNS:
        blocks.append(tables.amplification(study))
    else:
        blocks.append(Paragraph("The numbers are in report.json, under amplification."))
    return Section("Layers", tuple(blocks))


def _unstable(study: Study) -> list[Section]:
    origins, (each, left) = tables.origins(study), tables.unstable(study, _MOST_ROWS)
    if not origins.rows:
        return []
    more = (Paragraph(f"{left} more are in report.json, under pictures."),) if left else ()
    return [
        Section("Where instability starts", (origins,)),
        Section("What is unstable", (each, *more)),
    ]


def _pictures(study: Study) -> Section:
    blocks: list[Block] = [tables.per_picture(study)]
    if 1 < len(study.names) <= _MOST_COLUMNS and study.measured:
        blocks.append(tables.peaks(study))
    return Section("Pictures", tuple(blocks))
