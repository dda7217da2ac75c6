"""Peak memory of one attribution, measured in a process of its own.

What is measured is the most memory in use at any time during a call, above what was in use once the
model and its inputs were there. The call is a contender's second, so that everything it keeps from
call to call (weights derived for a rule, merged batch norms, copies to put back) is there and
counts.

On the CPU there are two figures.

- *Tensor memory*, the headline: the running sum over every allocation and release that torch's CPU
  allocator reports to the profiler. It is exact to the byte and the same in every run and on every
  machine, and it misses no peak, as sampling does. All contenders are written in torch, so all
  their large memory is in it.
- *Resident memory*, the control: ``VmHWM`` of the process, the kernel's own high-water mark, reset
  before the call by writing 5 to ``/proc/self/clear_refs``. It sees what the first figure cannot,
  such as oneDNN's scratch space, but it also depends on what malloc keeps back. So the process is
  started with malloc told to hand blocks above 64 KiB back at once, and to use one arena. Then it
  repeats to within a per cent. It exists on Linux only.

On a GPU it is ``torch.cuda.max_memory_allocated``, which is exact too.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.settings import Settings

_ROOT = Path(__file__).resolve().parent.parent
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}


@dataclass(frozen=True)
class Memory:
    """Bytes above the loaded model.

    Args:
        peak: Of tensors, at any time during the call.
        kept: Of tensors, when the call begins: what the contender keeps from call to call.
        resident: Peak of the whole process, None where that cannot be measured.
        note: Why it is not known, if it is not.
    """

    peak: int | None = None
    kept: int | None = None
    resident: int | None = None
    note: str = ""


def measure(model: str, batch: int, method: str, settings: Settings) -> Memory:
    """Return the peak memory of one contender on one model and batch size."""
    request = {"model": model, "batch": batch, "method": method, "settings": asdict(settings)}
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory_child", json.dumps(request)],
        env=os.environ | _MALLOC | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Memory(note=f"not measured: {lines[-1][:160]}")
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


def multiple(own: int | None, unit: int | None) -> float | None:
    """Return a peak in units of the gradient's, None if one of them is not known.

    Example:
        >>> multiple(300, 200), multiple(None, 200)
        (1.5, None)
    """
    return own / unit if own is not None and unit else None
