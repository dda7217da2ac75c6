"""One picture under every stabilizer, as numbers and as heatmaps."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from captum_lrp_stab import by_name
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.dispatch import fallbacks
from captum_lrp_stab.dispatch.operation import Operation
from captum_lrp_stab.errors import InputError, LRPWarning, PictureError
from captum_lrp_stab.images import reading
from captum_lrp_stab.ledger.causes import cause_of
from captum_lrp_stab.ledger.locating import Origin, locate, verdict_of
from captum_lrp_stab.ledger.watching import Watched, amplification_of, watch_each
from captum_lrp_stab.names import DEFAULT_STABILIZERS, THRESHOLD, Attention
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation import checks, forms
from captum_lrp_stab.reporting.progress import Step
from captum_lrp_stab.study import grid
from captum_lrp_stab.study.files import PictureFile
from captum_lrp_stab.study.records import PictureRecord, Run, Start
from captum_lrp_stab.study.statistics import finite_part, place, statistics
from captum_lrp_stab.task import Task, run_each
from captum_lrp_stab.zoo import Classifier
from captum_lrp_stab.zoo.prediction import Prepared, prepare


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of every picture.

    Args:
        classifier: The model; it is converted to ``dtype``.
        names: Stabilizers, see :func:`captum_lrp_stab.by_name.stabilizer_of`.
        rules: A preset, its name, or a name_map; each rule gets the stabilizer under study.
        target: The class to explain; None for the one the model finds in each picture.
        form: One of ``names.FORMS``.
        attention: See :class:`captum_lrp_stab.LRP`.
        dtype: One of ``names.DTYPES``.
        threshold: See :func:`captum_lrp_stab.diagnose`.
        detect_anomaly: Run each once more under ``torch.autograd.detect_anomaly``, and put what it
            says among the warnings.
    """

    classifier: Classifier
    names: Sequence[str] = DEFAULT_STABILIZERS
    rules: str | NameMap | Preset = "lrp_tutorial"
    target: int | None = None
    form: str = "gradient"
    attention: Attention = "attnlrp"
    dtype: str = "float32"
    threshold: float = THRESHOLD
    detect_anomaly: bool = False

    def __post_init__(self) -> None:
        forms.form_of(self.form)
        by_name.dtype_of(self.dtype)
        object.__setattr__(self, "names", tuple(grid.combine(self.names)))
        object.__setattr__(self, "threshold", float(self.threshold))

    @property
    def rules_name(self) -> str:
        """The name of the preset, if it is one."""
        if isinstance(self.rules, str):
            return self.rules
        return self.rules.name if isinstance(self.rules, Preset) else "name_map"


@dataclass(frozen=True, eq=False)
class Measurer:
    """Measures pictures; what they share, such as the rule of each layer, is worked out once."""

    question: Question
    name_map: NameMap
    operations: Sequence[Operation] = field(repr=False)

    @property
    def fallbacks(self) -> list[str]:
        """The operations that relevance passes under their plain gradient, and why."""
        return fallbacks.of(self.operations)

    def measure(self, file: PictureFile, sha256: str) -> PictureRecord:
        """Return the record of a picture.

        Args:
            file: The picture.
            sha256: Of its content.

        Raises:
            ModelError: The weights are not finite, or overflow in the dtype.
        """
        try:
            ready = self.prepare(reading.read(file.path))
        except PictureError as error:
            return PictureRecord(file.name, sha256, reason(error, file))
        except InputError as error:  # of the output: the target has been looked at before
            return PictureRecord(file.name, sha256, str(error))
        return self.record(file.name, sha256, ready)

    def prepare(self, image: Image.Image) -> Prepared:
        """Run the model on a picture, see :func:`captum_lrp_stab.zoo.prediction.prepare`."""
        question = self.question
        return prepare(question.classifier, image, question.dtype, question.target)

    def record(
        self,
        name: str,
        sha256: str | None,
        ready: Prepared,
        heatmaps: list[Tensor] | None = None,
        progress: Step = lambda name: None,
    ) -> PictureRecord:
        """Return the record of a picture that the model has run on.

        Args:
            name: What the picture is called.
            sha256: Of its content, if it is a file.
            ready: The picture.
            heatmaps: Gets the relevance under each stabilizer, ``(H, W)``.
            progress: Called with each stabilizer before it runs.
        """
        runs: list[Run] = []
        names = self.question.names
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tasks = [
                subject_of(ready.model, ready.x, ready.target, self.name_map, name, self.question)
                for name in names
            ]

            def note(seen: Watched) -> None:
                index = len(runs)
                # Others, such as those torch gives once in a process, would depend on what ran
                # before.
                said = [str(w.message) for w in caught if issubclass(w.category, LRPWarning)]
                if self.question.detect_anomaly:
                    said.append(f"anomaly detection: {_anomaly(tasks[index])}")
                caught.clear()
                said = list(dict.fromkeys(said))
                runs.append(self._run(names[index], seen, ready, tasks[0].dtype, said))
                if heatmaps is not None:
                    heatmaps.append(_relevance(seen).sum(0))
                if index + 1 < len(names):
                    progress(names[index + 1])

            progress(names[0])
            watch_each(tasks, note, self.operations)
        return PictureRecord(
            name,
            sha256,
            None,
            ready.target,
            ready.label,
            ready.probability,
            ready.score,
            tuple(runs),
        )

    def _run(
        self, name: str, seen: Watched, ready: Prepared, dtype: torch.dtype, said: Sequence[str]
    ) -> Run:
        relevance, score = _relevance(seen), _finite(float(seen.done.score[0]))
        heatmap, values = relevance.sum(0), statistics(relevance)
        origin = locate(seen.records, self.question.threshold)
        share = growth = None
        if score and values.total is not None:
            share = _finite(values.total / score)
            growth = _finite(seen.ledger.inputs.l1 / abs(score))
        where = pil_to_tensor(ready.picture), ready.x[0], ready.gradient
        return Run(
            name,
            verdict_of(seen.done.is_finite, seen.ledger.growth, origin),
            seen.done.is_finite,
            score,
            share,
            growth,
            values,
            statistics(heatmap),
            finite_part(relevance),
            finite_part(heatmap),
            place(relevance, True, *where),
            place(relevance, False, *where),
            None if origin is None else _start(origin, dtype),
            tuple(said),
            amplification_of(seen.records),
        )


def make_measurer(question: Question) -> Measurer:
    """Return a measurer, after a run of the model on a grey picture.

    The same for every study, so that one that was interrupted goes on as it began.

    Raises:
        InputError: The target is out of range.
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
        rules = by_name.preset_of(rules, *classifier.preprocessing.bounds)
    name_map = rules(model, x) if isinstance(rules, Preset) else rules
    first = subject_of(model, x, 0, name_map, question.names[0], question)
    return Measurer(question, name_map, first.operations())


def subject_of(
    model: torch.nn.Module, x: Tensor, target: int, rules: NameMap, name: str, question: Question
) -> Task:
    """Return the attribution of a picture under a stabilizer."""
    stabilizer = by_name.stabilizer_of(name)
    return Task(
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


def _relevance(seen: Watched) -> Tensor:
    return seen.done.relevances[0][0].to(torch.float64)


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


def _anomaly(task: Task) -> str:
    """Return what ``torch.autograd.detect_anomaly`` says of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            try:
                run_each([task])
            except RuntimeError as error:
                return str(error)
    return "nothing found"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
