"""The folder of a study: one file for each finished picture, so that none is measured twice.

``settings.json`` says what the records were made with, ``pictures/<SHA-256 of the picture>.json``
what came out. A picture that is there twice under two names is measured once; one that changes is
another one. Every file is replaced as a whole, and holds a checksum: a record that was damaged is
not there.
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from captum_lrp_stab.errors import ReportError
from captum_lrp_stab.reporting import files
from captum_lrp_stab.study import settings as settings_module
from captum_lrp_stab.study.records import PictureRecord, record_of
from captum_lrp_stab.study.settings import Settings, differences

_RECORD = re.compile(r"[0-9a-f]{64}\.json")
_DRAFT = re.compile(files.DRAFT)


class Store:
    """The records in a folder, made with some settings.

    Args:
        folder: It is made if it does not exist.
        settings: What new records are made with.
        fresh: Throw away what is there.

    Raises:
        ReportError: The folder cannot be made or written to, or holds records made with other
            settings.
    """

    def __init__(self, folder: Path, settings: Settings, fresh: bool = False) -> None:
        self.folder, self.settings = folder, settings
        self._pictures = folder / "pictures"
        self._digest = settings_module.digest(settings)
        self._made_with = folder / "settings.json"
        files.make_folder(self._pictures)
        try:
            self._tidy(fresh)
        except OSError as error:
            raise ReportError(
                f"cannot write into {folder}: {error}; give another folder with --out"
            ) from error
        before = None if fresh else _read(self._made_with)
        if before is None:
            self._write(self._made_with, settings)
        elif changed := differences(before, settings):
            raise ReportError(
                f"{folder} holds a study with other settings: {'; '.join(changed)}; give another "
                "folder with --out, or --fresh to begin again in this one"
            )

    def load(self, picture: str, sha256: str) -> PictureRecord | None:
        """Return the record of a picture, None if there is none that can be used.

        Args:
            picture: What the picture is called now.
            sha256: Of its file.
        """
        content = _read(self._path(sha256))
        if content is None or content.get("settings") != self._digest:
            return None
        facts = content.get("record")
        if not isinstance(facts, dict) or content.get("check") != _check(facts):
            return None
        try:
            record = record_of(facts)
        except (KeyError, TypeError):
            return None
        return replace(record, picture=picture) if record.sha256 == sha256 else None

    def save(self, record: PictureRecord) -> None:
        """Keep a record; when this returns, it is on the disk.

        Raises:
            ReportError: It cannot be written.
        """
        assert record.sha256 is not None
        facts = record.facts()
        content = {"settings": self._digest, "check": _check(facts), "record": facts}
        self._write(self._path(record.sha256), content)

    def _path(self, sha256: str) -> Path:
        return self._pictures / f"{sha256}.json"

    def _tidy(self, fresh: bool) -> None:
        """Remove what a kill has left half-written, and with ``fresh`` every record."""
        for folder in (self.folder, self._pictures):
            for path in folder.iterdir():
                is_record = folder == self._pictures and _RECORD.fullmatch(path.name)
                if _DRAFT.fullmatch(path.name) or (fresh and is_record):
                    path.unlink(missing_ok=True)

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        files.write(path.parent, {path.name: text.encode()})


def _read(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _check(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
