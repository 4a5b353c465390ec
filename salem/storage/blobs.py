"""Blobs: bytes named by their sha256, in a folder or any store that fsspec supports (s3://, memory://, …).

The name is a checksum: a blob never changes, and reading it verifies it. Must not know what a blob means or
who needs it: the caller of `sweep` and `remove_unneeded` says so. A forked child must connect again.

A blob may be stored again while it is being removed. A removal therefore marks the blob first, then looks
whether it is still unneeded, removes it, and removes the mark. `put` writes, waits until there is no mark,
and writes again if the blob is gone. So either the removal sees the new blob, or `put` sees the mark.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from salem.errors import BlobCorrupted, BlobMissing, Misconfigured, NotFound, SalemError, Unavailable

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LEFTOVER = re.compile(r"[0-9a-f]{64}\.([0-9a-f]{16}\.part|removing)")  # of processes that died
_MARK = ".removing"
_MARK_LASTS_S = 60.0  # an older mark was left by a process that died
_POLL_S = 0.02
_OWNER = "installation"  # the file at the root that names the installation that owns the store
# S3 error codes of temporary problems, which its driver reports as missing permission
_PASSING = ("ExpiredToken", "ExpiredTokenException", "RequestTimeTooSkewed")
_TIME_FIELDS = ("LastModified", "mtime", "modified", "updated", "created")  # each store has its own


class BlobStore:
    """A content-addressed store. A blob lies at `<root>/<first two digits>/<digest>`."""

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    @classmethod
    def connect(cls, url: str) -> BlobStore:
        """Create a store from a folder's path or an fsspec URL. This opens nothing.

        Raises:
            Misconfigured: there is no such kind of store, or its driver is not installed.
        """
        try:
            files, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise Misconfigured(
                "the blob URL cannot be used", remedy='for s3:// install it with: pip install "salem[s3]"'
            ) from error
        return cls(files, root)

    def put(self, data: bytes) -> str:
        """Store bytes and return their sha256. Nobody ever sees a part of a blob.

        A blob that exists is written again, which makes it too young for a sweep.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        with self._reaching(digest):
            self._write(path, data)
            while self._is_marked(path) or not self._files.isfile(path):
                time.sleep(_POLL_S)
                if not self._is_marked(path) and not self._files.isfile(path):
                    self._write(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """Read a blob.

        Raises:
            NotFound: the name is not a digest.
            BlobMissing: there is no blob with that name.
            BlobCorrupted: the stored bytes do not match the name.
        """
        with self._reaching(digest):
            try:
                data: bytes = self._files.cat_file(self._path(digest))
            except FileNotFoundError as error:
                raise BlobMissing(
                    f"the stored file {digest[:12]}… is missing",
                    remedy="restore it from a backup, or check that BLOB_URL names the right store",
                ) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise BlobCorrupted(
                f"the stored file {digest[:12]}… is damaged and was not used",
                remedy="restore it from a backup, or run the job that made it again",
            )
        return data

    def exists(self, digest: str) -> bool:
        with self._reaching(digest):
            return bool(self._files.isfile(self._path(digest)))

    def delete(self, digest: str) -> None:
        """Remove a blob, if it exists."""
        with self._reaching(digest):
            path = self._path(digest)
            with suppress(FileNotFoundError):  # another process may remove it too
                if self._files.isfile(path):
                    self._files.rm_file(path)

    def digests(self) -> Iterator[tuple[str, datetime]]:
        """Each blob, and when it was last written."""
        for path, modified_at in self._listing():
            name = path.rpartition("/")[2]
            if self._is_ours(path) and _DIGEST.fullmatch(name):
                yield name, modified_at

    def claim(self, owner: str, known: Set[str]) -> bool:
        """Whether the owner may remove blobs that it does not need.

        A file at the root names the owner of the store. Without that file, the store becomes the owner's if
        it is empty or contains a blob that is `known`. The blobs of another installation all look unneeded.
        """
        path = f"{self._root}/{_OWNER}"
        with self._reaching(_OWNER):
            if self._files.isfile(path):
                return bool(self._files.cat_file(path).decode(errors="replace").strip() == owner)
        here = {digest for digest, _ in self.digests()}
        if here and not here & known:
            return False
        with self._reaching(_OWNER):
            self._write(path, owner.encode())
        return True

    def sweep(self, in_use: Set[str], older_than_s: float) -> int:
        """Remove old blobs that nobody needs, and leftovers of interrupted writes. Returns how many.

        A blob is stored before a row names it, so young blobs stay, also those written since the store was
        listed. Files in places where no blob belongs stay.
        """
        oldest_kept = datetime.now(UTC) - timedelta(seconds=older_than_s)

        def is_old(path: str) -> bool:
            self._files.invalidate_cache()
            return _modified_at(self._files.info(path)) < oldest_kept

        num_removed = 0
        for path, modified_at in self._listing():
            name = path.rpartition("/")[2]
            if modified_at >= oldest_kept or not self._is_ours(path):
                continue
            if _LEFTOVER.fullmatch(name):
                num_removed += self._remove(path, is_old)
            elif _DIGEST.fullmatch(name) and name not in in_use:
                with self._marked([path]):
                    num_removed += self._remove(path, is_old)
        return num_removed

    def remove_unneeded(self, digests: Set[str], needed: Callable[[Set[str]], Set[str]]) -> None:
        """Remove blobs of any age, except those that `needed` returns. It is asked once they are marked."""
        paths = {digest: self._path(digest) for digest in sorted(digests)}
        with self._marked(list(paths.values())):
            for digest in digests - needed(digests):
                self._remove(paths[digest], lambda _: True)

    def _remove(self, path: str, is_unneeded: Callable[[str], bool]) -> bool:
        # Another process may remove the file too.
        with self._reaching(path.rpartition("/")[2]), suppress(FileNotFoundError):
            if is_unneeded(path):
                self._files.rm_file(path)
                return True
        return False

    @contextmanager
    def _marked(self, paths: Sequence[str]) -> Iterator[None]:
        """Mark blobs as being removed: until the end, `put` does not return for any of them."""
        with self._reaching("marks"):
            try:
                for path in paths:
                    self._write(path + _MARK, b"")
                yield
            finally:
                for path in paths:
                    with suppress(FileNotFoundError):
                        self._files.rm_file(path + _MARK)

    def _is_marked(self, path: str) -> bool:
        self._files.invalidate_cache()
        try:
            marked_at = _modified_at(self._files.info(path + _MARK))
        except FileNotFoundError:
            return False
        return datetime.now(UTC) - marked_at < timedelta(seconds=_MARK_LASTS_S)

    def _write(self, path: str, data: bytes) -> None:
        if isinstance(self._files, LocalFileSystem):
            _write_by_rename(Path(path), data)
        else:
            self._files.pipe_file(path, data)

    def _is_ours(self, path: str) -> bool:
        """Whether a file is where a blob of its name, or a leftover of it, belongs."""
        name = path.rpartition("/")[2]
        return path == f"{self._root}/{name[:2]}/{name}"

    def _listing(self) -> list[tuple[str, datetime]]:
        with self._reaching(self._root):
            self._files.invalidate_cache()
            found = self._files.find(self._root, detail=True)
            return [(path, _modified_at(info)) for path, info in found.items()]

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise NotFound("there is no stored file with that name")
        return f"{self._root}/{digest[:2]}/{digest}"

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        try:
            yield
        except SalemError:
            raise
        except Exception as error:  # each driver raises the errors of its own library
            raise _as_salem_error(error) from error


def _as_salem_error(error: Exception) -> SalemError:
    """Unavailable if waiting may help, and Misconfigured if only a person can."""
    response = getattr(error.__cause__, "response", None) or {}
    if response.get("Error", {}).get("Code") in _PASSING:
        return Unavailable("the blob store does not answer", remedy="try again shortly")
    if isinstance(error, FileNotFoundError):
        return Misconfigured("the blob store does not exist", remedy="create it, or set BLOB_URL")
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return Misconfigured(
            "this process may not use the blob store",
            remedy="give it permission to read and write there, or set BLOB_URL",
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable("the blob store is full", remedy="free some space there")
    return Unavailable("the blob store does not answer", remedy="try again shortly")


def _write_by_rename(path: Path, data: bytes) -> None:
    """Write a file completely or not at all, even if the power fails."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified_at(info: dict[str, Any]) -> datetime:
    moment = next((info[field] for field in _TIME_FIELDS if info.get(field) is not None), None)
    if isinstance(moment, datetime):
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment, UTC)
    return datetime.now(UTC)  # the store does not say: never old enough for a sweep
