"""Runs the study of a folder in processes of its own that kill themselves at chosen points.

``python study_process.py IN OUT POINT ...``: for each point (``k-`` before the k-th time a file is
put in its place, ``k+`` after it, ``end`` never) a process is forked, one after the other; its exit
status and the pictures it measured are printed as JSON.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from captum_lrp_stab.study import report
from captum_lrp_stab.study.measuring import Measurer
from tests.helpers.study_folders import study


def run(folder: Path, out: Path, point: str, log: Path) -> None:
    replace, measure = os.replace, Measurer.measure
    done = 0

    def counting(source: Any, target: Any) -> None:
        nonlocal done
        done += 1
        if point == f"{done}-":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if point == f"{done}+":
            os.kill(os.getpid(), signal.SIGKILL)

    def noting(self: Measurer, file: Any, *rest: Any) -> Any:
        with open(log, "a") as lines:
            lines.write(f"{file.name}\n")
        return measure(self, file, *rest)

    os.replace, Measurer.measure = counting, noting  # type: ignore[method-assign]
    report.write(study(folder, out), out)


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    for point in sys.argv[3:]:
        log = out.with_name(f"{out.name}.log")
        log.write_text("")
        child = os.fork()
        if not child:
            run(folder, out, point, log)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        print(json.dumps([point, ended, log.read_text().split()]), flush=True)


if __name__ == "__main__":
    main()
