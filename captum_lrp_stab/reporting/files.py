"""Files that are there as a whole or not at all."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from captum_lrp_stab.errors import ReportError

DRAFT = r"\.[0-9a-f]{32}\.tmp"
"""The names of files that are not finished, as a pattern: what a kill leaves behind."""


def make_folder(folder: Path) -> None:
    """Make a folder if it does not exist.

    Raises:
        ReportError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"cannot make the folder {folder}: {error}; give another one with --out"
        ) from error


def write(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, which is made if it does not exist, and return their paths.

    Each is there as a whole or, after a kill or a power cut, as it was.

    Args:
        folder: Where to.
        contents: By name.

    Raises:
        ReportError: The folder cannot be made or written to.
    """
    make_folder(folder)
    try:
        for name, content in contents.items():
            _replace(folder / name, content)
    except OSError as error:
        raise ReportError(
            f"cannot write into {folder}: {error}; give another folder with --out"
        ) from error
    return [folder / name for name in contents]


def _replace(path: Path, content: bytes) -> None:
    # In the same folder, as one can replace atomically only within a file system; not by the
    # module tempfile, whose files nobody but their owner may read.
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
