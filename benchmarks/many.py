"""Several targets, or several stabilizers, in one call against one of each."""

from dataclasses import dataclass

import torch

from benchmarks import models
from benchmarks.contenders.ours import rules_of
from benchmarks.correctness import in_words
from benchmarks.settings import Settings
from benchmarks.timing import CLOCKS, Step, Timing, interleave
from captum_lrp_stab import LRP
from captum_lrp_stab.stabilizers import Additive, Clip, RootMeanSquare, Signed, Stabilizer

RULES, MODEL, TARGETS = "epsilon_gamma_box", "vgg16", 10
STABILIZERS: tuple[Stabilizer, ...] = (
    *(Signed(10.0**-power) for power in (2, 4, 6)),
    *(Clip(10.0**-power) for power in (2, 4, 6)),
    RootMeanSquare(1e-6),
    Additive(1e-6),
)
ONE = "one target, one stabilizer"
STABILIZED, TARGETED = f"{len(STABILIZERS)} stabilizers", f"{TARGETS} targets"


@dataclass(frozen=True)
class Many:
    """How long one such call takes.

    Args:
        model: Its name.
        name: What is done at once.
        timing: In units of one attribution; None if it could not be run.
        note: Why not.
    """

    model: str
    name: str
    timing: Timing | None = None
    note: str = ""


def measure(settings: Settings) -> tuple[Many, ...]:
    """Time them on VGG16, or the first model of the settings if that is not among them."""
    name = MODEL if MODEL in settings.models else settings.models[0]
    subject = models.load(name, settings)
    inputs = subject.inputs(1)
    with torch.no_grad():
        targets = subject.model(inputs)[0].topk(TARGETS).indices.tolist()
    lrp = LRP(subject.model, rules_of(RULES, subject))
    many = lrp.attribute_many
    steps = {
        ONE: Step(lambda: lrp.attribute(inputs, target=targets[0])),
        STABILIZED: Step(lambda: many(inputs, targets[:1], stabilizers=STABILIZERS)),
        TARGETED: Step(lambda: many(inputs, targets)),
    }
    timings, failed = interleave(steps, settings.rounds, CLOCKS[settings.device])
    notes = {what: in_words(error) for what, error in failed.items()}
    return tuple(Many(name, what, timings.get(what), notes.get(what, "")) for what in steps)
