"""What the numbers of a study depend on besides the pictures, so that two are never mixed."""

import hashlib
import json
import re
from typing import Any

import captum
import torch
from torch import Tensor, nn

from captum_lrp_stab._version import __version__
from captum_lrp_stab.study.measuring import Measurer

Settings = dict[str, Any]

IN_WORDS = {"state": "the weights' values", "name_map": "the rules of the layers"}
"""Descriptions of settings that are hashes."""


def settings_of(measurer: Measurer) -> Settings:
    """Return the settings as values for JSON."""
    question = measurer.question
    return {
        "model": question.classifier.name,
        "weights": question.classifier.weights,
        "rules": question.rules_name,
        "stabilizers": list(question.names),
        "form": question.form,
        "attention": question.attention,
        "dtype": question.dtype,
        "target": question.target,
        "threshold": question.threshold,
        "detect_anomaly": question.detect_anomaly,
        "state": _digest_of_state(question.classifier.model),
        "name_map": _digest_of_text(measurer.name_map),
        "fallbacks": measurer.fallbacks,
        "captum-lrp-stab": __version__,
        "captum": captum.__version__,
        "torch": torch.__version__,
    }


def digest(settings: Settings) -> str:
    """Return a hash of settings."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Settings, now: Settings) -> list[str]:
    """Return a sentence for each setting that differs."""
    lines = []
    for name in (*now, *(name for name in before if name not in now)):
        if before.get(name) == now.get(name):
            continue
        if name in IN_WORDS:
            lines.append(f"{IN_WORDS[name]} are others")
        else:
            old, new = (_shown(settings.get(name)) for settings in (before, now))
            lines.append(f"{name} was {old}, now {new}")
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digest_of_state(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()


def _digest_of_text(value: Any) -> str:
    without_addresses = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return hashlib.sha256(without_addresses.encode()).hexdigest()
