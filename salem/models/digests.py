"""sha256 of files, remembered on disk by their stamps: weights are not read again for each job.

A stamp is a file's inode, size, and times of change. Writing to a file sets its change time (ctime), which no
program can set back, so a stamp tells a changed file. Must not know what the files hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SETTLED_NS = 2 * 10**9  # a file that changed less than this ago may change again within the same clock tick


@dataclass(frozen=True)
class FileDigests:
    """Digests remembered in one small JSON file; without a path, nothing is remembered."""

    path: Path | None = None

    def sha256(self, file: Path) -> str:
        """The digest of a file's content.

        Raises:
            OSError: the file cannot be read.
        """
        name, stamp = str(file.resolve()), _stamp(file)
        known = self._read()
        match known.get(name):
            case [str(digest), *remembered] if remembered == stamp:
                return digest
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if _stamp(file) == stamp and time.time_ns() - max(stamp[-2:]) > _SETTLED_NS:
            self._write(known | {name: [digest, *stamp]})
        return digest

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            known = json.loads(self.path.read_bytes()) if self.path else {}
            return known if isinstance(known, dict) else {}
        return {}

    def _write(self, known: dict[str, Any]) -> None:
        """Replace the file. If two processes write at once, one of them hashes again next time."""
        if self.path is None:
            return
        with suppress(OSError):  # a full disk or a read-only folder only costs time
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(known, file)
                Path(name).replace(self.path)
            finally:
                Path(name).unlink(missing_ok=True)


def _stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
