"""The picture files of a study."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from captum_lrp_stab.errors import PictureError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Of the files that are taken from a folder, in any case."""


@dataclass(frozen=True)
class PictureFile:
    """A picture file; its name in the report is its path below the folder that all files share."""

    path: Path
    name: str


def find(paths: Sequence[Path], leave_out: Path | None = None) -> list[PictureFile]:
    """Return the picture files, each once: in the order given, those of a folder sorted.

    Args:
        paths: Files, which are taken whatever their ending, and folders, which are read with all
            their subfolders; names that begin with a dot are passed over.
        leave_out: A folder that is not read, such as that of the report.

    Raises:
        PictureError: A path does not exist, a folder cannot be read, or there is no picture.
    """
    skipped = None if leave_out is None else os.path.abspath(leave_out)
    found: dict[str, None] = {}
    roots = []
    for path in paths:
        whole = os.path.abspath(path)
        if os.path.isdir(whole):
            roots.append(whole)
            found.update(dict.fromkeys(_below(whole, skipped)))
        elif os.path.lexists(whole):
            roots.append(os.path.dirname(whole))
            found[whole] = None
        else:
            raise PictureError(f"{path} does not exist; give image files or folders of them")
    if not found:
        raise PictureError(
            f"there is no picture in {', '.join(map(str, paths))}: no file ends in "
            f"{', '.join(ENDINGS)}; give another folder, or the files themselves"
        )
    base = os.path.commonpath(roots)
    return [PictureFile(Path(file), _shown(os.path.relpath(file, base))) for file in found]


def _below(folder: str, skipped: str | None) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise PictureError(
            f"the folder {error.filename} cannot be read: {error.strerror}; change its permissions"
        ) from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.join(parent, name) != skipped
        )
        if parent == skipped:
            folders.clear()
            continue
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(ENDINGS):
                yield os.path.join(parent, name)


def _shown(name: str) -> str:
    """Return a path with slashes; bytes that are no text are shown by their escapes."""
    return Path(name).as_posix().encode("utf-8", "backslashreplace").decode()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    Raises:
        OSError: It cannot be read.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            found.update(part)
    return found.hexdigest()
