"""One picture under every stabilizer, as numbers."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from captum_lrp_stab import by_name
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import InputError, LRPWarning, PictureError
from captum_lrp_stab.images import reading
from captum_lrp_stab.ledger.causes import cause_of
from captum_lrp_stab.ledger.locating import THRESHOLD, Origin, locate, verdict_of
from captum_lrp_stab.ledger.watching import Watched, amplification_of, watch_each
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation import checks, forms
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.study.files import PictureFile
from captum_lrp_stab.study.records import PictureRecord, Run, Start
from captum_lrp_stab.study.statistics import statistics
from captum_lrp_stab.task import Subject
from captum_lrp_stab.zoo import Classifier
from captum_lrp_stab.zoo.prediction import Prepared, prepare


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of every picture; the arguments are those of ``investigate``."""

    classifier: Classifier
    names: tuple[str, ...]
    rules: str | NameMap | Preset = "lrp_tutorial"
    target: int | None = None
    form: str = "gradient"
    attention: Attention = "attnlrp"
    dtype: str = "float32"
    threshold: float = THRESHOLD

    @property
    def rules_name(self) -> str:
        """The name of the preset, if it is one."""
        if isinstance(self.rules, str):
            return self.rules
        return self.rules.name if isinstance(self.rules, Preset) else "name_map"


@dataclass(frozen=True, eq=False)
class Measurer:
    """A question made ready: what all pictures share is worked out once."""

    question: Question
    name_map: NameMap
    operations: Sequence[Operation] = field(repr=False)

    def measure(self, file: PictureFile, sha256: str) -> PictureRecord:
        """Return the record of a picture.

        Args:
            file: The picture.
            sha256: Of its content.

        Raises:
            ModelError: The weights are not finite, or overflow in the dtype.
        """
        q = self.question
        try:
            ready = prepare(q.classifier, reading.read(file.path), q.dtype, q.target)
        except PictureError as error:
            return PictureRecord(file.name, sha256, reason(error, file))
        except InputError as error:  # of the output: the target has been looked at before
            return PictureRecord(file.name, sha256, str(error))
        runs = self._runs(ready)
        return PictureRecord(
            file.name,
            sha256,
            None,
            ready.target,
            ready.label,
            ready.probability,
            ready.score,
            tuple(runs),
        )

    def _runs(self, ready: Prepared) -> list[Run]:
        """Return what each stabilizer does, after one forward pass where the form allows."""
        q = self.question
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            subjects = [
                subject_of(ready.model, ready.x, ready.target, self.name_map, name, q)
                for name in q.names
            ]
            runs: list[Run] = []

            def note(seen: Watched) -> None:
                origin = locate(seen.records, q.threshold)
                start = None if origin is None else _start(origin, subjects[0].dtype)
                # Others, such as those torch gives once in a process, would depend on what ran
                # before.
                said = [str(w.message) for w in caught if issubclass(w.category, LRPWarning)]
                caught.clear()
                verdict = verdict_of(seen.done.is_finite, seen.ledger.growth, origin)
                name, once = q.names[len(runs)], tuple(dict.fromkeys(said))
                runs.append(_run_of(name, verdict, seen, start, once))

            watch_each(subjects, note, self.operations)
        return runs


def make_measurer(question: Question) -> Measurer:
    """Convert the model and work out what all pictures share, on a grey picture.

    A fixed one, so that a study that was interrupted goes on as it began.

    Raises:
        InputError: The target is out of range, or the form or dtype is unknown.
        StabilizerError: A stabilizer is unknown.
        RuleMapError: The preset is unknown, or does not fit the model.
        ModelError: The model cannot be followed, or has non-finite parameters.
    """
    classifier, rules = question.classifier, question.rules
    floating = by_name.dtype_of(question.dtype)
    checks.check_parameters(classifier.model)
    model = classifier.model.to(floating)
    size = classifier.preprocessing.crop
    grey = Image.new("RGB", (size, size), (128, 128, 128))
    x = classifier.preprocessing.input(grey, floating)
    with torch.no_grad():
        classes = int(model(x).shape[1])
    if question.target is not None and not 0 <= question.target < classes:
        raise InputError(
            f"target {question.target} is out of range: the model has the classes 0 to "
            f"{classes - 1}"
        )
    if isinstance(rules, str):
        rules = by_name.preset_of(rules, classifier.preprocessing)
    name_map = rules(model, x) if isinstance(rules, Preset) else rules
    subjects = [subject_of(model, x, 0, name_map, name, question) for name in question.names]
    return Measurer(question, name_map, subjects[0].operations())


def subject_of(
    model: torch.nn.Module, x: Tensor, target: int, rules: NameMap, name: str, question: Question
) -> Subject:
    """Return the attribution of a picture under a stabilizer."""
    stabilizer = by_name.stabilizer_of(name)
    return Subject(
        model,
        (x,),
        target,
        rules=rules,
        stabilizer=stabilizer,
        attention=question.attention,
        form=forms.form_of(question.form, stabilizer),
    )


def reason(error: Exception, file: PictureFile) -> str:
    """Return an error's message without the path, which may be another one the next time."""
    return str(error).replace(str(file.path), "the file")


def _start(origin: Origin, dtype: torch.dtype) -> Start:
    cause = cause_of(origin, dtype)
    return Start(
        origin.name,
        origin.trouble.value,
        origin.direction,
        origin.factor,
        None if origin.neuron is None else origin.neuron.index,
        cause.kind,
        cause.what,
        cause.remedy,
    )


def _run_of(
    name: str, verdict: str, seen: Watched, start: Start | None, said: tuple[str, ...]
) -> Run:
    relevance = seen.done.relevances[0][0].to(torch.float64)
    values, pixels = statistics(relevance), statistics(relevance.sum(0))
    score = _finite(float(seen.done.score[0]))
    share = grown = None
    if score:
        share = None if values.total is None else _finite(values.total / score)
        grown = None if values.total is None else _finite(seen.ledger.inputs.l1 / abs(score))
    amplification: Mapping[str, float | None] = amplification_of(seen.records)
    return Run(
        name,
        verdict,
        seen.done.is_finite,
        score,
        values.standard_deviation,
        pixels.standard_deviation,
        pixels.peak_over_median,
        share,
        grown,
        values.nan + values.infinite,
        start,
        said,
        amplification,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
