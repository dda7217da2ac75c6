"""The result of a study: by stabilizer, by picture, by layer."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captum_lrp_stab.study.records import NOT_FINITE, STABLE, PictureRecord, Run
from captum_lrp_stab.study.settings import Settings


@dataclass(frozen=True)
class Spread:
    """The median and the worst of a number over the pictures where it is finite."""

    median: float | None
    worst: float | None


@dataclass(frozen=True)
class Summary:
    """One stabilizer over all pictures that could be measured."""

    name: str
    pictures: int
    finite: int
    unstable: int  # pictures whose relevance is not finite, or amplified too much
    std_value: Spread
    std_pixel: Spread
    peak_over_median: Spread
    growth: Spread
    starts: tuple[tuple[str, int], ...]  # layers where instability starts, most frequent first

    @property
    def is_stable(self) -> bool:
        """Whether it is so on every picture."""
        return self.pictures > 0 and not self.unstable


@dataclass(frozen=True)
class Origin:
    """A layer at which instability starts, for one kind of reason, and on how many pictures."""

    name: str  # of the stabilizer
    layer: str
    cause: str
    remedy: str
    pictures: int
    not_finite: int  # of these
    example: str  # the first of them


@dataclass(frozen=True, eq=False)
class Study:
    """A study; ``records`` are in the order of the pictures, without the numbers by layer.

    ``amplification`` has for each stabilizer an array (picture, layer) of how many times a layer
    multiplies the sum of absolute relevance: NaN where that is not known. The layers are in order
    of execution.

    The study of one picture has it as the model sees it, and a heatmap ``(H, W)`` for each
    stabilizer: the sum of relevance over channels, in float64.
    """

    settings: Settings
    records: tuple[PictureRecord, ...]
    layers: tuple[str, ...]
    amplification: dict[str, NDArray[np.float64]]
    picture: Image.Image | None = None
    heatmaps: tuple[Tensor, ...] = ()

    @property
    def names(self) -> list[str]:
        """The stabilizers."""
        return list(self.settings["stabilizers"])

    @property
    def measured(self) -> list[PictureRecord]:
        """The records of the pictures that could be measured."""
        return [record for record in self.records if record.error is None]

    def runs(self, name: str) -> list[Run]:
        """Return the runs of one stabilizer, one for each picture."""
        place = self.names.index(name)
        return [record.runs[place] for record in self.measured]

    def unstable(self) -> Iterator[tuple[PictureRecord, Run]]:
        """Yield each run that is not stable, with its picture."""
        for record in self.measured:
            yield from ((record, run) for run in record.runs if run.verdict != STABLE)

    def summaries(self) -> list[Summary]:
        """Return a summary of each stabilizer."""
        return [_summary(name, self.runs(name)) for name in self.names]

    def origins(self) -> list[Origin]:
        """Return where instability starts: by stabilizer, the most frequent first."""
        groups: dict[tuple[str, str, str, str], list[tuple[PictureRecord, Run]]] = {}
        for record, run in self.unstable():
            start = run.start
            where = ("", "", "") if start is None else (start.layer, start.cause, start.remedy)
            groups.setdefault((run.name, *where), []).append((record, run))
        found = [
            Origin(
                *key,
                len(members),
                sum(run.verdict == NOT_FINITE for _, run in members),
                members[0][0].picture,
            )
            for key, members in groups.items()
        ]
        return sorted(found, key=lambda o: (self.names.index(o.name), -o.pictures))

    def by_layer(self, name: str) -> list[tuple[str, Spread]]:
        """Return how many times each layer amplifies relevance under a stabilizer."""
        columns = self.amplification[name].T
        return [
            (layer, _spread(column[np.isfinite(column)]))
            for layer, column in zip(self.layers, columns, strict=True)
        ]


def gather(
    settings: Settings,
    records: Iterable[PictureRecord],
    picture: Image.Image | None = None,
    heatmaps: Sequence[Tensor] = (),
) -> Study:
    """Return a study from the records of its pictures, which are looked at one by one.

    Args:
        settings: What they were made with.
        records: In the order of the pictures.
        picture: As the model sees it, if it is one.
        heatmaps: Of this picture.
    """
    names: list[str] = settings["stabilizers"]
    kept: list[PictureRecord] = []
    layers: list[str] = []
    rows: list[list[tuple[tuple[str, ...], NDArray[np.float64]]]] = []
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}  # one copy of equal names
    for record in records:
        row = []
        for run in record.runs:
            found = tuple(run.amplification)
            found = shared.setdefault(found, found)
            row.append((found, np.array([*run.amplification.values()], dtype=np.float64)))
        if row:
            rows.append(row)
        kept.append(
            replace(record, runs=tuple(replace(run, amplification={}) for run in record.runs))
        )
    for found in shared:
        _merge(layers, found)
    places = {layer: i for i, layer in enumerate(layers)}
    amplification = {}
    for index, name in enumerate(names):
        table = np.full((len(rows), len(layers)), np.nan)
        for number, row in enumerate(rows):
            found, values = row[index]
            table[number, [places[layer] for layer in found]] = values
        amplification[name] = table
    return Study(settings, tuple(kept), tuple(layers), amplification, picture, tuple(heatmaps))


def _merge(layers: list[str], found: Sequence[str]) -> None:
    """Insert new names behind the one they follow."""
    known = set(layers)
    if found and found[0] not in known:
        layers.insert(0, found[0])
        known.add(found[0])
    for before, name in pairwise(found):
        if name not in known:
            layers.insert(layers.index(before) + 1, name)
            known.add(name)


def _summary(name: str, runs: Sequence[Run]) -> Summary:
    def spread(field: str) -> Spread:
        return _spread([v for run in runs if (v := attrgetter(field)(run)) is not None])

    starts = Counter(run.start.layer for run in runs if run.start is not None)
    return Summary(
        name,
        len(runs),
        sum(run.verdict != NOT_FINITE for run in runs),
        sum(run.verdict != STABLE for run in runs),
        spread("values.standard_deviation"),
        spread("pixels.standard_deviation"),
        spread("pixels.peak_over_median"),
        spread("growth"),
        tuple(starts.most_common()),
    )


def _spread(values: Sequence[float] | NDArray[np.float64]) -> Spread:
    if not len(values):
        return Spread(None, None)
    return Spread(float(np.median(values)), float(np.max(values)))


def to_json(study: Study, verdict: str) -> str:
    """Return the study as JSON; the numbers by layer of each picture are with its record."""
    content: dict[str, Any] = {
        "verdict": verdict,
        "settings": study.settings,
        "stabilizers": [vars(s) | _spreads(s) for s in study.summaries()],
        "origins": [vars(origin) for origin in study.origins()],
        "amplification": {
            name: {layer: vars(spread) for layer, spread in study.by_layer(name)}
            for name in study.names
        },
        "pictures": [_without_layers(record) for record in study.records],
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _spreads(summary: Summary) -> dict[str, Any]:
    return {key: vars(v) for key, v in vars(summary).items() if isinstance(v, Spread)}


def _without_layers(record: PictureRecord) -> dict[str, Any]:
    facts = record.facts()
    for run in facts["runs"]:
        del run["amplification"]
    return facts
