"""Stabilizers studied on pictures: one, with heatmaps, or many, each kept as soon as it is done."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.reporting.progress import Step
from captum_lrp_stab.study import files
from captum_lrp_stab.study.files import PictureFile
from captum_lrp_stab.study.measuring import Measurer, Question, make_measurer
from captum_lrp_stab.study.records import PictureRecord
from captum_lrp_stab.study.result import Study, gather
from captum_lrp_stab.study.settings import settings_of
from captum_lrp_stab.study.store import Store
from captum_lrp_stab.zoo import Classifier


def investigate(
    classifier: Classifier,
    image: Image.Image,
    *,
    name: str = "picture",
    progress: Step = lambda name: None,
    **question: Any,
) -> Study:
    """Return the study of one picture, with a heatmap for each stabilizer.

    Args:
        classifier: The model; it is converted to the dtype.
        image: An RGB picture of any size.
        name: What the picture is called in the report.
        progress: Called with each stabilizer before it runs.
        **question: What else :class:`Question` takes: ``names``, ``rules``, ``target``, ``form``,
            ``attention``, ``dtype``, ``threshold``, ``detect_anomaly``.

    Raises:
        InputError: The target is out of range, the form or dtype is unknown, or the model's output
            is not finite.
        StabilizerError: A stabilizer is unknown.
        RuleMapError: The preset is unknown, or does not fit the model.
        ModelError: The model cannot be followed, or has non-finite parameters.
    """
    measurer = make_measurer(Question(classifier, **question))
    ready = measurer.prepare(image)
    heatmaps: list[Tensor] = []
    record = measurer.record(name, None, ready, heatmaps, progress)
    return gather(settings_of(measurer), [record], ready.picture, heatmaps)


def study_pictures(
    classifier: Classifier,
    pictures: Sequence[PictureFile],
    folder: Path,
    *,
    fresh: bool = False,
    progress: Step = lambda name: None,
    **question: Any,
) -> Study:
    """Return the study of many pictures; what is done already is not done again.

    A picture that cannot be read, or on which the model's output is not finite, is one with an
    error in the result. However often it is interrupted, the result is that of one run.

    Args:
        classifier: The model; it is converted to the dtype.
        pictures: See :func:`captum_lrp_stab.study.files.find`.
        folder: Where finished pictures are kept.
        fresh: Throw away what is kept in the folder.
        progress: Called with the name of each picture before it is measured.
        **question: See :func:`investigate`.

    Raises:
        InputError: The target is out of range, or the form or dtype is unknown.
        StabilizerError: A stabilizer is unknown.
        RuleMapError: The preset is unknown, or does not fit the model.
        ModelError: The model cannot be followed, or has non-finite parameters.
        ReportError: The folder cannot be written to, or holds a study with other settings.
    """
    measurer = make_measurer(Question(classifier, **question))
    settings = settings_of(measurer)
    store = Store(folder, settings, fresh)

    def records() -> Iterator[PictureRecord]:
        for picture in pictures:
            progress(picture.name)
            yield _record(measurer, store, picture)

    return gather(settings, records())


def _record(measurer: Measurer, store: Store, picture: PictureFile) -> PictureRecord:
    """Return a picture's record as it is in the store."""
    try:
        sha256 = files.digest(picture.path)
    except OSError as error:
        return PictureRecord(
            picture.name, None, f"the file cannot be read: {error.strerror}; see its permissions"
        )
    known = store.load(picture.name, sha256)
    if known is None:
        store.save(measurer.measure(picture, sha256))
        # From the disk, so that it makes no difference when it was measured.
        known = store.load(picture.name, sha256)
    if known is None:
        raise ReportError(
            f"{store.folder} does not keep what is written into it; give another folder with --out"
        )
    return known
