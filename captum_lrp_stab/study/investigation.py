"""The study: one picture, one network, several stabilizers, and what becomes of the relevance.

:func:`investigate` computes; ``report`` writes, ``cli`` asks and shows.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from captum_lrp_stab import by_name
from captum_lrp_stab.assignment.name_map import NameMap
from captum_lrp_stab.assignment.rules_of_model import rule_set_of
from captum_lrp_stab.ledger.locating import Origin
from captum_lrp_stab.ledger.nonfinite import nonfinite_origin
from captum_lrp_stab.ledger.watching import Watched, amplification_of, watch_each
from captum_lrp_stab.planning import plan
from captum_lrp_stab.presets import Preset
from captum_lrp_stab.propagation import forms
from captum_lrp_stab.propagation.attribution import Propagation, operations_of
from captum_lrp_stab.propagation.observer import Observer
from captum_lrp_stab.propagation.probes import Probe
from captum_lrp_stab.rules.rule_set import Attention
from captum_lrp_stab.stabilizers import Stabilizer
from captum_lrp_stab.study.statistics import Place, Statistics, finite_part, place, statistics
from captum_lrp_stab.task import Subject, run_each
from captum_lrp_stab.zoo import Classifier
from captum_lrp_stab.zoo.prediction import prepare


@dataclass(frozen=True)
class Finding:
    """What one stabilizer does."""

    name: str
    stabilizer: str
    finite: bool
    origin: Origin | None  # the first layer where NaN or Inf arose
    score: float | None  # the target's output, as the form computes it
    sum_over_score: float | None
    values: Statistics  # of every value
    pixels: Statistics  # of the sums over channels
    finite_values: Statistics | None  # of the finite values alone, where not all are
    finite_pixels: Statistics | None
    largest: Place | None
    smallest: Place | None
    anomaly: str | None  # what autograd's anomaly detection says, if asked
    warnings: tuple[str, ...]
    amplification: dict[str, float | None]  # by layer: L1 of relevance handed down over received


@dataclass(frozen=True, eq=False)
class Investigation:
    """The findings, and what they are about."""

    model: str
    weights: str
    form: str
    rules: str
    attention: Attention
    dtype: str
    target: int
    label: str
    probability: float
    score: float  # of the model as it is
    fallbacks: tuple[str, ...]  # operations that got their plain gradient: no rule is known
    findings: tuple[Finding, ...]
    picture: Image.Image
    heatmaps: tuple[Tensor, ...]  # (H, W), relevance summed over channels, one per finding


def investigate(
    classifier: Classifier,
    image: Image.Image,
    *,
    target: int | None = None,
    rules: str | NameMap | Preset = "lrp_tutorial",
    names: Sequence[str] = by_name.DEFAULT_STABILIZERS,
    form: str = "gradient",
    attention: Attention = "attnlrp",
    dtype: str = "float32",
    detect_anomaly: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> Investigation:
    """Attribute a picture once for each stabilizer, and describe what comes out.

    Args:
        classifier: The model; it is converted to ``dtype``.
        image: An RGB picture of any size.
        target: The class to explain; None for the one the model finds.
        rules: A preset, its name, or a name_map; each rule gets the stabilizer under study.
        names: Stabilizers, see :func:`captum_lrp_stab.by_name.stabilizer_of`.
        form: One of ``forms.NAMES``.
        attention: See :class:`captum_lrp_stab.LRP`.
        dtype: One of ``choices.DTYPES``.
        detect_anomaly: Run each once more under ``torch.autograd.detect_anomaly``.
        progress: Called with each name before its turn.

    Raises:
        InputError: ``target`` is out of range, or the form or dtype is unknown.
        StabilizerError: A stabilizer is unknown.
        RuleMapError: The preset is unknown, or does not fit the model.
        ModelError: The model cannot be followed, or has non-finite parameters.
    """
    chosen = [by_name.stabilizer_of(name) for name in names]
    if isinstance(rules, str):
        rules = by_name.preset_of(rules, classifier.preprocessing)
    described = rules.name if isinstance(rules, Preset) else "name_map"
    ready = prepare(classifier, image, dtype, target)
    model, x = ready.model, ready.x
    name_map = rules(model, x) if isinstance(rules, Preset) else rules

    rule_set = rule_set_of(model, name_map, attention=attention)
    plain = Subject(model, (x,), ready.target, attention=attention, fixed=rule_set)
    subjects = [
        replace(plain, stabilizer=stabilizer, form=forms.form_of(form, stabilizer))
        for stabilizer in chosen
    ]
    planned = plan(model, x, name_map, attention=attention)
    operations = [o for o in operations_of(model, x, None, rule_set) if o.reached]
    fallbacks = tuple(f"{row.name} ({row.type}: {row.fallback})" for row in planned.fallbacks)
    where = pil_to_tensor(ready.picture), x[0], ready.gradient
    spelled = list(map(by_name.spelled_out, names))
    findings: list[Finding] = []
    heatmaps: list[Tensor] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def note(seen: Watched) -> None:
            done, index = seen.done, len(findings)
            again = partial(_again, subjects[index])
            origin = None
            if not done.is_finite:
                origin = nonfinite_origin(again, done.operations, x.dtype)
            anomaly = _anomaly(again) if detect_anomaly else None
            said = tuple(dict.fromkeys(str(warning.message) for warning in caught))
            caught.clear()
            amplification = amplification_of(seen.records)
            about = spelled[index], chosen[index], done, origin, where, anomaly, said
            findings.append(_finding(*about, amplification))
            heatmaps.append(done.relevances[0][0].to(torch.float64).sum(0))
            if index + 1 < len(spelled):
                progress(spelled[index + 1])

        if subjects:
            progress(spelled[0])
            watch_each(subjects, note, operations, denominators=False)
    return Investigation(
        classifier.name,
        classifier.weights,
        form,
        described,
        attention,
        dtype,
        ready.target,
        ready.label,
        ready.probability,
        ready.score,
        fallbacks,
        tuple(findings),
        ready.picture,
        tuple(heatmaps),
    )


def _finding(
    name: str,
    stabilizer: Stabilizer,
    done: Propagation,
    origin: Origin | None,
    where: tuple[Tensor, Tensor, Tensor],
    anomaly: str | None,
    said: tuple[str, ...],
    amplification: dict[str, float | None],
) -> Finding:
    relevance = done.relevances[0][0].to(torch.float64)
    heatmap = relevance.sum(0)
    values = statistics(relevance)
    score = float(done.score[0]) if bool(torch.isfinite(done.score[0])) else None
    share = None if values.total is None or not score else values.total / score
    return Finding(
        name,
        repr(stabilizer),
        done.is_finite,
        origin,
        score,
        share if share is not None and math.isfinite(share) else None,
        values,
        statistics(heatmap),
        finite_part(relevance),
        finite_part(heatmap),
        place(relevance, True, *where),
        place(relevance, False, *where),
        anomaly,
        said,
        amplification,
    )


def _again(
    subject: Subject, observer: Observer | None = None, probes: tuple[Probe, ...] = ()
) -> Propagation:
    (done,) = run_each([subject], observer=observer, probes=probes)
    return done


def _anomaly(run: Callable[[], Propagation]) -> str:
    """Return what ``torch.autograd.detect_anomaly`` says of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly():
            try:
                run()
            except RuntimeError as error:
                return str(error)
    return "nothing found"
