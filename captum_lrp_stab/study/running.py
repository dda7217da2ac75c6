"""The study itself: picture by picture, each kept as soon as it is done."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from captum_lrp_stab import by_name
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.ledger.locating import THRESHOLD
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.study import files, grid
from captum_lrp_stab.study.files import PictureFile
from captum_lrp_stab.study.measuring import Measurer, Question, make_measurer
from captum_lrp_stab.study.records import PictureRecord
from captum_lrp_stab.study.result import Study, gather
from captum_lrp_stab.study.settings import settings_of
from captum_lrp_stab.study.store import Store
from captum_lrp_stab.zoo import Classifier


def study_pictures(
    classifier: Classifier,
    pictures: Sequence[PictureFile],
    folder: Path,
    *,
    names: Sequence[str] = by_name.DEFAULT_STABILIZERS,
    rules: str | NameMap | Preset = "lrp_tutorial",
    target: int | None = None,
    form: str = "gradient",
    attention: Attention = "attnlrp",
    dtype: str = "float32",
    threshold: float = THRESHOLD,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> Study:
    """Measure many pictures under several stabilizers; what is done already is not done again.

    A picture that cannot be read, or on which the model's output is not finite, is one with an
    error in the result. However often it is interrupted, the result is that of one run.

    Args:
        classifier: The model; it is converted to ``dtype``.
        pictures: See :func:`captum_lrp_stab.study.files.find`.
        folder: Where finished pictures are kept.
        names: Stabilizers, see :func:`captum_lrp_stab.study.grid.combine`.
        rules: A preset, its name, or a name_map; each rule gets the stabilizer under study.
        target: The class to explain; None for the one the model finds in each picture.
        form: One of ``forms.NAMES``.
        attention: See :class:`captum_lrp_stab.LRP`.
        dtype: One of ``choices.DTYPES``.
        threshold: See :func:`captum_lrp_stab.diagnose`.
        fresh: Throw away what is kept in the folder.
        progress: Called with the name of each picture before its turn.

    Raises:
        InputError: ``target`` is out of range, or the form or dtype is unknown.
        StabilizerError: A stabilizer is unknown.
        RuleMapError: The preset is unknown, or does not fit the model.
        ModelError: The model cannot be followed, or has non-finite parameters.
        ReportError: The folder cannot be written to, or holds a study with other settings.
    """
    forms.form_of(form)
    chosen = tuple(grid.combine(names))
    measurer = make_measurer(
        Question(classifier, chosen, rules, target, form, attention, dtype, float(threshold))
    )
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
