"""The process that measures the memory of one contender; ``memory`` starts it and says how."""

import ctypes
import gc
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import models
from benchmarks.contenders import GRADIENT, Explainer, Method, select
from benchmarks.contenders.gradient import GradientTimesInput
from benchmarks.memory import Memory
from benchmarks.models import Subject
from benchmarks.settings import Settings
from benchmarks.timing import quiet

_MARK = "the call that is measured"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(model: str, batch: int, method: Method, settings: Settings) -> Memory:
    """Return the peak memory of one contender."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    subject = models.load(model, settings)
    inputs = subject.inputs(batch).to(settings.device)
    target = subject.targets(inputs)
    # The code of torch and oneDNN is loaded by its first use, and is nobody's memory.
    GradientTimesInput(subject).attribute(inputs, target)
    if settings.device == "cuda":
        return _on_gpu(method, subject, inputs, target)
    second = subject.copied()  # the first run may leave something on the model
    resident = _resident_peak(method, subject, inputs, target)
    peak, kept = _tensor_peak(method, second, inputs, target)
    return Memory(peak, kept, resident)


def _warmed_up(method: Method, subject: Subject, inputs: Tensor, target: Tensor) -> Explainer:
    """Return a contender that has explained the inputs once and is ready to do it again."""
    explainer = method.build(subject)
    explainer.prepare()
    explainer.attribute(inputs, target)
    explainer.finish()
    gc.collect()
    explainer.prepare()
    return explainer


def _resident_peak(method: Method, subject: Subject, inputs: Tensor, target: Tensor) -> int | None:
    gc.collect()
    _trim()
    before = _status("VmRSS")
    explainer = _warmed_up(method, subject, inputs, target)
    _trim()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    explainer.attribute(inputs, target)
    after = _status("VmHWM")
    explainer.finish()
    return None if before is None or after is None else after - before


def _status(name: str) -> int | None:
    """Return a line of the kernel's account of this process, in bytes."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _trim() -> None:
    """Let glibc hand back what it holds; other C libraries have no such function."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _tensor_peak(
    method: Method, subject: Subject, inputs: Tensor, target: Tensor
) -> tuple[int, int]:
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        explainer = _warmed_up(method, subject, inputs, target)
        with record_function(_MARK):
            explainer.attribute(inputs, target)
        explainer.finish()
    recorded: Any = profiled.profiler
    found = recorded.kineto_results.events()
    mark = next(event for event in found if event.name() == _MARK)
    changes = [(e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]"]
    begin = mark.start_ns()
    return peak_between(changes, begin, begin + mark.duration_ns())


def peak_between(changes: list[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """Return the largest running sum of changes in an interval, and the sum at its beginning.

    Args:
        changes: Times, and bytes that were allocated or, if negative, released.
        begin: Of the interval.
        end: Of the interval.

    Example:
        >>> peak_between([(0, 100), (1, -40), (3, 30), (4, -30), (5, 20), (9, 999)], 2, 6)
        (90, 60)
    """
    held = sum(size for when, size in changes if when < begin)
    peak = total = held
    for when, size in sorted(changes, key=lambda change: change[0]):
        if begin <= when <= end:
            total += size
            peak = max(peak, total)
    return peak, held


def _on_gpu(method: Method, subject: Subject, inputs: Tensor, target: Tensor) -> Memory:
    gc.collect()
    before = torch.cuda.memory_allocated()
    explainer = _warmed_up(method, subject, inputs, target)
    kept = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    explainer.attribute(inputs, target)
    return Memory(torch.cuda.max_memory_allocated() - before, kept)


def main() -> None:
    """Measure what the argument, a JSON object, asks for, and print the result as JSON."""
    request = json.loads(sys.argv[1])
    settings = Settings.of(request["settings"])
    name = request["method"]
    method = next(m for m in select(() if name == GRADIENT else (name,)) if m.name == name)
    with quiet():
        found = measure(request["model"], request["batch"], method, settings)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
