"""Programs run in processes in which no module of the package has been imported yet.

A test run imports most of the package before its first test, and hides so what a program of two
lines meets. Starting Python with PyTorch takes seconds, so one process imports what the package
needs, and each program runs in a copy of it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

_COPIES = """
import gc
import json
import os
import sys
import traceback
import captum.attr, captum.metrics, matplotlib.pyplot, rich, torchvision, typer, zennit
from captum.attr import visualization
visualization.plt.switch_backend("Agg")
programs, failures = json.load(sys.stdin), []
gc.disable()  # a collection would write to memory that the copies share
for program in programs:
    assert not any(name.partition(".")[0] == "captum_lrp_stab" for name in sys.modules)
    reading, writing = os.pipe()
    copy = os.fork()
    if not copy:
        try:
            os.dup2(2, 1)
            exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        os._exit(0)
    os.close(writing)
    with open(reading) as text:
        failures.append(text.read())
    if os.waitpid(copy, 0)[1]:
        failures[-1] += "ended by a signal"
print(json.dumps(failures))
"""


def failures(programs: Sequence[str], **options: object) -> list[str]:
    """Run each program in a process of its own, and return how each failed, or an empty text."""
    done = subprocess.run(
        [sys.executable, "-c", _COPIES],
        input=json.dumps(list(programs)),
        capture_output=True,
        text=True,
        timeout=600,
        **options,  # type: ignore[call-overload]
    )
    assert not done.returncode, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found
