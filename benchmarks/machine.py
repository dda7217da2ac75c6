"""What the benchmark ran on, without anything that names the machine or its user."""

import importlib.metadata
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "captum", "zennit", "autolrp", "captum-lrp-stab")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return hardware, operating system, versions and date."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": _cores(),
        "threads of torch": torch.get_num_threads(),
        "memory": _memory(),
        "operating system": f"{platform.system()} {_kernel()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return facts


def _kernel() -> str:
    """Return the kernel's version number; what a distributor adds to it could name anything."""
    found = re.match(r"\d+(\.\d+)*", platform.release())
    return found[0] if found else ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{found[1].strip()}, {platform.machine()}" if found else platform.machine()


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{total / 2**30:.0f} GiB"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
